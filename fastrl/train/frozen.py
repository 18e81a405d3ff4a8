"""The frozen policy that preference losses compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn

from fastrl.models import adapters
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.models.reference import create_reference_model
from fastrl.types import LogProbs, Tokens

ADAPTER = "ref"


def deepspeed_engine(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A model without optimizer as a DeepSpeed engine: ZeRO-3 as the policy's, else stage 0."""
    import deepspeed

    config = deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    if config["zero_optimization"]["stage"] == 3:
        hidden = getattr(model.config, "hidden_size", None)
        if hidden is not None:
            config["zero_optimization"] |= {
                "reduce_bucket_size": hidden * hidden,
                "stage3_param_persistence_threshold": 10 * hidden,
                "stage3_prefetch_bucket_size": 9 * hidden * hidden // 10,  # whole, or it is refused
            }
    else:
        config["zero_optimization"]["stage"] = 0
    config.pop("optimizer", None)
    config.pop("scheduler", None)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    return engine


def _placed(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model where the policy will be, whole or in shares as that is."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return deepspeed_engine(model, accelerator)
    if kind != DistributedType.FSDP:
        return accelerator.prepare_model(model, evaluation_mode=True)
    if accelerator.is_fsdp2:
        return fsdp2_prepare_model(accelerator, model)
    prepared = accelerator.prepare_model(model)
    accelerator._models.remove(prepared)  # what it holds it saves and clips
    return prepared


def copy_adapter(model: nn.Module) -> None:
    """Keep an adapter's present weights beside it, frozen, under the name `ref`."""
    model.add_adapter(ADAPTER, model.peft_config["default"])
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if ".default." in name:
            kept = parameters[name.replace(".default.", f".{ADAPTER}.")]
            kept.data.copy_(parameter.data)
            kept.requires_grad_(False)


def require_another(given: Any, model: Any) -> None:
    """Raise ValueError if the reference is the policy itself."""
    if given is not None and given is model:
        raise ValueError(
            "ref_model is the object given as model, so it would be trained along; leave it out, "
            "and the model is compared with a copy of its start"
        )


def require_one_vocabulary(model: nn.Module, name: str, other: nn.Module) -> None:
    """Refuse two models whose distributions are not over the same tokens.

    Args:
        name: the argument that `other` was given as.

    Raises:
        ValueError: for vocabularies of different size.
    """
    mine, theirs = (part.config.get_text_config().vocab_size for part in (model, other))
    if mine != theirs:
        raise ValueError(
            f"{name} has vocab_size {theirs} and model {mine}, but both must give a probability to "
            "the same tokens; take one of the model's family"
        )


def reference_model(
    model: nn.Module, given: nn.Module | None, adapted: bool, asked_once: bool
) -> nn.Module | None:
    """The separate reference: as given, else a frozen copy; None where the policy can stand in.

    Args:
        model: the policy.
        given: `ref_model` of the trainer.
        adapted: whether a fresh adapter was put on the policy. An adapter that was there before is
            copied under the name `ref` instead, as its start is not the base model.
        asked_once: before training only, when the policy still is its own reference.

    Raises:
        ValueError: if the reference is the policy itself.
        TypeError: for what is no model.
    """
    require_another(given, model)
    if given is not None:
        if not isinstance(given, nn.Module):
            raise TypeError(f"ref_model must be a model, got {type(given).__name__}")
        return given.requires_grad_(False).eval()
    if not adapters.is_peft(model):
        return None if asked_once else create_reference_model(model)
    if not adapted:
        copy_adapter(model)
    return None


@contextmanager
def _stepped_aside(model: nn.Module) -> Iterator[None]:
    """The adapter, if there is one, replaced by its kept start or switched off."""
    if not adapters.is_peft(model):
        yield
        return
    if ADAPTER not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    active = model.active_adapter
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    model.set_adapter(ADAPTER)
    try:
        yield
    finally:
        model.set_adapter(active)
        # PEFT lets what it activates be trained.
        for name, parameter in model.named_parameters():
            if f".{ADAPTER}." in name:
                parameter.requires_grad_(False)
            elif name in trained:
                parameter.requires_grad_(True)


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights of this process, for what is kept of a model's answers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


class Reference:
    """Log-probabilities under the frozen policy.

    Args:
        accelerator: prepares the separate model for several processes.
        model: the separate model; None: the policy, with its adapter out of the way if it has one.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module | None) -> None:
        self._accelerator = accelerator
        self.model = model
        if model is None:
            return
        prepare_policy(model)
        self.model = _placed(model, accelerator)

    @torch.no_grad()
    def logprobs(
        self,
        policy: nn.Module,
        tokens: Tokens,
        temperature: float = 1.0,
        stats: Sequence[str] = (),
        fp32_head: bool = False,
    ) -> LogProbs:
        """Score tokens; `policy` is what the trainer calls, used where there is no model apart."""
        how = {"temperature": temperature, "stats": stats, "fp32_head": fp32_head}
        if self.model is not None:
            return logprobs(self.model, tokens, **how)
        with _stepped_aside(self._accelerator.unwrap_model(policy)):
            return logprobs(policy, tokens, **how)

    @contextmanager
    def speaking(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The model itself, without what wraps it: to generate from."""
        if self.model is not None:
            yield self._accelerator.unwrap_model(self.model)
            return
        own = self._accelerator.unwrap_model(policy)
        with _stepped_aside(own):
            yield own

    def key(self, policy: nn.Module) -> str:
        """A hash of the weights it speaks with, for what is kept of it."""
        return fingerprint(policy if self.model is None else self.model)
