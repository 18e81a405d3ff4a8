"""Scores of packed and padded rows against each row alone in a model that never met fastrl."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch

from fastrl.models import attention, door, policy
from fastrl.models.policy import counts_pads, logprobs, prepare_policy
from fastrl.types import Tokens

PACKED = ["gpt2", "gpt2-layer-scale", "llama", "qwen2", "qwen3", "mistral", "gemma3"]
PACKED += ["cohere", "granite", "neox", "opt"]
PADDED = ["gemma2", "bloom", "falcon-alibi", "gpt-neo", "mamba"]
# Rotary tables, some softmaxes and Mamba's scan are fp32 in any model, so fp64 does not help there.
DTYPE = {"gemma2": torch.float32, "mamba": torch.float32}
CLOSE = {torch.float64: {"rtol": 1e-6, "atol": 1e-9}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}
WEIGHTS = torch.linspace(-1, 1, 4 * 23).view(4, 23).double()


def objective(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """A scalar in which every scored entry counts differently."""
    return (WEIGHTS * logp.double()).sum() + (WEIGHTS.flip(0) * entropy.double()).sum()


@pytest.mark.parametrize("family", PACKED + PADDED)
def test_scores_and_gradients_equal_each_row_alone(
    family: str, tiny: Any, rows: Tokens, separately: Any, twin: Any, score: Any, grads: Any
) -> None:
    dtype = DTYPE.get(family, torch.float64)
    model = tiny(family, dtype)
    plain = twin(model)
    truth = separately(plain, rows)
    objective(truth.logp, truth.entropy).backward()
    got = score(model, rows)
    objective(got.logp, got.entropy).backward()
    plan = prepare_policy(model)
    assert plan.packed == (family in PACKED)
    assert plan.head is not None, plan.head_reason
    torch.testing.assert_close(got.logp, truth.logp, **CLOSE[dtype])
    torch.testing.assert_close(got.entropy, truth.entropy, **CLOSE[dtype])
    assert torch.equal(got.mask, truth.mask)
    mine, theirs = grads(model), grads(plain)
    assert mine.keys() == theirs.keys()
    for name in theirs:
        size = theirs[name].abs().max().item()
        limit = {"rtol": 0, "atol": CLOSE[dtype]["rtol"] * max(size, 1e-3)}
        torch.testing.assert_close(mine[name], theirs[name], **limit, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "cohere"])
def test_padded_equals_packed(family: str, tiny: Any, rows: Tokens) -> None:
    model = tiny(family)
    packed = logprobs(model, rows, temperature=0.7)
    plan = prepare_policy(model)
    model.__dict__["_fastrl_plan"] = dataclasses.replace(plan, packed=False)
    padded = logprobs(model, rows, temperature=0.7)
    model.__dict__["_fastrl_plan"] = dataclasses.replace(plan, packed=False, head=None)
    whole = logprobs(model, rows, temperature=0.7)
    model.__dict__["_fastrl_plan"] = dataclasses.replace(plan, head=None)
    packed_whole = logprobs(model, rows, temperature=0.7)
    for other in (padded, whole, packed_whole):
        torch.testing.assert_close(packed.logp, other.logp, **CLOSE[torch.float64])
        torch.testing.assert_close(packed.entropy, other.entropy, **CLOSE[torch.float64])
        assert torch.equal(packed.mask, other.mask)


def test_temperature_divides_logits(
    tiny: Any, rows: Tokens, separately: Any, twin: Any, score: Any
) -> None:
    model = tiny("llama")
    truth = separately(twin(model), rows, 0.6)
    got = score(model, rows, 0.6)
    torch.testing.assert_close(got.logp, truth.logp, **CLOSE[torch.float64])
    torch.testing.assert_close(got.entropy, truth.entropy, **CLOSE[torch.float64])


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_no_gradient_crosses_rows(family: str, tiny: Any, rows: Tokens, embedded: Any) -> None:
    model = tiny(family)
    prepare_policy(model)
    leaves = embedded(model)
    logprobs(model, rows).logp[1].sum().backward()
    (leaf,) = leaves
    assert leaf.shape[:2] == (1, sum(length - 1 for length in rows.lengths))
    first = rows.lengths[0] - 1
    own = slice(first, first + rows.lengths[1] - 1)
    assert leaf.grad[0, own][-5:].abs().sum(-1).min() > 0
    leaf.grad[0, own] = 0
    assert leaf.grad.abs().max() == 0


@pytest.mark.parametrize("packed", [True, False])
def test_left_padding_with_offsets_is_the_plain_padded_call(
    packed: bool, tiny: Any, twin: Any
) -> None:
    model = tiny("gpt2")
    plain = twin(model)
    plan = prepare_policy(model)
    model.__dict__["_fastrl_plan"] = dataclasses.replace(plan, packed=packed)
    ids = torch.randint(3, 97, (3, 10))
    starts = [0, 4, 2]
    tokens = Tokens(ids, starts, [10, 6, 8], [3, 2, 7], position_offsets=starts)
    # What TRL does: no position_ids, so padding counts as positions.
    logits = plain(input_ids=ids, attention_mask=tokens.attention_mask).logits[:, :-1]
    want = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    got = logprobs(model, tokens)
    torch.testing.assert_close(got.logp, want * got.mask, **CLOSE[torch.float64])
    right = logprobs(model, dataclasses.replace(tokens, position_offsets=None))
    assert (right.logp - got.logp).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "counts"), [("gpt2", True), ("llama", False), ("opt", False), ("gpt-neo", True)]
)
def test_counts_pads_is_what_the_model_does(family: str, counts: bool, tiny: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert counts_pads(tiny(family, torch.float32)) is counts


def test_dropped_tokens_are_really_not_needed(tiny: Any, rows: Tokens) -> None:
    model = tiny("llama")
    before = logprobs(model, rows).logp
    noise = rows.ids.clone()
    outside = rows.attention_mask == 0
    noise[outside] = torch.randint(3, 97, (int(outside.sum()),))
    after = logprobs(model, dataclasses.replace(rows, ids=noise)).logp
    assert torch.equal(before, after)


def test_rows_without_scored_tokens(tiny: Any) -> None:
    model = tiny("gpt2")
    ids = torch.randint(3, 97, (3, 6))
    none = logprobs(model, Tokens(ids, [0, 0, 5], [6, 3, 1], [6, 3, 1]))
    assert not none.mask.any()
    assert none.logp.shape == (3, 5)
    none.logp.sum().backward()  # still connected: every rank of a distributed run has a gradient
    assert model.transformer.wpe.weight.grad.abs().max() == 0
    some = logprobs(model, Tokens(ids, [0, 0, 5], [6, 3, 1], [6, 1, 1]))
    alone = logprobs(model, Tokens(ids[1:2], [0], [3], [1]))
    torch.testing.assert_close(some.logp[1:2], alone.logp, **CLOSE[torch.float64])
    assert some.logp[[0, 2]].abs().max() == 0


def test_long_passes_without_gradient_go_in_pieces(
    tiny: Any, rows: Tokens, monkeypatch: Any
) -> None:
    model = tiny("llama")
    want = logprobs(model, rows)
    monkeypatch.setitem(policy.PACK_TOKENS, "cpu", 26)
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        got = logprobs(model, rows)
    assert len(calls) == 3
    torch.testing.assert_close(got.logp, want.logp.detach(), **CLOSE[torch.float64])
    assert torch.equal(got.mask, want.mask)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_checkpointing_gives_the_same_gradients(
    family: str, lora: bool, tiny: Any, rows: Tokens, grads: Any
) -> None:
    model = tiny(family, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    if lora:
        peft = pytest.importorskip("peft")
        targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, lora_dropout=0.0),
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        model = model.double()
    prepare_policy(model)
    model.train()
    found = {}
    for mode in (None, False, True):
        if mode is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": mode})
        out = logprobs(model, rows)
        objective(out.logp, out.entropy).backward()
        found[mode] = grads(model)
        if mode is not None:
            model.gradient_checkpointing_disable()
    assert len(found[None]) > 3
    for mode in (False, True):
        assert found[mode].keys() == found[None].keys()
        for name, want in found[None].items():
            torch.testing.assert_close(found[mode][name], want, rtol=1e-8, atol=1e-12)


def test_attention_dropout_acts_within_segments(tiny: Any, rows: Tokens, separately: Any) -> None:
    # With all attention weights dropped, scores depend on the token and its position alone.
    config = {"attn_pdrop": 1.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    model = tiny("gpt2", **config)
    prepare_policy(model)
    kept = logprobs(model, rows).logp
    model.train()
    dropped = logprobs(model, rows).logp
    assert (kept - dropped).abs().max() > 1e-2
    plain = tiny("gpt2", attn_implementation="eager", **config).train()
    truth = separately(plain, rows)
    torch.testing.assert_close(dropped, truth.logp, **CLOSE[torch.float64])


def test_preparing_leaves_no_trace(tiny: Any) -> None:
    model = tiny("gpt2").train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    prepare_policy(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.state_dict().keys() == weights.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_plain_calls_and_generate_are_unchanged(
    implementation: str, tiny: Any, twin: Any, tmp_path: Any
) -> None:
    model = tiny("llama", torch.float32, attn_implementation=implementation)
    plain = twin(model)
    assert prepare_policy(model).packed
    ids = torch.randint(3, 97, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    given = {**inputs, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**given), plain.generate(**given))
    model.save_pretrained(tmp_path)
    assert "fastrl" not in (tmp_path / "config.json").read_text()


def test_a_copy_and_a_pickled_model_score_themselves(
    tiny: Any, rows: Tokens, twin: Any, tmp_path: Any
) -> None:
    model = tiny("gpt2")
    want = logprobs(model, rows).logp
    copied = twin(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(2)
    for other in (copied, loaded):
        torch.testing.assert_close(logprobs(other, rows).logp, want)
    assert (logprobs(model, rows).logp - want).abs().max() > 1e-2


def test_changed_attention_or_dtype_is_examined_again(
    tiny: Any, rows: Tokens, separately: Any, twin: Any
) -> None:
    model = tiny("llama")
    truth = separately(twin(model), rows)
    prepare_policy(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logprobs(model, rows).logp, truth.logp, **CLOSE[torch.float64])
    assert attention.enabled(model.config)
    model.float()
    assert prepare_policy(model).proven_on == ("cpu", torch.float32)
    got = logprobs(model, rows).logp
    torch.testing.assert_close(got.double(), truth.logp, rtol=1e-3, atol=1e-4)


def test_bf16_scores_are_fp32_and_near(tiny: Any, rows: Tokens, separately: Any, twin: Any) -> None:
    model = tiny("qwen2", torch.bfloat16)
    truth = separately(twin(model).float(), rows)
    got = logprobs(model, rows)
    assert got.logp.dtype == got.entropy.dtype == torch.float32
    assert (got.logp - truth.logp).abs().max() < 0.3
    assert prepare_policy(model).packed


@pytest.mark.parametrize("called", [False, True])
def test_autocast_reaches_the_head(called: bool, tiny: Any, rows: Tokens, monkeypatch: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny("llama", torch.float32)
    full = logprobs(model, rows).logp
    accelerate.state.AcceleratorState._reset_state(True)  # an earlier test's precision would stay
    prepared = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    seen = []
    if called:
        model.lm_head.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    else:
        op = door.linear_token_logprobs

        def spy(hidden: torch.Tensor, weight: torch.Tensor, *args: Any, **keywords: Any) -> Any:
            assert hidden.dtype == weight.dtype
            seen.append(weight.dtype)
            return op(hidden, weight, *args, **keywords)

        monkeypatch.setattr(door, "linear_token_logprobs", spy)
    half = logprobs(prepared, rows).logp
    accelerate.state.AcceleratorState._reset_state(True)
    assert seen == [torch.bfloat16]
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.5
    half.sum().backward()
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_models_that_cannot_be_scored_are_refused(tiny: Any, rows: Tokens) -> None:
    import transformers

    with pytest.raises(TypeError, match="no transformers model inside Linear"):
        logprobs(torch.nn.Linear(2, 2), rows)
    with pytest.raises(ValueError, match="GPT2Model has no language-model head"):
        logprobs(tiny("gpt2").transformer, rows)
    config = transformers.T5Config(vocab_size=97, d_model=16, d_kv=4, d_ff=16, num_layers=1)
    with pytest.raises(ValueError, match="encoder-decoder"):
        logprobs(transformers.T5ForConditionalGeneration(config), rows)


def test_bad_spans_are_refused(tiny: Any, rows: Tokens) -> None:
    model = tiny("llama")
    replace = dataclasses.replace
    bad = {
        "must be .B, T.": replace(rows, ids=rows.ids[0]),
        "3 entries for 4 rows": replace(rows, lengths=[1, 2, 3]),
        "span 1: start 3 and length 22": replace(rows, lengths=[24, 22, 9, 20]),
        "span 2: start 6 and length 0": replace(rows, lengths=[24, 17, 0, 20]),
        "span 0: scored must be at least 1": replace(rows, scored=[0, 1, 1, 1]),
        "position_offsets has 1 entries": replace(rows, position_offsets=[0]),
    }
    for message, tokens in bad.items():
        with pytest.raises(ValueError, match=message):
            logprobs(model, tokens)
    with pytest.raises(TypeError, match="integer token ids"):
        logprobs(model, replace(rows, ids=rows.ids.float()))
    with pytest.raises(ValueError, match="temperature must be positive"):
        logprobs(model, rows, temperature=0.0)
    with pytest.raises(ValueError, match="takes no position_ids"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = prepare_policy(bloom := tiny("bloom"))
        bloom.__dict__["_fastrl_plan"] = replace(plan, counts_pads=True)
        logprobs(bloom, replace(rows, position_offsets=[1, 1, 1, 1]))
