"""A small model stands in for one that no process can run by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrl.models import handshake, prepare_policy, trial, twin


def spread(model: Any) -> Any:
    """As ZeRO-3 leaves a model: no process has its weights."""
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number
        parameter.data = torch.empty(0, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3", "granite", "neox", "opt"])
def test_a_spread_model_has_the_plan_of_a_whole_one(tiny: Any, kind: str) -> None:
    want = prepare_policy(tiny(kind))
    assert want.packed and want.head is not None
    assert prepare_policy(spread(tiny(kind))) == want


def test_a_twin_is_small_has_all_kinds_of_layers_and_leaves_the_generators(tiny: Any) -> None:
    model = tiny("llama", num_hidden_layers=4, vocab_size=300)
    model.config.layer_types = ["full_attention"] * 3 + ["sliding_attention"]
    before = torch.random.get_rng_state()
    made = twin.of(model.to(torch.bfloat16))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert made.config.num_hidden_layers == 4 and made.config.vocab_size == 256
    assert trial.key(made) == trial.key(model)
    assert model.config.vocab_size == 300


def test_a_class_that_mixes_rows_is_not_trusted_spread(tiny: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(handshake.trial, "require_windows", _refuse)
    plan = prepare_policy(spread(tiny("llama")))
    assert not plan.packed and plan.head is not None


def _refuse(*_: Any) -> None:
    raise trial.PackingRefused("its layers do not call the registered attention function")


def test_what_fits_no_smaller_config_is_padded(tiny: Any, monkeypatch: Any) -> None:
    model = spread(tiny("llama"))
    monkeypatch.setattr(twin, "_shrink", lambda config: setattr(config, "num_attention_heads", 0))
    plan = prepare_policy(model)
    assert not plan.packed and "neither can a smaller one" in (plan.reason or "")
