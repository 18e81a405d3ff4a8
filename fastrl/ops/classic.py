"""The tensor functions of TRL's `core` and `trainer.utils`, on the operations of this package."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch.nn import functional

from fastrl.ops._inputs import (
    computing_dtype,
    require_floating,
    require_positive,
    require_whole,
)
from fastrl.ops.token_logprobs import token_logprobs
from fastrl.ops.whiten import whiten as whiten_counted

Bound = torch.Tensor | float


def logprobs_from_logits(
    logits: torch.Tensor, labels: torch.Tensor, gather: bool = True
) -> torch.Tensor:
    """Log-probabilities of the labels, or of every token.

    Args:
        logits: (B, T, V) floating point.
        labels: (B, T) integers in [0, V); not read without `gather`.
        gather: False for all V of them.

    Returns:
        (B, T), or (B, T, V) without `gather`; fp32 (fp64 for fp64 logits), differentiable.

    Raises:
        TypeError, ValueError: as `fastrl.ops.token_logprobs`.
    """
    if gather:
        return token_logprobs(logits, labels)[0]
    require_floating("logits", logits)
    return torch.log_softmax(logits, dim=-1, dtype=computing_dtype(logits))


def entropy_from_logits(logits: torch.Tensor, chunk_size: int = 128) -> torch.Tensor:
    """Entropy in nats of softmax(logits) over the last dimension.

    Args:
        logits: (..., V) floating point.
        chunk_size: distributions computed at a time, at least 1; only memory depends on it.

    Returns:
        (...), fp32 (fp64 for fp64 logits), differentiable.

    Raises:
        TypeError, ValueError: logits are not floating point or have no V; chunk_size below 1.
    """
    rows = require_floating("logits", logits)[..., 0].numel()
    size = require_whole("chunk_size", chunk_size, 1)
    if rows <= size:
        any_token = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
        return token_logprobs(logits, any_token)[1]
    # Parts are views: logits may be a slice, which to flatten would be to copy.
    each = rows // len(logits)
    if each > size:
        return torch.stack([entropy_from_logits(part, size) for part in logits])
    parts = logits.split(size // each)
    return torch.cat([entropy_from_logits(part, size) for part in parts])


def _kept(row_mask: torch.Tensor | None, index: torch.Tensor) -> torch.Tensor:
    """The index, 0 in rows that are skipped, whose own may be no token at all."""
    if row_mask is None:
        return index
    if row_mask.shape != index.shape:
        raise ValueError(
            f"row_mask must have the shape of index, {tuple(index.shape)}, not "
            f"{tuple(row_mask.shape)}"
        )
    return index.masked_fill(row_mask == 0, 0)


def _skipped(values: torch.Tensor, row_mask: torch.Tensor | None) -> torch.Tensor:
    return values if row_mask is None else values.masked_fill(row_mask == 0, 0.0)


def selective_log_softmax(
    logits: torch.Tensor,
    index: torch.Tensor,
    temperature: float = 1.0,
    row_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probabilities of chosen tokens under softmax(logits / temperature).

    Args:
        logits: (..., V) floating point.
        index: (...) or (..., K) integers in [0, V), for one or K tokens of each distribution.
        temperature: positive.
        row_mask: the shape of index; where it is 0 the index is not read and the result is 0.

    Returns:
        the shape of index, fp32 (fp64 for fp64 logits), differentiable.

    Raises:
        TypeError, ValueError: as `fastrl.ops.token_logprobs`, or for a mask of another shape.
    """
    index = _kept(row_mask, index)
    if index.dim() < logits.dim():
        return _skipped(token_logprobs(logits, index, temperature)[0], row_mask)
    scale = require_positive("temperature", temperature)
    require_floating("logits", logits)
    logps = torch.log_softmax(logits / scale, dim=-1, dtype=computing_dtype(logits))
    return _skipped(logps.gather(-1, index), row_mask)


def selective_log_softmax_and_entropy(
    logits: torch.Tensor,
    index: torch.Tensor,
    entropy_requires_grad: bool = True,
    temperature: float = 1.0,
    row_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of a token and entropy in nats, from one sweep over the logits.

    Args:
        logits: (..., V) floating point.
        index: (...) integers in [0, V).
        entropy_requires_grad: False for an entropy without gradient.
        temperature, row_mask: as in `selective_log_softmax`.

    Returns:
        two tensors (...), fp32 (fp64 for fp64 logits).

    Raises:
        TypeError, ValueError: as `selective_log_softmax`.
    """
    logp, entropy = token_logprobs(logits, _kept(row_mask, index), temperature)
    if not entropy_requires_grad:
        entropy = entropy.detach()
    return _skipped(logp, row_mask), _skipped(entropy, row_mask)


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, axis: int | Sequence[int] | None = None
) -> torch.Tensor:
    """Mean of the values that the mask counts, over an axis or all; NaN where it counts none.

    Args:
        values: any shape; what the mask leaves out may be NaN.
        mask: a shape that broadcasts to it, bool, 0/1 or weights.
        axis: dimension(s) of the mean; None: all.
    """
    values, mask = torch.broadcast_tensors(values, mask)
    counted = torch.where(mask == 0, 0.0, values * mask)
    if axis is None:
        return counted.sum() / mask.sum()
    return counted.sum(dim=axis) / mask.sum(dim=axis)


def masked_var(values: torch.Tensor, mask: torch.Tensor, unbiased: bool = True) -> torch.Tensor:
    """Scalar variance of the values that the mask counts; unbiased, NaN for a single one.

    Args:
        values, mask: as in `masked_mean`.
        unbiased: divide by n - 1 instead of n.

    Raises:
        ValueError: the mask counts nothing and the variance is to be unbiased.
    """
    values, mask = torch.broadcast_tensors(values, mask)
    values = torch.where(mask == 0, 0.0, values)
    spread = masked_mean((values - masked_mean(values, mask)).square(), mask)
    if not unbiased:
        return spread
    count = mask.sum()
    if count == 0:
        raise ValueError(
            "the mask counts no value, so there is no variance; a larger mini_batch_size or "
            "gradient_accumulation_steps leaves fewer batches without any"
        )
    return spread * (count / (count - 1))


def whiten(values: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """`fastrl.ops.whiten` over all values, any shape; fp32 (fp64 for fp64 values)."""
    return whiten_counted(values, torch.ones_like(values, dtype=torch.bool), shift_mean)


def masked_whiten(
    values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True
) -> torch.Tensor:
    """`fastrl.ops.whiten`: moments over what the mask counts; what it does not is scaled too."""
    return whiten_counted(values, mask, shift_mean)


def clip_by_value(x: torch.Tensor, tensor_min: Bound, tensor_max: Bound) -> torch.Tensor:
    """x, at least `tensor_min` and at most `tensor_max`, numbers or tensors that broadcast to it.

    Where the bounds cross the lower one wins.
    """
    low, high = (torch.as_tensor(bound, device=x.device) for bound in (tensor_min, tensor_max))
    return torch.maximum(torch.minimum(x, high), low)


def pad_to_size(
    tensor: torch.Tensor, size: int, dim: int = 1, padding: int = 50256
) -> torch.Tensor:
    """The tensor with `padding` behind it up to a size in one dimension; a longer one is cut."""
    missing = size - tensor.shape[dim]
    behind = [0, 0] * (tensor.dim() - 1 - dim % tensor.dim()) + [0, missing]
    return functional.pad(tensor, behind, value=padding)


def first_true_indices(bools: torch.Tensor, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """(...) of the given dtype: where in (..., T) the first True is, T where there is none."""
    width = bools.shape[-1]
    column = torch.arange(width, device=bools.device)
    absent = column.new_full((*bools.shape[:-1], 1), width)
    return torch.cat([column.where(bools.bool(), width), absent], -1).amin(-1).to(dtype)


def top_k_top_p_filtering(
    logits: torch.Tensor,
    top_k: int = 0,
    top_p: float = 1.0,
    filter_value: float = -math.inf,
    min_tokens_to_keep: int = 1,
) -> torch.Tensor:
    """Logits of which only the most probable tokens keep theirs; top_k comes first.

    Args:
        logits: (B, V) floating point.
        top_k: how many tokens stay (with those equal to the last); 0: all.
        top_p: the most probable tokens stay that together reach this probability; 1: all.
        filter_value: what the others get.
        min_tokens_to_keep: as many stay in any case.

    Returns:
        (B, V), the dtype of the logits.
    """
    if top_k > 0:
        least = logits.topk(min(max(top_k, min_tokens_to_keep), logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, filter_value)
    if top_p < 1:
        ranked, order = logits.sort(descending=True, stable=True)
        p = ranked.softmax(-1)
        beyond = p.cumsum(-1) - p >= top_p
        beyond[..., :min_tokens_to_keep] = False
        logits = logits.masked_fill(
            torch.zeros_like(beyond).scatter(-1, order, beyond), filter_value
        )
    return logits


def randn_tensor(
    shape: Sequence[int],
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> torch.Tensor:
    """Standard normal numbers; drawn on the CPU, and moved, where the generator is a CPU's.

    Args:
        shape: its first dimension is the batch.
        generator: one, or one for each row of the batch, so that a row does not depend on others.
        device, dtype, layout: of the result; None: torch's defaults (the CPU for the device).

    Raises:
        ValueError: a GPU's generator for another device, or a list of another length than the
            batch.
    """
    target = torch.device(device or "cpu")
    each = generator if isinstance(generator, list) else [generator]
    source = target if each[0] is None else each[0].device
    if source.type != target.type and source.type != "cpu":
        raise ValueError(
            f"generator is on {source} and the tensor is wanted on {target}: give one made by "
            f"torch.Generator({str(target)!r})"
        )
    if source.type != target.type != "mps":
        warnings.warn(
            f"generator is on the CPU: drawing there and moving to {target}; one made on {target} "
            "saves the copy",
            stacklevel=2,
        )
    if len(each) not in (1, shape[0]):
        raise ValueError(f"generator: {len(each)} of them for a batch of {shape[0]}")
    rows = [shape[0]] if len(each) == 1 else [1] * shape[0]
    where = target if source.type == target.type else source
    drawn = [
        torch.randn(
            (count, *shape[1:]),
            generator=one,
            device=where,
            dtype=dtype,
            layout=layout or torch.strided,
        )
        for count, one in zip(rows, each, strict=True)
    ]
    return torch.cat(drawn).to(target)


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[~tensor.isnan()]


def nanmin(tensor: torch.Tensor) -> torch.Tensor:
    """The least number among (N,), NaN if all are NaN."""
    numbers = _numbers(tensor)
    return numbers.min() if len(numbers) else tensor.new_tensor(math.nan)


def nanmax(tensor: torch.Tensor) -> torch.Tensor:
    """The largest number among (N,), NaN if all are NaN."""
    numbers = _numbers(tensor)
    return numbers.max() if len(numbers) else tensor.new_tensor(math.nan)


def nanstd(
    tensor: torch.Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False
) -> torch.Tensor:
    """Unbiased standard deviation without the NaNs, over dimension(s) or all; NaN for fewer than 2.

    Args:
        tensor: any shape, floating point.
        dim: of the deviation; None: all.
        keepdim: reduced dimensions stay, as 1.
    """
    count = (~tensor.isnan()).sum(dim=dim, keepdim=keepdim)
    mean = tensor.nanmean(dim=dim, keepdim=True)
    squares = (tensor - mean).square().nansum(dim=dim, keepdim=keepdim)
    return (squares / (count - 1).where(count > 1, math.nan)).sqrt()


def get_exp_cap(value: torch.Tensor, decimal: int = 4) -> torch.Tensor:
    """(1,), the largest x of the value's dtype whose exp is finite, cut to `decimal` digits.

    Digits that the dtype does not tell apart are rounded, never beyond what is finite.
    """
    numbers = torch.finfo(value.dtype)
    largest = math.log(numbers.max)
    cap = math.floor(largest * 10**decimal) / 10**decimal if decimal > 0 else largest
    found = torch.tensor([cap], dtype=value.dtype)
    if found.item() > largest:  # the nearest number lies above: take the one below
        gap = numbers.eps * 2.0 ** (math.frexp(largest)[1] - 1)
        found = torch.tensor([math.floor(largest / gap) * gap], dtype=value.dtype)
    return found.to(value.device)


def cap_exp(value: torch.Tensor, cap: float | torch.Tensor = -1) -> torch.Tensor:
    """exp(min(value, cap)); a negative cap is the dtype's own, so that nothing overflows."""
    most = get_exp_cap(value) if cap < 0 else torch.as_tensor(cap, device=value.device)
    return torch.minimum(value, most.to(value.dtype)).exp()
