"""How much memory a call may use to keep logits until its backward."""

from __future__ import annotations

import torch

from fastrl.ops._inputs import require_whole

_CPU_BUDGET = 1 << 30  # bytes
_budget: int | None = None
_free_at_first: dict[torch.device, int] = {}


def set_logits_budget(num_bytes: int | None) -> None:
    """Let `linear_token_logprobs` keep up to this many bytes of logits for its backward.

    Kept logits save making them again (3 matrix products instead of 4; 0 never keeps any). None
    goes back to the default: 1 GiB on a CPU; elsewhere a quarter of what was free on the device
    when it was first used here. Applies to calls made from now on, in this process.

    Raises:
        TypeError: for anything but a whole number or None.
        ValueError: for a negative number.
    """
    global _budget
    _budget = None if num_bytes is None else require_whole("num_bytes", num_bytes, 0)


def logits_budget(device: torch.device) -> int:
    """Bytes of logits that a call on this device may keep."""
    if _budget is not None:
        return _budget
    if device.type != "cuda":
        return _CPU_BUDGET
    if device not in _free_at_first:
        _free_at_first[device] = torch.cuda.mem_get_info(device)[0] // 4
    return _free_at_first[device]
