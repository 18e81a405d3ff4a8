"""What the handshake lets through, and what it must not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from fastrl.models import attention, door, trial
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.types import Tokens


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bloom", "does not declare support"),
        ("falcon-alibi", "does not declare support"),
        ("gemma2", "softcap"),
        ("mamba", "does not declare support"),
    ],
)
def test_padded_models_say_why_once(family: str, reason: str, tiny: Any) -> None:
    model = tiny(family, torch.float32)
    with pytest.warns(UserWarning, match=f"is scored with padding: .*{reason}"):
        prepare_policy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_policy(model)
    assert not attention.enabled(model.config)


@pytest.mark.parametrize("family", ["falcon-alibi", "gpt-neo", "bloom"])
def test_a_class_that_only_claims_support_is_found_out(
    family: str, tiny: Any, rows: Tokens, separately: Any, twin: Any, monkeypatch: Any
) -> None:
    model = tiny(family, torch.float32)
    truth = separately(twin(model), rows)
    monkeypatch.setattr(type(model), "_supports_attention_backend", True)
    with pytest.warns(UserWarning, match="is scored with padding"):
        assert not prepare_policy(model).packed
    torch.testing.assert_close(logprobs(model, rows).logp, truth.logp, rtol=1e-4, atol=1e-4)


def test_layers_that_do_not_call_the_registered_attention(tiny: Any, monkeypatch: Any) -> None:
    model = tiny("llama")
    enable = attention.enable

    def elsewhere(config: Any) -> None:  # as a model does that has its own table of functions
        enable(config)
        for layer in model.model.layers:
            layer.self_attn.config = type(config)(**config.to_dict())
            layer.self_attn.config._attn_implementation = "sdpa"

    monkeypatch.setattr(attention, "enable", elsewhere)
    with pytest.warns(UserWarning, match="do not call the registered attention"):
        assert not prepare_policy(model).packed


def _broken(change: Any) -> Any:
    original = attention.attend_segments

    def attend(query: Any, key: Any, value: Any, segments: Any, *args: Any) -> torch.Tensor:
        return change(original, query, key, value, segments, *args)

    return attend


def test_rows_that_mix_are_found_out(tiny: Any, monkeypatch: Any) -> None:
    def join(original: Any, q: Any, k: Any, v: Any, segments: Any, *args: Any) -> torch.Tensor:
        return original(q, k, v, attention.Segments.of_lengths([q.shape[2]]), *args)

    monkeypatch.setattr(attention, "attend_segments", _broken(join))
    with pytest.warns(UserWarning, match="differ by"):
        assert not prepare_policy(tiny("llama")).packed


def test_a_gradient_that_crosses_rows_is_found_out(tiny: Any, monkeypatch: Any) -> None:
    def leak(original: Any, q: Any, k: Any, v: Any, segments: Any, *args: Any) -> torch.Tensor:
        out = original(q, k, v, segments, *args)
        return out + (v - v.detach()).sum()  # the right values, but not the right gradient

    monkeypatch.setattr(attention, "attend_segments", _broken(leak))
    with pytest.warns(UserWarning, match="a gradient crosses"):
        assert not prepare_policy(tiny("llama")).packed


def test_a_window_that_does_not_arrive_is_found_out(tiny: Any, monkeypatch: Any) -> None:
    model = tiny("mistral")
    model.model.layers[1].self_attn.config.sliding_window = None
    model.config.sliding_window = 5
    dispatch = attention._packed_call

    def forget(*args: Any, **keywords: Any) -> Any:
        return dispatch(*args, **{**keywords, "sliding_window": None})

    monkeypatch.setattr(attention, "_packed_call", forget)
    with pytest.warns(UserWarning, match="sliding window does not reach"):
        assert not prepare_policy(model).packed


def test_unknown_layer_kinds_are_not_packed(tiny: Any) -> None:
    model = tiny("qwen2")
    model.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(attention.PackingRefused, match="chunked_attention"):
        trial.sliding_layers(model.config)


def test_a_head_that_is_not_what_the_config_says(
    tiny: Any, rows: Tokens, separately: Any, twin: Any
) -> None:
    model = tiny("llama")
    model.config.logits_scaling = 2.0  # Llama does not divide its logits
    truth = separately(twin(model), rows)
    with pytest.warns(UserWarning, match="from whole logits: log-probabilities differ"):
        plan = prepare_policy(model)
    assert plan.packed
    assert plan.head is None
    torch.testing.assert_close(logprobs(model, rows).logp, truth.logp)


def test_partitioned_parameters_are_not_touched(tiny: Any) -> None:
    model = tiny("llama")
    called = []
    model.model.register_forward_hook(lambda *_: called.append(1))
    model.model.norm.weight.ds_id = 3  # DeepSpeed marks its parameters so
    assert prepare_policy(model).packed  # a twin was asked
    assert not called


def test_a_proof_outlives_partitioning(tiny: Any) -> None:
    model = tiny("llama")
    assert prepare_policy(model).packed
    model.lm_head.weight.ds_id = 3
    assert prepare_policy(model).packed
    assert door.head_matrix(model.lm_head) is None


def test_handshake_runs_inside_no_grad_and_inference(tiny: Any, rows: Tokens) -> None:
    model = tiny("gpt2")
    with torch.no_grad():
        assert prepare_policy(model).packed
    other = tiny("gpt2")
    with torch.inference_mode():
        want = logprobs(model, rows).logp
        assert torch.equal(logprobs(other, rows).logp, want)
    assert prepare_policy(other).packed
    assert logprobs(other, rows).logp.requires_grad
