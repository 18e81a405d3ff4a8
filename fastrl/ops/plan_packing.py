"""Which rows share a bin when sequences are packed (arXiv:2404.10830)."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import require_whole

STRATEGIES = ("bfd",)
_LONGEST = 2**63 - 1  # of a row or bin, in tokens


@dataclass(frozen=True)
class PackingPlan:
    """Bins of rows. `plan[b]` is the rows of bin b; iterating yields the bins in order."""

    order: np.ndarray  # (rows placed,) int64: row indices, bin after bin
    offsets: np.ndarray  # (bins + 1,) int64: bin b is order[offsets[b] : offsets[b + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, bin_index: int) -> np.ndarray:
        if not -len(self) <= bin_index < len(self):
            raise IndexError(f"bin {bin_index} of a plan of {len(self)} bins")
        bin_index %= len(self)
        return self.order[self.offsets[bin_index] : self.offsets[bin_index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        for begin, end in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            yield self.order[begin:end]


class _Reference:
    @staticmethod
    def forward(lengths: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = lengths.tolist()
        rows = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -sizes[i])
        bins: list[list[int]] = []
        waiting: dict[int, deque[int]] = {}  # free space -> bins, the one that waits longest first
        spaces: list[int] = []  # its keys, sorted
        for row in rows:
            place = bisect.bisect_left(spaces, sizes[row])
            if place == len(spaces):
                chosen, space = len(bins), capacity
                bins.append([])
            else:
                space = spaces[place]
                chosen = waiting[space].popleft()
                if not waiting[space]:
                    del waiting[space], spaces[place]
            bins[chosen].append(row)
            left = space - sizes[row]
            if left and left not in waiting:
                waiting[left] = deque()
                bisect.insort(spaces, left)
            if left:
                waiting[left].append(chosen)
        order = torch.tensor([row for rows in bins for row in rows], dtype=torch.int64)
        counts = torch.tensor([0, *map(len, bins)], dtype=torch.int64)
        return order, counts.cumsum(0)


class _Cpp:
    @staticmethod
    def forward(lengths: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.empty(len(lengths), dtype=torch.int64)
        offsets = torch.empty(len(lengths) + 1, dtype=torch.int64)
        bins = _native.load("cpu").plan_packing(
            _native.pointer(lengths),
            len(lengths),
            capacity,
            _native.pointer(order),
            _native.pointer(offsets),
        )
        offsets = offsets[: bins + 1].clone()
        return order[: int(offsets[-1])], offsets


PLAN_PACKING = Op("plan_packing", reference=_Reference, cpp=_Cpp)


def _checked_lengths(lengths: object, capacity: int) -> torch.Tensor:
    """(N,) int64 on the CPU, every one in [0, capacity]."""
    array = lengths.cpu().numpy() if isinstance(lengths, torch.Tensor) else np.asarray(lengths)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1:
        found = f"of shape {array.shape}" if array.ndim else f"a {type(lengths).__name__}"
        raise ValueError(f"lengths must be one-dimensional, not {found}; give a list or an array")
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, not {array.dtype}")
    if len(array) >= 2**31:
        raise ValueError(f"lengths has {len(array)} rows; plan fewer than 2**31 at a time")
    for wrong, problem in (
        (array > capacity, f"over capacity {capacity}"),
        (array < 0, "negative"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"lengths[{row}] is {array[row]}, {problem}; truncate, split or drop that row first"
            )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def plan_packing(
    lengths: Sequence[int] | np.ndarray | torch.Tensor, capacity: int, strategy: str = "bfd"
) -> PackingPlan:
    """Distribute rows over bins of `capacity` tokens, so that few bins are needed.

    `bfd`, best-fit decreasing: the longest row first, equal ones in their own order; each goes to
    the bin with the least free space that holds it, among equals to the one that has had this space
    longest, else to a new bin. Bins and their rows come in the order of TRL 1.16. Rows of length 0
    are in no bin.

    Args:
        lengths: (N,) tokens of each row: a sequence, numpy array or tensor of integers.
        capacity: tokens a bin holds.
        strategy: `bfd`.

    Returns:
        A `PackingPlan`.

    Raises:
        TypeError: lengths or capacity are not integers.
        ValueError: a length is negative or over capacity (the row is named), capacity is not
            positive, the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    capacity = min(require_whole("capacity", capacity, 1), _LONGEST)
    sizes = _checked_lengths(lengths, capacity)
    order, offsets = PLAN_PACKING.pick(sizes).forward(sizes, capacity)
    return PackingPlan(order.numpy(), offsets.numpy())
