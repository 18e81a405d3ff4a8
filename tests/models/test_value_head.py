"""The value-head models: what they wrap, return, save and refuse."""

from __future__ import annotations

import copy
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from fastrl import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PreTrainedModelWrapper,
)
from fastrl.models import ValueHead, loading
from fastrl.models.policy import logprobs
from fastrl.types import Tokens

Causal = AutoModelForCausalLMWithValueHead
IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(5))


def t5() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=97, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4
    )
    config.decoder_start_token_id = 0
    return transformers.T5ForConditionalGeneration(config).eval()


def lora(**keywords: Any) -> Any:
    peft = pytest.importorskip("peft")
    given = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **keywords}
    return peft.LoraConfig(**given)


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Path:
    """A plain Llama checkpoint without a value head."""
    folder = tmp_path / "base"
    tiny("llama", torch.float32).save_pretrained(folder)
    return folder


def test_forward_is_the_models_own_and_the_head_on_its_last_hidden(tiny: Any) -> None:
    plain = tiny("llama", torch.float32)
    model = Causal.from_pretrained(plain).eval()
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    logits, loss, values = model(IDS, attention_mask=mask, labels=IDS)
    output = plain(input_ids=IDS, attention_mask=mask, labels=IDS, output_hidden_states=True)
    assert torch.equal(logits, output.logits)
    assert torch.equal(loss, output.loss)
    head = model.v_head.summary
    want = output.hidden_states[-1] @ head.weight[0] + head.bias
    torch.testing.assert_close(values, want)
    *_, cache = model(IDS, return_past_key_values=True, use_cache=True)
    again = model(IDS[:, -1:], past_key_values=cache)
    assert len(again) == 3
    assert cache.get_seq_length() == IDS.shape[1] + 1


def test_half_precision_gives_fp32_logits_and_values(saved: Path) -> None:
    model = Causal.from_pretrained(str(saved), torch_dtype=torch.bfloat16)
    assert model.pretrained_model.lm_head.weight.dtype == torch.bfloat16
    logits, _, values = model(IDS)
    assert logits.dtype == values.dtype == torch.float32
    assert Causal.from_pretrained(saved).pretrained_model.dtype == torch.float32


def test_weights_are_fp32_unless_asked_for_otherwise(tiny: Any, tmp_path: Path) -> None:
    tiny("llama", torch.bfloat16).save_pretrained(tmp_path)
    assert Causal.from_pretrained(str(tmp_path)).pretrained_model.dtype == torch.float32
    half = Causal.from_pretrained(str(tmp_path), dtype="auto")
    assert half.pretrained_model.dtype == torch.bfloat16


def test_head_arguments(tiny: Any) -> None:
    model = Causal.from_pretrained(tiny("llama"))
    assert model.v_head.dropout.p == 0.1
    assert isinstance(Causal(tiny("llama"), summary_dropout_prob=0.0).v_head.dropout, nn.Identity)
    configured = tiny("llama")
    configured.config.summary_dropout_prob = 0.5
    assert Causal.from_pretrained(configured, summary_dropout_prob=0.2).v_head.dropout.p == 0.5
    normal = Causal.from_pretrained(
        tiny("llama"), v_head_init_strategy="normal", v_head_initializer_range=7.0
    )
    assert normal.v_head.summary.bias.abs().max() == 0
    assert 3 < normal.v_head.summary.weight.std() < 12
    with pytest.raises(ValueError, match="v_head_init_strategy must be"):
        Causal(tiny("llama"), v_head_init_strategy="zeros")
    opt = Causal.from_pretrained(tiny("opt", torch.float32))
    assert opt.v_head.summary.in_features == 16  # its word_embed_proj_dim, not its hidden_size
    assert opt(IDS)[2].shape == IDS.shape
    with pytest.raises(ValueError, match="states no hidden_size"):
        ValueHead(types.SimpleNamespace())


@pytest.mark.parametrize("shards", [None, "5KB"])
def test_save_and_load(shards: str | None, tiny: Any, tmp_path: Path) -> None:
    model = Causal.from_pretrained(tiny("gpt2", torch.float32))
    keywords = {} if shards is None else {"max_shard_size": shards}
    model.save_pretrained(tmp_path, **keywords)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards is not None)
    loaded = Causal.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(plain(IDS).logits, model.eval()(IDS)[0])


def test_a_base_model_says_that_the_head_is_new(saved: Path) -> None:
    with pytest.warns(UserWarning, match="no v_head weight is found"):
        Causal.from_pretrained(str(saved))


def test_a_missing_shard_is_an_error(tiny: Any, tmp_path: Path) -> None:
    Causal.from_pretrained(tiny("gpt2")).save_pretrained(tmp_path, max_shard_size="5KB")
    from fastrl.models import checkpoint

    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"index.json names model-"):
        checkpoint.load_value_head(str(tmp_path), {})


def test_keys_are_those_of_the_base_model_and_the_head(tiny: Any) -> None:
    plain = tiny("llama")
    model = Causal.from_pretrained(plain)
    own = ["v_head.summary.weight", "v_head.summary.bias"]
    assert list(model.state_dict()) == [*plain.state_dict(), *own]
    nested = nn.ModuleDict({"policy": model}).state_dict()  # as DDP asks, with a prefix
    assert list(nested) == [f"policy.{name}" for name in model.state_dict()]


def test_state_dicts_load_in_every_form(tiny: Any) -> None:
    model = Causal.from_pretrained(tiny("llama"))
    other = Causal.from_pretrained(tiny("llama"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IDS)[0], model(IDS)[0])
    prefixed = {name: value.detach() + 1 for name, value in model.named_parameters()}
    other.load_state_dict(prefixed)
    assert torch.equal(other.v_head.summary.bias, model.v_head.summary.bias + 1)
    embedding = "model.embed_tokens.weight"
    assert torch.equal(other.state_dict()[embedding], model.state_dict()[embedding] + 1)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_a_grafted_head_is_taken_over(tiny: Any) -> None:
    plain = tiny("llama")
    plain.v_head = ValueHead(plain.config)
    model = Causal.from_pretrained(plain)
    assert torch.equal(model.v_head.summary.weight, plain.v_head.summary.weight)


def test_adapters_are_made_saved_and_loaded(saved: Path, tmp_path: Path) -> None:
    model = Causal.from_pretrained(str(saved), peft_config=lora())
    assert model.is_peft_model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert list(model.state_dict()) == ["v_head.summary.weight", "v_head.summary.bias"]
    folder = tmp_path / "adapter"
    model.save_pretrained(str(folder))
    names = {file.name for file in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin"} <= names
    head = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert list(head) == ["v_head.summary.weight", "v_head.summary.bias"]
    frozen = Causal.from_pretrained(str(folder))
    trained = Causal.from_pretrained(str(folder), is_trainable=True)
    for loaded in (frozen, trained):
        for got, want in zip(loaded.eval()(IDS), model.eval()(IDS), strict=True):
            assert want is None or torch.equal(got, want)
    assert sum(p.requires_grad for p in frozen.parameters()) == 2
    assert sum(p.requires_grad for p in trained.parameters()) == 6
    frozen.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="peft_config is ignored"):
        Causal.from_pretrained(str(folder), peft_config=lora())


def test_model_objects(tiny: Any) -> None:
    peft = pytest.importorskip("peft")
    assert Causal.from_pretrained(tiny("llama"), peft_config=lora()).is_peft_model
    wrapped = peft.get_peft_model(tiny("llama"), lora())
    assert Causal.from_pretrained(wrapped).pretrained_model is wrapped
    assert Causal(wrapped).is_peft_model
    with pytest.raises(ValueError, match="carries an adapter already"):
        Causal.from_pretrained(wrapped, peft_config=lora())


def test_what_cannot_be_wrapped_is_refused(tiny: Any, saved: Path) -> None:
    peft = pytest.importorskip("peft")
    bad = {
        "GPT2Model has no language model head": lambda: Causal(tiny("gpt2").transformer),
        "must be a name, a transformers": lambda: Causal.from_pretrained(3),
        "peft_config must be": lambda: Causal.from_pretrained(tiny("llama"), peft_config=3),
        "PromptTuningConfig puts virtual tokens": lambda: Causal.from_pretrained(
            tiny("llama"),
            peft_config=peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        ),
        "reward_adapter must be": lambda: Causal.from_pretrained(str(saved), reward_adapter=3),
        "reward_adapter needs a PEFT": lambda: Causal.from_pretrained(
            str(saved), reward_adapter="x"
        ),
        "T5Model has no language model": lambda: AutoModelForSeq2SeqLMWithValueHead(
            transformers.T5Model(t5().config)
        ),
        "has no reward adapter": lambda: Causal(tiny("llama")).compute_reward_score(IDS),
        "wrapped by PEFT, got str; .*from_pretrained loads": lambda: Causal("gpt2"),
        "is an encoder-decoder; wrap it in AutoModelForSeq2SeqLM": lambda: Causal(t5()),
        "is a decoder; wrap it in AutoModelForCausalLM": lambda: (
            AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny("llama"))
        ),
        "dtype='flaot16' is no dtype": lambda: Causal.from_pretrained(
            str(saved), torch_dtype="flaot16"
        ),
        "v_head_initializer_range must be": lambda: Causal(
            tiny("llama"), v_head_init_strategy="normal", v_head_initializer_range="0.1"
        ),
    }
    for message, make in bad.items():
        with pytest.raises(ValueError, match=message):
            make()


def test_an_argument_that_nobody_knows_is_refused(tiny: Any) -> None:
    with pytest.raises(TypeError, match="no argument 'summary_dropout'; did you mean 'summary_dr"):
        Causal(tiny("llama"), summary_dropout=0.5)


def test_arguments_that_do_nothing_are_told(tiny: Any) -> None:
    told = "does nothing with v_head_init, dtype; did you mean 'v_head_init_strategy'"
    with pytest.warns(UserWarning, match=told):
        Causal.from_pretrained(tiny("llama"), v_head_init="normal", dtype=torch.float16)
    with pytest.warns(UserWarning, match="does nothing with is_trainable"):
        Causal.from_pretrained(tiny("llama"), is_trainable=True)
    with pytest.warns(UserWarning, match="acts only with v_head_init_strategy='normal'"):
        Causal.from_pretrained(tiny("llama"), v_head_initializer_range=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Causal.from_pretrained(tiny("llama"), summary_dropout_prob=0.0)


def test_offloading_is_refused_and_all_cpu_is_not(tiny: Any, saved: Path) -> None:
    assert not Causal.from_pretrained(str(saved), device_map="cpu").is_sequential_parallel
    model = tiny("llama")
    model.hf_device_map = {"model": 0, "lm_head": "disk"}
    with pytest.raises(ValueError, match="offloaded to CPU or disk"):
        Causal.from_pretrained(model)
    model.hf_device_map = {"model": "cpu", "lm_head": "cpu"}
    Causal.from_pretrained(model)


def test_old_keywords_reach_todays_transformers(monkeypatch: Any) -> None:
    new = loading.modernise({"use_auth_token": "x", "torch_dtype": torch.float16, "device_map": 0})
    assert new == {"token": "x", "dtype": torch.float16, "device_map": 0}
    with pytest.raises(TypeError, match="old name of token"):
        loading.modernise({"use_auth_token": "x", "token": "y"})
    if not loading.importlib.util.find_spec("bitsandbytes"):
        with pytest.raises(ImportError, match="bitsandbytes"):
            loading.modernise({"load_in_8bit": True})
    fake = types.ModuleType("bitsandbytes")
    fake.__spec__ = loading.importlib.util.spec_from_loader("bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    monkeypatch.setattr(loading, "BitsAndBytesConfig", lambda **given: given)
    with pytest.warns(UserWarning, match="without device_map"):
        eight = loading.modernise({"load_in_8bit": True})
    assert eight["quantization_config"] == {"load_in_8bit": True}
    assert eight["device_map"] == {"": loading.current_device()}
    four = loading.modernise({"load_in_4bit": True, "load_in_8bit": False, "device_map": "auto"})
    assert four == {"quantization_config": {"load_in_4bit": True}, "device_map": "auto"}
    with pytest.raises(ValueError, match="not both"):
        loading.modernise({"load_in_8bit": True, "load_in_4bit": True})
    with pytest.raises(ValueError, match="load_in_8bit or quantization_config"):
        loading.modernise({"load_in_8bit": True, "quantization_config": {}})


def test_encoder_decoder(tmp_path: Path) -> None:
    plain = t5()
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(plain).eval()
    assert model.is_encoder_decoder
    logits, loss, values = model(IDS, decoder_input_ids=IDS[:, :4], labels=IDS[:, :4].clone())
    output = plain(
        input_ids=IDS,
        decoder_input_ids=IDS[:, :4],
        labels=IDS[:, :4].clone(),
        output_hidden_states=True,
    )
    assert torch.equal(logits, output.logits)
    assert torch.equal(loss, output.loss)
    head = model.v_head.summary
    want = output.decoder_hidden_states[-1] @ head.weight[0] + head.bias
    torch.testing.assert_close(values, want)
    given = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(IDS, **given), plain.generate(IDS, **given))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tmp_path)
    assert torch.equal(loaded.v_head.summary.weight, head.weight)


def test_the_wrapped_models_methods(tiny: Any) -> None:
    model = Causal.from_pretrained(tiny("llama"))
    assert isinstance(model, PreTrainedModelWrapper)
    copied = copy.deepcopy(model)
    copied.gradient_checkpointing_enable()
    assert copied.pretrained_model.is_gradient_checkpointing
    assert not model.pretrained_model.is_gradient_checkpointing
    copied.gradient_checkpointing_disable()
    assert not copied.pretrained_model.is_gradient_checkpointing
    model.enable_input_require_grads()
    assert model.pretrained_model.get_input_embeddings()(IDS).requires_grad
    assert model.prepare_inputs_for_generation.__self__ is model.pretrained_model
    given = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(IDS, **given), model.pretrained_model.generate(IDS, **given))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_scored_values_are_those_of_a_plain_call(
    family: str, adapted: bool, tiny: Any, rows: Tokens, score: Any, grads: Any
) -> None:
    targets = ["query_key_value"] if family == "bloom" else ["q_proj"]
    config = lora(target_modules=targets) if adapted else None
    model = Causal.from_pretrained(tiny(family), peft_config=config).double().eval()
    right = Tokens(rows.ids, [0] * 4, rows.lengths, rows.scored)
    logits, _, values = model(right.ids, attention_mask=right.attention_mask)
    plain = logits[:, :-1].log_softmax(-1).gather(-1, right.ids[:, 1:, None])[..., 0]
    got = score(model, right)
    torch.testing.assert_close(got.logp, plain * got.mask, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got.values, values[:, :-1] * got.mask, rtol=1e-6, atol=1e-9)
    ((plain + values[:, :-1] ** 2) * got.mask).sum().backward()
    theirs = grads(model)
    (got.logp + got.values**2).sum().backward()
    for name, gradient in grads(model).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-8)


def test_values_of_a_bf16_model_are_fp32(tiny: Any, rows: Tokens) -> None:
    model = Causal.from_pretrained(tiny("llama", torch.bfloat16))
    assert logprobs(model, rows).values.dtype == torch.float32
    assert logprobs(model.to(torch.bfloat16), rows).values.dtype == torch.float32


def test_published_files_are_the_saved_ones(tiny: Any, monkeypatch: Any) -> None:
    model = Causal.from_pretrained(tiny("llama"), peft_config=lora())
    hub = sys.modules[type(model).push_to_hub.__module__]
    api = types.SimpleNamespace(create_repo=lambda name, **_: types.SimpleNamespace(repo_id=name))
    monkeypatch.setattr(hub, "hf_api", lambda: api, raising=False)
    monkeypatch.setattr(hub, "create_repo", api.create_repo, raising=False)
    card = types.SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: card)
    uploaded = {}

    def upload(self: Any, folder: str, repository: str, *_: Any, **__: Any) -> None:
        uploaded[repository] = {file.name for file in Path(folder).iterdir()}

    monkeypatch.setattr(type(model), "_upload_modified_files", upload, raising=False)
    model.push_to_hub("me/it")
    assert {"adapter_model.safetensors", "pytorch_model.bin"} <= uploaded["me/it"]
