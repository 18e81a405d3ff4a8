"""Which optional packages are installed, and a few switches, as `trl.import_utils` answers them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from packaging.version import Version

LIGER_KERNEL_MIN_VERSION = "0.8.2"


def _installed(module: str) -> bool:
    """Whether a module can be imported; it is not imported to find out."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # no parent, or a stand-in that has no specification
        return False


def _predicate(name: str, module: str | None = None) -> Callable[[], bool]:
    module = module or name

    def available() -> bool:
        return _installed(module)

    available.__name__ = available.__qualname__ = f"is_{name}_available"
    available.__doc__ = f"Whether the package {module} is installed."
    return available


is_aiohttp_available = _predicate("aiohttp")
is_deepspeed_available = _predicate("deepspeed")
is_diffusers_available = _predicate("diffusers")
is_fastapi_available = _predicate("fastapi")
is_harbor_available = _predicate("harbor")
is_jmespath_available = _predicate("jmespath")
is_joblib_available = _predicate("joblib")
is_llm_blender_available = _predicate("llm_blender")
is_llmblender_available = _predicate("llmblender", "llm_blender")
is_math_verify_available = _predicate("math_verify")
is_mergekit_available = _predicate("mergekit")
is_openreward_available = _predicate("openreward")
is_peft_available = _predicate("peft")
is_pil_available = _predicate("pil", "PIL")
is_pydantic_available = _predicate("pydantic")
is_requests_available = _predicate("requests")
is_rich_available = _predicate("rich")
is_sklearn_available = _predicate("sklearn")
is_torchvision_available = _predicate("torchvision")
is_unsloth_available = _predicate("unsloth")
is_uvicorn_available = _predicate("uvicorn")
is_vllm_ascend_available = _predicate("vllm_ascend")
is_wandb_available = _predicate("wandb")
is_weave_available = _predicate("weave")


def is_bitsandbytes_available() -> bool:
    """Whether the package bitsandbytes is installed and there is a GPU that it can use."""
    if not _installed("bitsandbytes"):
        return False
    import torch

    return torch.cuda.is_available()


def is_liger_kernel_available(min_version: str = LIGER_KERNEL_MIN_VERSION) -> bool:
    """Whether the package liger_kernel is installed, in this version or a later one."""
    return _installed("liger_kernel") and _at_least("liger_kernel", min_version)


def is_vllm_available(min_version: str | None = None) -> bool:
    """Whether the package vllm is installed, in this version or a later one if one is given."""
    return _installed("vllm") and (min_version is None or _at_least("vllm", min_version))


def is_npu_available(check_device: bool = False) -> bool:
    """Whether there is an Ascend NPU and the package torch_npu; `check_device` also opens it."""
    from accelerate.utils import is_npu_available as npu

    return npu(check_device)


def is_xpu_available(check_device: bool = False) -> bool:
    """Whether there is an Intel GPU that this torch can use; `check_device` also opens it."""
    from accelerate.utils import is_xpu_available as xpu

    return xpu(check_device)


def is_accelerate_greater_20_0() -> bool:
    """Whether accelerate is 0.20.0 or later."""
    return _at_least("accelerate", "0.20.0")


def is_transformers_greater_than(
    current_version: str | None = None, *, version: str | None = None
) -> bool:
    """Whether transformers is later than this version; `version` is TRL 0.7's name for it.

    Raises:
        TypeError: none is given.
    """
    least = current_version if version is None else version
    if least is None:
        raise TypeError("is_transformers_greater_than needs a version")
    return Version(importlib.metadata.version("transformers")) > Version(least)


def is_torch_greater_2_0() -> bool:
    """Whether torch is 2.0 or later."""
    return _at_least("torch", "2.0")


def _at_least(distribution: str, version: str) -> bool:
    try:
        return Version(importlib.metadata.version(distribution)) >= Version(version)
    except importlib.metadata.PackageNotFoundError:
        return False


class TRLExperimentalWarning(UserWarning):
    """What TRL warns with when `trl.experimental` is imported; nothing here warns with it."""


class OptionalDependencyNotAvailable(BaseException):
    """What TRL 0.11's import files raise among themselves for an absent package."""


@contextmanager
def suppress_warning(category: type[Warning]) -> Iterator[None]:
    """Silence one kind of warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=category)
        yield


def suppress_experimental_warning() -> object:
    """Silence `TRLExperimentalWarning`."""
    return suppress_warning(TRLExperimentalWarning)


def strtobool(val: str) -> bool:
    """Whether a word means yes (y, yes, t, true, on, 1), in any case.

    Raises:
        ValueError: it means neither yes nor no (n, no, f, false, off, 0).
    """
    word = val.lower()
    if word in ("y", "yes", "t", "true", "on", "1"):
        return True
    if word in ("n", "no", "f", "false", "off", "0"):
        return False
    raise ValueError(f"{val!r} means neither yes nor no")
