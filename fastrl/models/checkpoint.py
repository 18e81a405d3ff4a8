"""Value-head weights in checkpoints: `v_head.*` beside the base model's keys, as TRL writes them.

A checkpoint is a folder or a hub name holding one of `FILES`. Only tensors of the value head are
read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import safe_open
from torch import nn

PREFIX = "v_head."
BIN = "pytorch_model.bin"
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    BIN,
    f"{BIN}.index.json",
)
_HUB_ARGUMENTS = (
    "token",
    "revision",
    "cache_dir",
    "force_download",
    "local_files_only",
    "subfolder",
)


def hub_arguments(keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s keywords that say where on the hub to look."""
    return {name: keywords[name] for name in _HUB_ARGUMENTS if keywords.get(name) is not None}


def locate(source: str, filename: str, hub: dict[str, Any]) -> Path | None:
    """The file in a folder, or of a hub repository (fetched); None if there is no such file."""
    if Path(source).is_dir():
        path = Path(source, hub.get("subfolder", ""), filename)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, filename, **hub))
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError, OfflineModeIsEnabled):
        return None


def _select(path: Path) -> dict[str, torch.Tensor]:
    """The value head's tensors in one weights file, on the CPU."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            wanted = [name for name in file.keys() if PREFIX in name]  # noqa: SIM118 no dict
            return {name: file.get_tensor(name) for name in wanted}
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {name: tensor for name, tensor in state.items() if PREFIX in name}


def _read(source: str, filename: str, hub: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The value head's tensors behind one of `FILES`; only shards that hold some are fetched."""
    path = locate(source, filename, hub)
    if path is None:
        return {}
    if path.suffix != ".json":
        return _select(path)
    shards = json.loads(path.read_text())["weight_map"]
    found = {}
    for shard in sorted({shard for name, shard in shards.items() if PREFIX in name}):
        shard_path = locate(source, shard, hub)
        if shard_path is None:
            raise FileNotFoundError(f"{source}: {filename} names {shard}, which is not there")
        found.update(_select(shard_path))
    return found


def stripped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The value head's tensors under its own names (`summary.weight`)."""
    return {name.rpartition(PREFIX)[2]: tensor for name, tensor in state.items() if PREFIX in name}


def load_value_head(source: str, hub: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The value head's state in a checkpoint; empty if it has none.

    Args:
        source: a folder or a hub name.
        hub: as `hub_arguments` gives it.
    """
    for filename in FILES:
        found = _read(source, filename, hub)
        if found:
            return stripped(found)
    return {}


def value_head_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a value head grafted onto a model object; empty if it has none."""
    if not any(PREFIX in name for name, _ in model.named_parameters()):
        return {}
    return stripped(model.state_dict())
