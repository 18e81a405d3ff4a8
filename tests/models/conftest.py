"""Tiny models of many families, ragged rows, and the plainest way to score them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fastrl.models.policy import logprobs, prepare_policy
from fastrl.types import LogProbs, Tokens

VOCABULARY = 97
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 8}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT),
    "gpt2-layer-scale": ("GPT2Config", {**_GPT, "scale_attn_by_inverse_layer_idx": True}),
    "llama": ("LlamaConfig", _GROUPED),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", _HEADS),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 5}),
    "gemma3": ("Gemma3TextConfig", {**_HEADS, "sliding_window": 5}),
    "cohere": ("CohereConfig", _GROUPED),
    "granite": ("GraniteConfig", {**_GROUPED, "logits_scaling": 3.0}),
    "neox": ("GPTNeoXConfig", _SIZES),
    "opt": (
        "OPTConfig",
        {**_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16, "pad_token_id": 1},
    ),
    "gemma2": ("Gemma2Config", {**_HEADS, "sliding_window": 5}),
    "bloom": ("BloomConfig", {**_GPT, "hidden_size": 32}),
    "falcon-alibi": ("FalconConfig", {**_SIZES, "alibi": True, "multi_query": False}),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            **_SIZES,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 5,
        },
    ),
    "mixtral": (
        "MixtralConfig",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            **_GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "mamba": ("MambaConfig", {**_SIZES, "state_size": 4}),
}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    yield


def _built(auto: Any, family: str, dtype: torch.dtype, config: dict[str, Any]) -> Any:
    name, arguments = FAMILIES[family]
    made = getattr(transformers, name)(**{**arguments, **config})
    torch.manual_seed(0)
    model = auto.from_config(made)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """tiny(family, dtype=fp64, **config): a model with weights large enough to tell rows apart."""

    def build(family: str, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
        return _built(AutoModelForCausalLM, family, dtype, config)

    return build


@pytest.fixture
def judge() -> Callable[..., Any]:
    """judge(family, dtype=fp64, **config): the same as a reward model, whose padding is token 0."""

    def build(family: str, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
        config = {"num_labels": 1, "pad_token_id": 0, **config}
        return _built(AutoModelForSequenceClassification, family, dtype, config)

    return build


@pytest.fixture
def rows() -> Tokens:
    """Four rows with padding before and after; the last is scored in full."""
    ids = torch.randint(3, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(1))
    return Tokens(ids, [0, 3, 6, 1], [24, 17, 9, 20], [5, 16, 8, 1])


@dataclass
class Truth:
    """Scores of each row by itself in a fresh copy of the model that never met fastrl."""

    logp: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor


@pytest.fixture
def separately() -> Callable[..., Truth]:
    """separately(model, tokens, temperature=1): one plain call per row."""

    def score(model: Any, tokens: Tokens, temperature: float = 1.0) -> Truth:
        shape = (tokens.ids.shape[0], tokens.ids.shape[1] - 1)
        logps, entropies = [], []
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, (start, length) in enumerate(zip(tokens.starts, tokens.lengths, strict=True)):
            ids = tokens.ids[row : row + 1, start : start + length]
            table = (model(input_ids=ids).logits[0, :-1] / temperature).log_softmax(-1)
            first = tokens.scored[row] - 1
            sides = (start + first, shape[1] - (start + length - 1))
            taken = table.gather(1, ids[0, 1:, None])[first:, 0]
            entropy = -(table.exp() * table).sum(-1)[first:]
            logps.append(nn.functional.pad(taken, sides))
            entropies.append(nn.functional.pad(entropy, sides))
            mask[row, start + first : start + length - 1] = True
        return Truth(torch.stack(logps), torch.stack(entropies), mask)

    return score


@pytest.fixture
def twin() -> Callable[[Any], Any]:
    """twin(model): the same weights in a model that never met fastrl; call before preparing."""
    return copy.deepcopy


@pytest.fixture
def score() -> Callable[..., LogProbs]:
    """logprobs without the warnings a padded model gives."""

    def quiet(model: Any, tokens: Tokens, temperature: float = 1.0) -> LogProbs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepare_policy(model)
        return logprobs(model, tokens, temperature)

    return quiet


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradient of every trained parameter that has one; clears them."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.fixture
def grads() -> Callable[[nn.Module], dict[str, torch.Tensor]]:
    """grads(model): what `backward` left, by parameter name."""
    return gradients


@pytest.fixture
def embedded() -> Callable[[nn.Module], list[torch.Tensor]]:
    """embedded(model): a list; each forward adds its input embeddings, leaves of the graph."""

    def watch(model: nn.Module) -> list[torch.Tensor]:
        leaves: list[torch.Tensor] = []

        def cut(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[-1]

        model.get_input_embeddings().register_forward_hook(cut)
        return leaves

    return watch
