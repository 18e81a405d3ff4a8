"""Dicts of columns cut and shuffled row by row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch

Columns = dict[str, Any]

# What follows the images, or their tiles, of a batch.
_BY_IMAGE = ("image_grid_thw", "image_position_ids", "image_sizes")
_BY_TILE = ("pixel_attention_mask", "spatial_shapes")


def _cut(value: Any, part: slice) -> Any:
    if value is None or (isinstance(value, torch.Tensor) and value.dim() == 0):
        return value
    return value[part]


def split_tensor_dict(tensor_dict: Columns, num_chunks: int) -> list[Columns]:
    """Equal parts of columns along their first dimension; None and scalars go into each.

    Args:
        tensor_dict: tensors or lists of one length, which `num_chunks` divides.
        num_chunks: how many parts.

    Raises:
        ValueError: if it does not divide them.
    """
    rows = next(len(value) for value in tensor_dict.values() if _cut(value, slice(0)) is not value)
    if rows % num_chunks:
        raise ValueError(f"num_chunks={num_chunks} does not divide {rows} rows")
    size = rows // num_chunks
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return [{name: _cut(value, part) for name, value in tensor_dict.items()} for part in parts]


def shuffle_sequence_dict(seq_dict: dict[str, Sequence[Any] | None]) -> Columns:
    """The columns in one new order, drawn by torch's seed; None and scalars stay.

    Args:
        seq_dict: tensors or lists of one length.
    """
    rows = next(len(v) for v in seq_dict.values() if _cut(v, slice(0)) is not v and v is not None)
    order = torch.randperm(rows)

    def shuffled(value: Any) -> Any:
        if value is None or (isinstance(value, torch.Tensor) and value.dim() == 0):
            return value
        return value[order] if isinstance(value, torch.Tensor) else [value[i] for i in order]

    return {name: shuffled(value) for name, value in seq_dict.items()}


def _pixel_rows(batch: Columns) -> list[int] | None:
    """How many rows of `pixel_values` belong to each sample; None: they are one a sample."""
    images: list[int] = batch["num_images"]
    rows = len(batch["pixel_values"])
    if "image_grid_thw" in batch:
        each = batch["image_grid_thw"].prod(-1).tolist()
        if sum(each) != rows:
            raise ValueError(
                f"image_grid_thw describes {sum(each)} rows of pixel_values, and there are {rows}"
            )
        ends = [*accumulate(images, initial=0)]
        return [sum(each[a:b]) for a, b in pairwise(ends)]
    if "image_position_ids" not in batch and "num_tiles" in batch:
        return batch["num_tiles"]
    described = "image_position_ids" in batch
    return images if described or rows == sum(images) else None


def split_pixel_values_by_grid(batch: Columns) -> Columns:
    """The batch with `pixel_values`, and what describes them, as lists of a tensor a sample.

    Args:
        batch: `pixel_values` and `num_images`, images of each sample, or it is returned as it is;
            with `image_grid_thw` (images, 3), `image_position_ids`, or `num_tiles` (tiles of each
            sample) with or without `spatial_shapes` and `pixel_attention_mask`, or flat.

    Raises:
        ValueError: if grids and pixels do not fit.
    """
    if "pixel_values" not in batch or "num_images" not in batch:
        return batch
    sections = _pixel_rows(batch)
    if sections is None:
        return batch
    split = {"pixel_values": sections}
    split |= {name: batch["num_images"] for name in _BY_IMAGE if name in batch}
    split |= {name: sections for name in _BY_TILE if name in batch and "num_tiles" in batch}
    return batch | {name: list(torch.split(batch[name], size)) for name, size in split.items()}


def unsplit_pixel_values_by_grid(batch: Columns) -> Columns:
    """What `split_pixel_values_by_grid` split, in one tensor a column again."""
    names = ("pixel_values", *_BY_IMAGE, *_BY_TILE)
    lists = {name: batch[name] for name in names if isinstance(batch.get(name), list)}
    return batch | {name: torch.cat(value) for name, value in lists.items()}
