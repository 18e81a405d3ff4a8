"""Many tensors as one row of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def packed_nccl_broadcast_producer(
    iterator: Iterator[tuple[str, torch.Tensor]],
    group: Any,
    src: int,
    post_iter_func: Callable[[tuple[str, torch.Tensor]], torch.Tensor],
    buffer_size_bytes: int = 1024**3,
    num_buffers: int = 2,
) -> None:
    """One broadcast for each buffer; a tensor may overrun its end."""
    rows: list[torch.Tensor] = []
    for item in iterator:
        rows.append(post_iter_func(item).contiguous().view(torch.uint8).view(-1))
        if sum(row.numel() for row in rows) > buffer_size_bytes:
            group.broadcast(torch.cat(rows), src=src)
            rows = []
    if rows:
        group.broadcast(torch.cat(rows), src=src)


def unpack_tensor(
    packed_tensor: torch.Tensor,
    names: list[str],
    shapes: list[list[int]],
    dtypes: list[torch.dtype],
    tensor_sizes: list[int],
) -> list[tuple[str, torch.Tensor]]:
    parts = packed_tensor.split(tensor_sizes)
    return [
        (name, part.contiguous().view(dtype).view(*shape))
        for name, shape, dtype, part in zip(names, shapes, dtypes, parts, strict=True)
    ]
