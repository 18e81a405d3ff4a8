"""What a rollout leaves as it was, what it runs under, and what goes to `model.generate`."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from fastrl import legacy
from fastrl.models import AutoModelForCausalLMWithValueHead, logprobs, prepare_policy
from fastrl.rollout import generate
from fastrl.rollout.serving import served, serving
from fastrl.types import Tokens

SETTINGS = {"max_new_tokens": 10, "eos_token_id": -1, "seed": 3}


@pytest.fixture(autouse=True)
def _warn_again(monkeypatch):
    """Each test hears what is said once a process."""
    monkeypatch.setattr(legacy, "_said", set())
    AcceleratorState._reset_state(reset_partial_state=True)


def ids(rollouts):
    return [[answer.token_ids for answer in rollout.completions] for rollout in rollouts]


def rescored(model, rollout, answer):
    row = torch.tensor([[*rollout.prompt_ids, *answer.token_ids]])
    first = len(rollout.prompt_ids)
    with torch.no_grad():
        return logprobs(model, Tokens(row, [0], [row.shape[1]], [first])).logp[0, first - 1 :]


def adapted(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_left_as_it_was(tiny, tokenizer, prompts, dtype):
    model = tiny(attention_dropout=0.5, dtype=dtype).train()
    model.model.layers[1].eval()
    model.gradient_checkpointing_enable()
    generate(model, tokenizer, prompts, **SETTINGS)  # the handshake comes first
    calls = []
    handle = model.model.norm.register_forward_hook(lambda *_: calls.append(1))
    before = {
        "parameters": {n: (p, p.data_ptr(), p.clone()) for n, p in model.named_parameters()},
        "mode": [m.training for m in model.modules()],
        "hooks": [dict(m._forward_hooks) for m in model.modules()],
        "checkpointing": [getattr(m, "gradient_checkpointing", None) for m in model.modules()],
        "random": torch.get_rng_state(),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
        generate(model, tokenizer, prompts, **SETTINGS)
    assert calls
    for name, parameter in model.named_parameters():
        held, address, value = before["parameters"][name]
        assert parameter is held and parameter.data_ptr() == address
        assert torch.equal(parameter, value) and parameter.grad is None
    assert [m.training for m in model.modules()] == before["mode"]
    assert [dict(m._forward_hooks) for m in model.modules()] == before["hooks"]
    assert before["checkpointing"] == [
        getattr(m, "gradient_checkpointing", None) for m in model.modules()
    ]
    assert torch.equal(torch.get_rng_state(), before["random"])
    handle.remove()
    row = torch.tensor([prompts[1]])
    model(input_ids=row, labels=row).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_failing_pass_leaves_it_too(tiny, tokenizer, prompts):
    model = tiny().train()
    generate(model, tokenizer, prompts, **SETTINGS)
    weights = dict(model.named_parameters())

    def fail(*_):
        raise RuntimeError("stop here")

    handle = model.model.norm.register_forward_hook(fail)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="stop here"):
        generate(model, tokenizer, prompts, **SETTINGS)
    handle.remove()
    assert model.training
    assert all(p is weights[n] for n, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["bare", "lora", "value head", "lora behind a value head"])
@pytest.mark.parametrize("mixed", ["no", "bf16"])
def test_wrapped_and_under_autocast(tiny, tokenizer, prompts, kind, mixed):
    bare = tiny()
    model = adapted(bare) if "lora" in kind else bare
    if "value head" in kind:
        model = AutoModelForCausalLMWithValueHead(model)
    prepare_policy(model)  # as trainers do, before autocast is wrapped around it
    model = Accelerator(cpu=True, mixed_precision=mixed).prepare(model).train()
    casts = []
    with serving(model, served(model)):
        casts += [m.weight.dtype for m in bare.modules() if isinstance(m, nn.Linear)]
    assert (torch.bfloat16 in casts) == (mixed == "bf16")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    got = generate(model, tokenizer, prompts, num_return_sequences=2, **SETTINGS)
    tolerance = 1e-4 if mixed == "no" else 0.1
    model.eval()
    worst = 0.0
    for rollout in got:
        for answer in rollout.completions:
            want = rescored(model, rollout, answer)
            worst = max(worst, (torch.tensor(answer.logp_full) - want).abs().max().item())
    assert worst <= tolerance
    if kind == "lora":
        with_adapter = generate(model, tokenizer, prompts, **SETTINGS)
        with model.disable_adapter():
            assert ids(generate(model, tokenizer, prompts, **SETTINGS)) != ids(with_adapter)


def test_autocast_with_the_shadow_computes_what_autocast_computes(tiny, tokenizer, prompts):
    model = tiny()
    kept = served(model)
    row = torch.tensor([prompts[3]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = model(row).logits
        with serving(model, kept):
            assert torch.equal(model(row).logits, want)


def test_what_the_engine_cannot_do_goes_to_generate(tiny, tokenizer, prompts):
    model = tiny()
    peer = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="its own generate: num_beams=3 is a setting of"):
        got = generate(
            model, tokenizer, prompts, temperature=0, num_beams=3, max_new_tokens=6, do_sample=False
        )
    for prompt, rollout in zip(prompts, got, strict=True):
        want = peer.generate(
            torch.tensor([prompt]), num_beams=3, do_sample=False, max_new_tokens=6, pad_token_id=0
        )[0, len(prompt) :].tolist()
        (answer,) = rollout.completions
        assert list(answer.token_ids) == want
        assert answer.logp is None
        expected = rescored(model, rollout, answer)
        torch.testing.assert_close(torch.tensor(answer.logp_full), expected, atol=1e-5, rtol=0)


def test_a_logits_processor_goes_to_generate(tiny, tokenizer, prompts):
    from transformers import LogitsProcessor, LogitsProcessorList

    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([44]), 0.0)

    with pytest.warns(UserWarning, match="logits_processor= is an argument of model.generate only"):
        got = generate(
            tiny(), tokenizer, prompts, logits_processor=LogitsProcessorList([Only()]), **SETTINGS
        )
    assert {i for rollout in got for a in rollout.completions for i in a.token_ids} == {44}


@pytest.mark.parametrize("stop", [None, "A"])
def test_a_model_the_engine_cannot_run_gives_the_same_interface(tiny, tokenizer, prompts, stop):
    model = tiny("bloom")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = generate(model, tokenizer, prompts, num_return_sequences=2, stop=stop, **SETTINGS)
        again = generate(model, tokenizer, prompts, num_return_sequences=2, stop=stop, **SETTINGS)
    assert sum("answers through its own generate: Bloom" in str(w.message) for w in said) == 1
    assert ids(got) == ids(again)
    assert len({answer for answers in ids(got) for answer in answers}) == 10
    for rollout in got:
        for answer in rollout.completions:
            want = rescored(model, rollout, answer)
            torch.testing.assert_close(torch.tensor(answer.logp_full), want, atol=1e-5, rtol=0)
            assert answer.logp == answer.logp_full
            if answer.finish == "stop":
                assert answer.text.endswith("A")
            else:
                assert len(answer.token_ids) == 10


def test_an_overridden_generate_is_called(tiny, tokenizer, prompts):
    model = tiny()
    plain = model.generate

    def mine(*args, **kwargs):
        kwargs["generation_config"].max_new_tokens = 2
        return plain(*args, **kwargs)

    model.generate = mine
    with pytest.warns(UserWarning, match="its generate is not transformers' own"):
        got = generate(model, tokenizer, prompts, **SETTINGS)
    assert {len(rollout.completions[0].token_ids) for rollout in got} == {2}


def test_a_model_whose_kept_keys_disagree_is_found_out(tiny, tokenizer, prompts, monkeypatch):
    from fastrl.rollout import keyvalues

    right = keyvalues.Decode._write

    def shifted(self, own, key, value):
        right(self, own, key, value.roll(1, dims=-1))

    monkeypatch.setattr(keyvalues.Decode, "_write", shifted)
    with pytest.warns(UserWarning, match="its own generate: logits of decoding differ"):
        generate(tiny(), tokenizer, prompts, **SETTINGS)
