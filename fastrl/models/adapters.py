"""PEFT: loading a base model with its adapters, and a second adapter that scores answers."""

from __future__ import annotations

import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from fastrl.models import checkpoint

CONFIG = "adapter_config.json"
_AT_THE_ENDS = re.compile("lm_head|embed_tokens|wte|wpe")  # names of embeddings and head
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def available() -> bool:
    """Whether the package `peft` is installed."""
    return importlib.util.find_spec("peft") is not None


def is_peft(model: Any) -> bool:
    """Whether a model is wrapped by PEFT (without importing it when it is not used)."""
    if not isinstance(model, nn.Module) or not hasattr(model, "peft_config"):
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def check_config(peft_config: Any) -> None:
    """Refuse what is no PEFT configuration.

    Raises:
        ImportError: if `peft` is not installed.
        ValueError: for an object of another kind.
    """
    if peft_config is None:
        return
    if not available():
        raise ImportError("peft_config: needs the package `peft`")
    from peft import PeftConfig

    if not isinstance(peft_config, PeftConfig):
        raise ValueError(f"peft_config must be a peft.PeftConfig, got {type(peft_config).__name__}")


def split_kbit(keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keywords for `prepare_model_for_kbit_training`, the others)."""
    if not available():
        return {}, keywords
    from peft import prepare_model_for_kbit_training

    names = set(inspect.signature(prepare_model_for_kbit_training).parameters) - {"model"}
    kbit = {name: given for name, given in keywords.items() if name in names}
    return kbit, {name: given for name, given in keywords.items() if name not in names}


def add(model: PreTrainedModel, peft_config: Any, kbit: dict[str, Any]) -> nn.Module:
    """The model with a fresh adapter; a quantized one is prepared for training first."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, **kbit)
    return get_peft_model(model, peft_config)


def load(
    parent: Any, source: str, args: tuple[Any, ...], keywords: dict[str, Any], is_trainable: bool
) -> nn.Module | None:
    """Base model and trained adapter from a folder or hub name; None if it holds no adapter."""
    hub = checkpoint.hub_arguments(keywords)
    if not available() or checkpoint.locate(source, CONFIG, hub) is None:
        return None
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(source, **hub)
    # The adapter's own place on the hub says nothing of where its base model lies.
    elsewhere = {name: keywords[name] for name in keywords if name not in ("revision", "subfolder")}
    base = parent.from_pretrained(config.base_model_name_or_path, *args, **elsewhere)
    return PeftModel.from_pretrained(base, source, is_trainable=is_trainable, **hub)


def refuse_soft_prompts(model: nn.Module) -> None:
    """Refuse adapters that put virtual tokens before the prompt.

    Raises:
        ValueError: naming the adapter's kind.
    """
    active = getattr(model, "active_peft_config", None)
    if active is not None and active.is_prompt_learning:
        raise ValueError(
            f"peft_config: {type(active).__name__} puts virtual tokens before each prompt, which "
            "PPO with a value head cannot score; use an adapter such as LoRA"
        )


def add_reward_adapter(
    model: Any, source: str, name: str, keywords: dict[str, Any], heads: tuple[str, ...]
) -> nn.Linear:
    """Load a reward model's adapter beside the policy's, and its scoring head.

    Args:
        model: a PEFT model.
        source: folder or hub name of the adapter.
        name: what the adapter is called from then on.
        keywords: of `from_pretrained`, for the hub.
        heads: parts of a parameter's name that mark the scoring head.

    Returns:
        the frozen head, (D) -> (labels).

    Raises:
        ValueError: if the adapter is not found or holds no scoring head.
    """
    from peft import load_peft_weights

    hub = checkpoint.hub_arguments(keywords)
    if checkpoint.locate(source, CONFIG, hub) is None:
        raise ValueError(f"reward_adapter: found no adapter in {source!r}")
    state = load_peft_weights(source, device="cpu", **hub)
    parts = {
        key.rpartition(".")[2]: tensor
        for key, tensor in state.items()
        if any(head in key.split(".") for head in heads)
    }
    if "weight" not in parts:
        raise ValueError(
            f"reward_adapter: the adapter in {source!r} holds no scoring head ({', '.join(heads)})"
            "; train it as a sequence classifier with the head in modules_to_save"
        )
    with warnings.catch_warnings():
        # PEFT reports the scoring head as unexpected in a causal model; it is used just below.
        warnings.filterwarnings("ignore", message=".*unexpected keys.*")
        model.load_adapter(source, name, is_trainable=False, **hub)
    labels, width = parts["weight"].shape
    first = next(model.parameters())
    score = nn.Linear(width, labels, bias="bias" in parts, device=first.device)
    score.load_state_dict(parts)
    return score.to(first.dtype).requires_grad_(False)


def peft_module_casting_to_bf16(model: nn.Module) -> None:
    """Cast a quantised model's adapters and fp32 embeddings and head to bf16, its norms to fp32.

    That is how QLoRA trains (arXiv 2305.14314, section 3).

    Args:
        model: a PEFT model; changed in place.
    """
    for name, module in model.named_modules():
        wanted = _beside_quantised(name, module)
        if wanted is not None:
            module.to(wanted)


def _beside_quantised(name: str, module: nn.Module) -> torch.dtype | None:
    """The dtype of a module of a quantised model, by its kind or else its name; None: as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapter = isinstance(module, BaseTunerLayer)
    if not adapter and ("norm" in name or isinstance(module, nn.LayerNorm)):
        return torch.float32
    weight = getattr(module, "weight", None)
    halved = weight is not None and weight.dtype == torch.float32 and _AT_THE_ENDS.search(name)
    return torch.bfloat16 if adapter or halved else None


@contextmanager
def use_adapter(model: Any, adapter_name: str | None) -> Iterator[None]:
    """Inside, another of a PEFT model's adapters is active, or none at all for None.

    Afterwards the one that was active is again, and what was trained is.

    Args:
        model: a PEFT model.
        adapter_name: one of `model.peft_config`.

    Raises:
        ValueError: it has no such adapter.
    """
    if adapter_name is None:
        with model.disable_adapter():
            yield
        return
    if adapter_name not in model.peft_config:
        raise ValueError(
            f"adapter_name={adapter_name!r} names no adapter of the model, which has "
            f"{list(model.peft_config)}"
        )
    active = model.active_adapter
    trained = {p: p.requires_grad for p in model.parameters()}
    model.set_adapter(adapter_name)
    try:
        yield
    finally:
        model.set_adapter(active)
        for parameter, wanted in trained.items():  # PEFT lets what it activates be trained
            parameter.requires_grad_(wanted)


def keep_score(folder: Path, score: nn.Linear) -> None:
    """Add the scoring head to a reward adapter that was saved without it, if it was saved there."""
    key = "base_model.model.score."
    head = {key + name: tensor.cpu().contiguous() for name, tensor in score.state_dict().items()}
    safe, plain = (folder / name for name in _WEIGHTS)
    if safe.exists():
        save_file(load_file(safe) | head, safe, metadata={"format": "pt"})
    elif plain.exists():
        torch.save(torch.load(plain, weights_only=True) | head, plain)
