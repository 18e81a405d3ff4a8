"""A policy's weights as vLLM's loader wants them: whole, merged, under the checkpoint's names.

They come block by block (a decoder layer, or a module outside of all), so that no more than one
block is gathered at once. Gathering is collective: every rank walks all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from fastrl.models import adapters, door
from fastrl.rollout import vllm_adapters

Named = list[tuple[str, torch.Tensor]]
BUCKET_BYTES = 512 * 2**20
_WRAPPERS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})
_WORD = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}  # bytes -> integers


def check(model: nn.Module) -> None:
    """Refuse a policy whose weights vLLM could not be given.

    Raises:
        ValueError: naming what stands in the way.
    """
    instance, soft_prompt = door.find(model)
    if soft_prompt:
        raise ValueError("peft_config: use_vllm puts no virtual tokens before a prompt; use LoRA")
    if getattr(instance, "hf_quantizer", None) is not None:
        raise ValueError(
            "use_vllm: the policy's weights are quantized, which vLLM's loader does not take; "
            "load them in bfloat16"
        )
    for path, module in instance.named_modules():
        vllm_adapters.check_adapted(path, module)
    ends = (instance.get_input_embeddings(), instance.get_output_embeddings())
    if instance.config.get_text_config().tie_word_embeddings and any(
        vllm_adapters.is_adapted(end) or vllm_adapters.is_saved_copy(end) for end in ends
    ):
        raise ValueError(
            "peft_config: the embeddings are tied to the head, and an adapter on one of them "
            "parts the two, which vLLM cannot; leave both out of target_modules and "
            "modules_to_save, or load the model with tie_word_embeddings=False"
        )


def buckets(model: nn.Module, device: torch.device, size: int = BUCKET_BYTES) -> Iterator[Named]:
    """Blocks put together up to `size` bytes; a larger block is a bucket of its own."""
    held: Named = []
    bytes_held = 0
    for block in blocks(model, device):
        more = sum(tensor.numel() * tensor.element_size() for _, tensor in block)
        if held and bytes_held + more > size:
            yield held
            held, bytes_held = [], 0
        held += block
        bytes_held += more
    if held:
        yield held


def blocks(model: nn.Module, device: torch.device) -> Iterator[Named]:
    """The weights of each block, by name. They are valid until the model changes."""
    instance, _ = door.find(model)
    tied = _tied(instance)
    for block in _blocks(instance, "", _unit_around(model, instance)):
        with torch.no_grad():
            named = {n: t for n, t in block.weights(device) if n not in tied}
            found = list(revert_weight_conversion(instance, named).items())
        if found:
            yield found


def _tied(instance: PreTrainedModel) -> frozenset[str]:
    """Names of parameters that are others over again, which a checkpoint leaves out."""
    ties: Any = getattr(instance, "all_tied_weights_keys", None) or {}
    return frozenset(ties)


def _unit_around(model: nn.Module, instance: nn.Module) -> nn.Module | None:
    """The innermost FSDP unit that holds the instance."""
    around = None
    for module in model.modules():
        if module is instance:
            break
        if isinstance(module, FullyShardedDataParallel):
            around = module
    return around


@dataclass(frozen=True)
class _Block:
    """Parameters that are gathered together."""

    path: str
    module: nn.Module
    whole: bool  # with all that is below the module, or its own parameters only
    unit: nn.Module | None  # FSDP's flat parameter that may hold them

    def weights(self, device: torch.device) -> Named:
        """All of them, here; views of the model's own where these are whole."""
        parameters = list(self.module.parameters(recurse=self.whole))
        partitioned = [p for p in parameters if hasattr(p, "ds_id")]
        with ExitStack() as stack:
            if partitioned:
                deepspeed = importlib.import_module("deepspeed")
                stack.enter_context(deepspeed.zero.GatheredParameters(partitioned))
            summon = FullyShardedDataParallel.summon_full_params
            if self.unit is not None:
                stack.enter_context(summon(self.unit, recurse=False, writeback=False))
            if self._holds_units():
                stack.enter_context(summon(self.module, recurse=True, writeback=False))
            passing = bool(partitioned) or self.unit is not None or self._holds_units()
            return list(_collected(self.module, self.path, self.whole, _Whole(device, passing)))

    def _holds_units(self) -> bool:
        return self.whole and bool(FullyShardedDataParallel.fsdp_modules(self.module))


@dataclass(frozen=True)
class _Whole:
    """Gives all of a parameter, as a tensor that outlives the gathering."""

    device: torch.device
    passing: bool  # what was gathered is given back at once

    def __call__(self, parameter: torch.Tensor) -> torch.Tensor:
        tensor = parameter.detach()
        if isinstance(tensor, DTensor):
            on_host = tensor.device.type == "cpu" and self.device.type != "cpu"
            here: Any = tensor.to(self.device) if on_host else tensor
            return here.full_tensor()
        return tensor.clone() if self.passing else tensor


def _joined(path: str, name: str) -> str:
    """The path of a child; wrappers that FSDP, checkpointing and compiling add have no name."""
    if name in _WRAPPERS:
        return path
    return f"{path}.{name}" if path else name


def _blocks(module: nn.Module, path: str, unit: nn.Module | None) -> Iterator[_Block]:
    """The blocks below a module, in its order."""
    if isinstance(module, FullyShardedDataParallel):
        unit = module
    numbered = path.rpartition(".")[2].isdigit()
    if numbered or vllm_adapters.is_adapted(module) or vllm_adapters.is_saved_copy(module):
        yield _Block(path, module, True, None if unit is module else unit)
        return
    # FSDP hides the parameters it holds.
    if module._parameters or module._buffers or unit is not None:
        yield _Block(path, module, False, unit)
    for name, child in module.named_children():
        yield from _blocks(child, _joined(path, name), unit)


def _collected(
    module: nn.Module, path: str, whole: bool, full: _Whole
) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds of a gathered block, under the names before PEFT."""
    if vllm_adapters.is_adapted(module):
        for name, tensor in vllm_adapters.merged(module, full):
            yield _joined(path, name), tensor
        return
    if vllm_adapters.is_saved_copy(module):
        yield from _collected(vllm_adapters.chosen(module), path, True, full)
        return
    kept = module._buffers.keys() - module._non_persistent_buffers_set
    held: dict[str, torch.Tensor | None] = dict(module._parameters)
    held |= {name: buffer for name, buffer in module._buffers.items() if name in kept}
    for name, entry in held.items():
        if entry is not None:
            yield _joined(path, name), full(entry)
    if whole:
        for name, child in module.named_children():
            yield from _collected(child, _joined(path, name), True, full)


def checksums(model: nn.Module) -> dict[str, int]:
    """For each parameter the sum of its bits, read as integers, of what lies in this process."""
    sums: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            held = getattr(parameter, "ds_tensor", parameter).detach()
            if isinstance(held, DTensor):
                held = held.to_local()
            words = held.contiguous().view(_WORD[held.element_size()])
            sums[name] = words.sum(dtype=torch.int64)
        if not sums:
            return {}
        first = next(iter(sums.values())).device
        numbers = torch.stack([s.to(first) for s in sums.values()]).tolist()
    return dict(zip(sums, numbers, strict=True))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Watch that merging adapters leaves every trained weight as it was.

    Raises:
        RuntimeError: on leaving, naming a weight that changed.
    """
    if not any(adapters.is_peft(module) for module in model.modules()):
        yield
        return
    before = checksums(model)
    yield
    changed = [name for name, number in checksums(model).items() if before.get(name) != number]
    if changed:
        raise RuntimeError(
            f"sending the policy to vLLM changed its weights ({changed[0]} and "
            f"{len(changed) - 1} more); go back to the last checkpoint"
        )
