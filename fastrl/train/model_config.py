"""Which model to train and how: the command line's model options, and what they stand for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

from transformers import BitsAndBytesConfig

from fastrl.legacy.changes import Renamed
from fastrl.legacy.fields import accepts_legacy_fields

_WAS = {generation: {"dtype": None} for generation in ("0.7", "0.11")}


@accepts_legacy_fields({"torch_dtype": Renamed("dtype")}, _WAS, ("trust_remote_code",))
@dataclass
class ModelConfig:
    """The model, its adapter and its quantization.

    `trust_remote_code` is an attribute and an argument but no field of the class: it is one of the
    trainers' configs, and a parser that fills both sets both.

    Raises:
        ValueError: both 8 and 4 bits are asked for.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a folder, or a name on the hub."}
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the checkpoint on the hub."}
    )
    dtype: str | None = field(
        default="float32",
        metadata={
            "help": "Type the weights are loaded in; 'auto' takes the checkpoint's.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention backend of transformers; unset: its choice."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(
        default=32, metadata={"help": "Scale of the adapter, divided by its rank."}
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get an adapter; 'all-linear' for all."}
    )
    lora_target_parameters: list[str] | None = field(
        default=None,
        metadata={"help": "Parameters that get one where no module does, as in expert layers."},
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained in full and kept with the adapter."}
    )
    lora_task_type: str = field(
        default="CAUSAL_LM", metadata={"help": "PEFT's task type; SEQ_CLS for reward models."}
    )
    use_rslora: bool = field(
        default=False, metadata={"help": "Scale by alpha / sqrt(rank) (rank-stabilised LoRA)."}
    )
    use_dora: bool = field(
        default=False, metadata={"help": "Learn magnitude and direction apart (DoRA)."}
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Load the base model in 8 bits; needs use_peft."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Load the base model in 4 bits; needs use_peft."}
    )
    bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "Code of 4-bit weights.", "choices": ["fp4", "nf4"]}
    )
    use_bnb_nested_quant: bool = field(
        default=False, metadata={"help": "Quantize the 4-bit scales too."}
    )
    bnb_4bit_quant_storage: str | None = field(
        default=None, metadata={"help": "Type 4-bit weights are packed in; for FSDP the model's."}
    )

    trust_remote_code = False
    _shared_flags = ("trust_remote_code",)

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit are both set: choose one")
        targets = self.lora_target_modules
        if isinstance(targets, list) and len(targets) == 1:
            self.lora_target_modules = targets[0]  # PEFT knows 'all-linear' as a string only

    @property
    def torch_dtype(self) -> str | None:
        """The older name of `dtype`."""
        return self.dtype


def get_peft_config(model_args: ModelConfig) -> Any:
    """The adapter that the options describe: a `peft.LoraConfig`, or None without `use_peft`.

    Raises:
        ImportError: the package peft is missing.
    """
    if not model_args.use_peft:
        return None
    if importlib.util.find_spec("peft") is None:
        raise ImportError("use_peft=True needs the package peft: pip install peft")
    from peft import LoraConfig

    newer: dict[str, Any] = {}  # PEFT before 0.17 does not know it
    if model_args.lora_target_parameters is not None:
        newer["target_parameters"] = model_args.lora_target_parameters
    return LoraConfig(
        task_type=model_args.lora_task_type,
        r=model_args.lora_r,
        target_modules=model_args.lora_target_modules,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        bias="none",
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        modules_to_save=model_args.lora_modules_to_save,
        **newer,
    )


def get_quantization_config(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """The quantization that the options describe, or None; 4-bit products are made in `dtype`."""
    if model_args.load_in_4bit:
        dtype = None if model_args.dtype == "auto" else model_args.dtype
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
            bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_args.load_in_8bit else None


def get_kbit_device_map() -> dict[str, int] | None:
    """Where a quantized model goes: wholly to this process's own GPU; None without a GPU."""
    import torch
    from accelerate import PartialState

    return {"": PartialState().local_process_index} if torch.cuda.is_available() else None
