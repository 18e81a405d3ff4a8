"""The compiled libraries: whether they are there, why not, and how a tensor becomes an address."""

from __future__ import annotations

import functools
import importlib
import json
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

Kind = Literal["cpu", "cuda"]

# The codes of csrc/dtype.h.
DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_PACKAGE = Path(__file__).resolve().parents[1]
_BUILD_INFO = _PACKAGE / "_build_info.json"


def build_info() -> dict[str, Any]:
    """What the last build recorded: `{"built": [...], "reason": {kind: why not}, "archs": [...]}`.

    Empty where nothing was ever built, as in a bare checkout.
    """
    try:
        return json.loads(_BUILD_INFO.read_text())
    except (OSError, ValueError):
        return {}


def _not_built(kind: Kind) -> str:
    """One sentence on why there is no such library."""
    recorded = build_info().get("reason", {}).get(kind)
    if recorded is not None:
        return recorded
    return f"the {kind} library was not built (in a checkout: python setup.py build_ext --inplace)"


@functools.cache
def _imported(kind: Kind) -> ModuleType | str:
    """The module, or the reason it cannot be used."""
    if kind == "cuda" and not torch.cuda.is_available():
        return "no NVIDIA GPU is visible to torch"
    if kind == "cuda" and torch.version.hip is not None:
        return "this torch drives AMD GPUs"
    # An editable install elsewhere would offer its own library for a package that has none: two
    # versions in one process. Only one that lies in this package counts.
    if PathFinder.find_spec(f"fastrl._core_{kind}", [str(_PACKAGE)]) is None:
        return _not_built(kind)
    try:
        module = importlib.import_module(f"fastrl._core_{kind}")
    except ImportError as error:
        return f"the {kind} library was built but does not load: {error}"
    if kind == "cuda":
        refusal = module.probe()
        if refusal:
            archs = ", ".join(build_info().get("archs", [])) or "unknown"
            return f"the cuda library (built for {archs}) cannot run on this GPU: {refusal}"
    return module


def missing(kind: Kind) -> str | None:
    """Why the `cpu` or `cuda` library cannot be used here, or None if it can."""
    found = _imported(kind)
    return found if isinstance(found, str) else None


def load(kind: Kind) -> ModuleType:
    """The compiled module `fastrl._core_<kind>`.

    Raises:
        RuntimeError: with the reason, if it cannot be used on this machine.
    """
    found = _imported(kind)
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def pointer(tensor: torch.Tensor) -> int:
    """The address of the first element; the caller keeps the tensor alive.

    Raises:
        RuntimeError: if the tensor is not contiguous; a raw pointer would read the wrong elements.
    """
    if not tensor.is_contiguous():
        raise RuntimeError("pointer() of a tensor that is not contiguous")
    return tensor.data_ptr()
