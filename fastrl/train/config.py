"""Arguments all trainers share, on top of `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import numbers
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import TrainingArguments

from fastrl.legacy import InvalidChoice, closest, warn_once

logger = logging.getLogger(__name__)


def require_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    """Raise a ValueError for a value outside its list, naming the one most like it."""
    if given not in known:
        several = ", ".join(known)
        raise InvalidChoice(f"{name}={given!r} is none of {several}{closest(str(given), known)}")


def check_kind(name: str, given: Any, stated: str) -> None:
    """Refuse what is no number or switch where a field is stated to be one; None is let through.

    Args:
        name: the field.
        given: its value.
        stated: its annotation, e.g. "int | None"; those that allow other kinds check nothing.

    Raises:
        ValueError: text that reads like a number is none, nor is NaN.
    """
    kinds = {kind.strip() for kind in stated.split("|")} - {"None"}
    if given is None or not kinds or kinds - {"bool", "int", "float"}:
        return
    switch = isinstance(given, bool | np.bool_)
    if "bool" in kinds:
        fits, wanted = switch or given in (0, 1), "True or False"
    elif "float" in kinds:
        fits, wanted = isinstance(given, numbers.Real) and not switch, "a number"
    else:
        fits, wanted = isinstance(given, numbers.Integral) and not switch, "a whole number"
    if not fits or math.isnan(given):
        raise ValueError(f"{name}={given!r}: {wanted} is needed")


def hardware_has_bf16(use_cpu: bool) -> bool:
    """Whether this process's accelerator computes in bfloat16 by itself; a CPU counts as no."""
    if use_cpu:
        return False
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return hasattr(torch, "xpu") and torch.xpu.is_available()


def padding_multiple(given: int | str | None, device_type: str) -> int | None:
    """The number that `pad_to_multiple_of` stands for: "auto" is 128 on Neuron, else none.

    Raises:
        ValueError: neither "auto", "none" nor a positive number (the command line gives strings).
    """
    if given == "auto":
        return 128 if device_type == "neuron" else None
    if isinstance(given, str):
        if given.lower() in ("none", "null"):
            return None
        if not given.isdigit():
            raise ValueError(f"pad_to_multiple_of must be 'auto' or a number, got {given!r}")
        given = int(given)
    if given is not None and given < 1:
        raise ValueError(f"pad_to_multiple_of must be positive, got {given}")
    return given


@dataclass
class BaseConfig(TrainingArguments):
    """`TrainingArguments` with the defaults of post-training.

    They log every 10 steps, checkpoint gradients, train in bf16 where the hardware has it (`bf16`
    left at None; fp32 elsewhere, said in the log), and log a NaN loss as NaN.

    Raises:
        ValueError: for what is no number, or neither True nor False, where one is stated, or a
            field of transformers that the trainer has no use for.

    Warns:
        UserWarning: once, for a field whose value changes nothing here.
    """

    # Field of transformers that nothing reads -> (values that ask for nothing, why).
    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        "label_names": ((None, [], ["labels"]), "a trainer knows its own labels"),
    }
    # Field that TRL has and any value of which gives the same run here -> why.
    _NO_EFFECT: ClassVar[dict[str, str]] = {}

    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many optimizer steps; below 1, a share of all."}
    )
    gradient_checkpointing: bool = field(
        default=True,
        metadata={"help": "Recompute activations in the backward pass instead of keeping them."},
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bfloat16 mixed precision; unset: where the hardware has it."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Log the mean of the losses before in place of a NaN or infinite one."},
    )

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and hardware_has_bf16(self.use_cpu)
            if not self.bf16 and not self.fp16:
                logger.info("training in fp32: this device does not compute in bfloat16")
        self._name_checkpointing_as_transformers_does()
        if self.use_liger_kernel:
            self._keep_liger_from_the_head()
        super().__post_init__()
        self._refuse_what_has_no_part()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is no device to copy to; torch would warn

    def _check_kinds(self) -> None:
        """Numbers and switches are what they are stated to be, in fields that fastrl declares."""
        # Not the types in dataclasses.fields, which a parser of command lines rewrites.
        stated: dict[str, str] = {}
        for cls in reversed(type(self).__mro__):
            if issubclass(cls, BaseConfig):
                stated.update(inspect.get_annotations(cls))
        for each in dataclasses.fields(self):
            given = getattr(self, each.name)
            if each.name in stated and given is not each.default:
                check_kind(each.name, given, str(stated[each.name]))

    def _refuse_what_has_no_part(self) -> None:
        for name, (idle, why) in self._NO_PART.items():
            given = getattr(self, name, idle[0])
            if given not in idle:
                raise ValueError(
                    f"{name}={given!r} has no part in {type(self).__name__} ({why}); leave it out"
                )
        for name, why in self._NO_EFFECT.items():
            given = getattr(self, name)
            if given != self.__dataclass_fields__[name].default:
                warn_once(f"{name}={given!r} changes nothing in {type(self).__name__}: {why}")
        plan = self.parallelism_config
        if plan is not None and (plan.cp_enabled or plan.sp_enabled):
            raise ValueError(
                "parallelism_config: rows are not split along their length (context and sequence "
                "parallelism are not there yet); set cp_size=1 and sp_size=1"
            )

    def _process_fsdp_args(self) -> dict[str, Any] | None:
        """As transformers'; `min_num_params` alone asks to wrap by size, as before release 5."""
        plugin = super()._process_fsdp_args()
        given = self.fsdp_config or {}
        by_layer = given.get("transformer_layer_cls_to_wrap") or given.get("auto_wrap_policy")
        if plugin and given.get("min_num_params") and not by_layer:
            plugin |= {
                "auto_wrap_policy": "SIZE_BASED_WRAP",
                "min_num_params": given["min_num_params"],
            }
        return plugin

    def _keep_liger_from_the_head(self) -> None:
        """Liger's layers may be used; its loss would take the place of the model's forward."""
        given = dict(self.liger_kernel_config or {})
        if given.get("fused_linear_cross_entropy"):
            raise ValueError(
                "liger_kernel_config['fused_linear_cross_entropy']=True replaces the model's "
                "forward, through which log-probabilities are computed without keeping the "
                "logits anyway; leave it out"
            )
        self.liger_kernel_config = {**given, "fused_linear_cross_entropy": False}

    def _name_checkpointing_as_transformers_does(self) -> None:
        """Copy ours to the name newer releases gave it, which spares the user their warning."""
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if getattr(self, new, "absent") is None:
                setattr(self, new, getattr(self, old))

    @classmethod
    def of(cls, args: TrainingArguments | None, output_dir: str) -> Self:
        """The trainer's own config, from whatever was given as `args`.

        Args:
            args: this class (returned as it is), plain `TrainingArguments` (every field is carried
                over; the trainer's own take their defaults), or None.
            output_dir: where to write if args is None.

        Raises:
            TypeError: for anything else, another trainer's config included.
        """
        if args is None:
            return cls(output_dir)
        if isinstance(args, cls):
            return args
        if type(args) is not TrainingArguments:
            raise TypeError(
                f"args must be a {cls.__name__} or transformers.TrainingArguments, "
                f"got {type(args).__name__}"
            )
        names = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
        return cls(**{name: getattr(args, name) for name in names})


@dataclass
class OfflineConfig(BaseConfig):
    """What the trainers on a fixed dataset share (SFT, DPO, KTO, Reward)."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
    ]

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keywords of from_pretrained, where the model is given by name."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code that comes with a checkpoint."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that prepare the dataset."}
    )
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest row in tokens; unset: no limit."}
    )
    pad_to_multiple_of: int | str | None = field(
        default="auto",
        metadata={"help": "Pad batches to a multiple of this; 'auto' is 128 on Neuron, else none."},
    )
    activation_offloading: bool = field(
        default=False,
        metadata={"help": "Keep activations for the backward pass in host memory."},
    )
    pad_token: str | None = field(
        default=None, metadata={"help": "Padding token; unset: the tokenizer's, or its EOS."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pad_to_multiple_of = padding_multiple(self.pad_to_multiple_of, self.device.type)
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"max_length must leave room for 2 tokens or more, got {self.max_length}"
            )
