"""Reference models: frozen, independent where copied, one storage where shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrl import AutoModelForCausalLMWithValueHead, create_reference_model
from fastrl.models import reference
from fastrl.models.policy import logprobs
from fastrl.types import Tokens

LAYERS = {"gpt2": "transformer.h.1.", "llama": "model.layers.1.", "neox": "gpt_neox.layers.1."}
LAYERS |= {"opt": "model.decoder.layers.1.", "bloom": "transformer.h.1."}


def pointers(model: Any) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


def train(model: Any, rows: Tokens) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    scores = logprobs(model, rows)
    (scores.logp.sum() + scores.values.sum()).backward()
    optimizer.step()


def test_a_full_copy_is_frozen_and_independent(tiny: Any, rows: Tokens) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny("gpt2", torch.float32)).train()
    frozen = create_reference_model(model)
    assert not frozen.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not set(pointers(model).values()) & set(pointers(frozen).values())
    before = logprobs(frozen, rows).logp
    train(model.eval(), rows)
    assert torch.equal(logprobs(frozen, rows).logp, before)
    assert (logprobs(model, rows).logp - before).abs().max() > 1e-3


@pytest.mark.parametrize("family", list(LAYERS))
def test_shared_layers_are_one_storage(family: str, tiny: Any, rows: Tokens, score: Any) -> None:
    plain = tiny(family, torch.float32)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(plain).eval()
    score(model, rows)  # prepared models are copied too
    frozen = create_reference_model(model, num_shared_layers=1)
    ours, theirs = pointers(model), pointers(frozen)
    names = list(ours)
    first = next(i for i, name in enumerate(names) if LAYERS[family] in name)
    assert 2 < first < len(names) - 3
    for index, name in enumerate(names):
        assert (ours[name] == theirs[name]) == (index < first), name
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(names[first:])
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    before = score(frozen, rows).logp
    train(model, rows)
    assert torch.equal(score(frozen, rows).logp, before)
    assert (score(model, rows).logp - before).abs().max() > 1e-3
    assert frozen.pretrained_model.forward.__self__ is frozen.pretrained_model


def test_own_patterns_and_those_that_fit_nothing(tiny: Any) -> None:
    model = tiny("llama")
    frozen = create_reference_model(model, 1, pattern="layers.{layer}.mlp")
    shared = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert "model.layers.1.self_attn.q_proj.weight" in shared
    assert "model.layers.1.mlp.gate_proj.weight" not in shared
    assert frozen.get_input_embeddings().weight is model.get_input_embeddings().weight
    untouched = tiny("llama")
    with pytest.raises(ValueError, match="could not be matched"):
        create_reference_model(untouched, num_shared_layers=2)  # it has layers 0 and 1
    with pytest.raises(ValueError, match="pattern 'blocks"):
        create_reference_model(untouched, 1, pattern="blocks.{layer}")
    with pytest.raises(ValueError, match=r"must hold '\{layer\}'"):
        create_reference_model(untouched, 1, pattern="model.layers.1")
    for layers in (-1, 1.0, "1", True):
        with pytest.raises(ValueError, match=r"num_shared_layers=.*: a whole number"):
            create_reference_model(untouched, layers)
    assert all(parameter.requires_grad for parameter in untouched.parameters())
    with pytest.raises(ValueError, match="model must be a torch module, got NoneType"):
        create_reference_model(None)


def test_layer_1_is_not_layer_10(tiny: Any) -> None:
    model = tiny("llama", num_hidden_layers=11)
    names = [f"model.layers.{layer}.w" for layer in (0, 10, 1)]
    assert reference._first_unshared(names, 1, None) == 2
    create_reference_model(model, num_shared_layers=10)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained[0].startswith("model.layers.10.")


def test_layers_are_not_shared_under_zero_3(tiny: Any) -> None:
    model = tiny("llama")
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number
    with pytest.raises(ValueError, match="ZeRO-3"):
        create_reference_model(model, num_shared_layers=1)
