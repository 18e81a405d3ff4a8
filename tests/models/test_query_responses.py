"""Padded passes over prompts with responses, against each row alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from fastrl.models import noise
from fastrl.models.adapters import peft_module_casting_to_bf16, use_adapter
from fastrl.models.dropout import disable_dropout_in_model
from fastrl.models.query_responses import forward, get_reward
from fastrl.models.recomputing import (
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
)

PAD = 0
ROWS = torch.tensor([[0, 0, 5, 6, 7, 8, 0], [3, 4, 5, 9, 0, 0, 0], [3, 4, 5, 6, 7, 8, 9]])
SIZES = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}


def gpt2(kind="LMHeadModel", **more):
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SIZES, pad_token_id=PAD, **more)
    return getattr(transformers, f"GPT2{kind}")(config).eval()


def test_forward_counts_positions_from_the_first_token():
    model = gpt2()
    with torch.no_grad():
        logits = forward(model, ROWS, PAD).logits
        for row, found in zip(ROWS, logits, strict=True):
            there = row != PAD
            torch.testing.assert_close(found[there], model(row[there][None]).logits[0])


def test_rewards_are_those_of_the_token_before_the_padding():
    model = gpt2("ForSequenceClassification", num_labels=1)
    nn.init.normal_(model.score.weight)
    with torch.no_grad():
        scores, rewards, columns = get_reward(model, ROWS, PAD, context_length=3)
        assert columns.tolist() == [5, 3, 6]
        for row, reward, column in zip(ROWS, rewards, columns, strict=True):
            tokens = row[: column + 1]
            alone = model.score(model.transformer(tokens[tokens != PAD][None]).last_hidden_state)
            torch.testing.assert_close(reward, alone[0, -1, 0])
    assert torch.equal(scores[torch.arange(3), columns, 0], rewards)


def test_dropout_is_off_everywhere():
    model = gpt2().train()
    disable_dropout_in_model(model)
    assert torch.equal(model(ROWS).logits, model(ROWS).logits)


def test_neftune_post_forward_hook_is_bounded_and_for_training_only():
    embeddings = nn.Embedding(8, 4)
    embeddings.neftune_noise_alpha = 6.0
    handle = embeddings.register_forward_hook(noise.neftune_post_forward_hook)
    ids = torch.zeros(50, 9, dtype=torch.int64)
    plain = embeddings.eval()(ids)
    spread = (embeddings.train()(ids) - plain).abs()
    # alpha / sqrt(9 * 4) = 1
    assert 0.98 < spread.max() <= 1
    assert abs(spread.mean() - 0.5) < 0.02
    assert not torch.equal(plain, spread)
    handle.remove()


@pytest.fixture
def adapted():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
    model = get_peft_model(gpt2(), lora)
    model.add_adapter("other", lora)
    return model


def test_use_adapter_and_back(adapted):
    def answer():
        with torch.no_grad():
            return adapted(ROWS).logits

    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    own = answer()
    with use_adapter(adapted, "other"):
        assert adapted.active_adapter == "other"
        other = answer()
    with use_adapter(adapted, None):
        none = answer()
    torch.testing.assert_close(none, gpt2()(ROWS).logits)
    assert not torch.allclose(own, other) and not torch.allclose(own, none)
    assert torch.equal(answer(), own) and adapted.active_adapter == "default"
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == trained
    unknown = use_adapter(adapted, "third")
    with pytest.raises(ValueError, match="adapter_name='third' names no adapter"):
        unknown.__enter__()


def test_peft_module_casting_to_bf16(adapted):
    peft_module_casting_to_bf16(adapted)
    kinds = {name: p.dtype for name, p in adapted.named_parameters()}
    for name, kind in kinds.items():
        half = "lora_" in name or "wte" in name or "wpe" in name or "c_attn" in name
        assert kind == (torch.bfloat16 if half else torch.float32), name


def test_casting_of_a_half_precision_model_leaves_its_embeddings(adapted):
    peft_module_casting_to_bf16(adapted.half())
    for name, p in adapted.named_parameters():
        norm = ".ln_" in name
        kind = torch.float32 if norm else torch.bfloat16 if "c_attn" in name else torch.float16
        assert p.dtype == kind, name


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_off_for_a_while(reentrant):
    model = gpt2().train()
    asked = {"use_reentrant": reentrant}

    def on():
        return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    with disable_gradient_checkpointing(model):
        assert not on()
    assert not on()
    assert enable_gradient_checkpointing(model, asked) is model
    with disable_gradient_checkpointing(model, asked):
        assert not on()
    assert on()
    if reentrant:  # which recomputes nothing for inputs that require no gradient
        model.requires_grad_(False)
        assert model.get_input_embeddings()(ROWS).requires_grad
