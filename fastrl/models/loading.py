"""How `from_pretrained` keywords of every vintage reach today's transformers."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import BitsAndBytesConfig


def current_device() -> int | str:
    """This process's accelerator, as `device_map` wants it: an index, an XPU's name, or `"cpu"`."""
    # The first state made decides for the process, and unlike Accelerator it does not read this.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    device = state.device
    if device.type == "cuda":
        return state.local_process_index
    return str(device) if device.type in ("xpu", "npu") else "cpu"


def _rename(keywords: dict[str, Any], old: str, new: str) -> None:
    if old not in keywords:
        return
    given = keywords.pop(old)
    if keywords.get(new) is not None:
        raise TypeError(f"from_pretrained: {old}= is the old name of {new}=; give only {new}=")
    keywords[new] = given


def _check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, str) or dtype == "auto":
        return
    if not isinstance(getattr(torch, dtype.removeprefix("torch."), None), torch.dtype):
        raise ValueError(f"from_pretrained: dtype={dtype!r} is no dtype of torch")


def _quantize(keywords: dict[str, Any]) -> None:
    """Turn load_in_8bit / load_in_4bit into a `quantization_config`."""
    bits = {name: keywords.pop(name, None) for name in ("load_in_8bit", "load_in_4bit")}
    asked = [name for name, given in bits.items() if given]
    if not asked:
        return
    if len(asked) == 2:
        raise ValueError("from_pretrained: give load_in_8bit or load_in_4bit, not both")
    if keywords.get("quantization_config") is not None:
        raise ValueError(f"from_pretrained: give {asked[0]} or quantization_config, not both")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"from_pretrained: {asked[0]}=True needs the package bitsandbytes: "
            "pip install bitsandbytes"
        )
    keywords["quantization_config"] = BitsAndBytesConfig(**{asked[0]: True})


def respell(keywords: dict[str, Any]) -> dict[str, Any]:
    """The same keywords in transformers 5's spelling.

    `use_auth_token` becomes `token`, `torch_dtype` becomes `dtype`, `load_in_8bit` and
    `load_in_4bit` become a `quantization_config`.

    Raises:
        TypeError: if an old name and its new one are both given.
        ValueError: for contradicting quantization arguments, or an unknown dtype.
        ImportError: if quantization is asked for without bitsandbytes.
    """
    keywords = dict(keywords)
    _rename(keywords, "use_auth_token", "token")
    _rename(keywords, "torch_dtype", "dtype")
    _check_dtype(keywords.get("dtype"))
    _quantize(keywords)
    return keywords


def modernise(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords transformers 5 understands, from those of any version, as fastrl's models load.

    They are respelled; a quantized model is placed on this process's device unless `device_map`
    says otherwise; without a dtype the weights are loaded in fp32, as these scripts expect, not in
    the checkpoint's own dtype.

    Raises:
        TypeError, ValueError, ImportError: as `respell` does.
    """
    keywords = respell(keywords)
    if keywords.get("quantization_config") is None:
        if keywords.get("dtype") is None:
            keywords["dtype"] = torch.float32
        return keywords
    if keywords.get("device_map") is None:
        warnings.warn(
            "from_pretrained: a quantized model without device_map goes to this process's device; "
            "give device_map= to place it otherwise",
            stacklevel=3,
        )
        keywords["device_map"] = {"": current_device()}
    return keywords
