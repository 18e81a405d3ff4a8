"""Triton: masked whitening in two kernels, without a wait for the host.

Each program of the first kernel finds count, mean and sum of squared distances of its share (Chan
et al. 1979); each program of the second combines all shares in the same order and writes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrl.ops.whiten import EPSILON

BLOCK = 4096  # elements at once
SHARES = 1024  # programs of a kernel, at most


@triton.jit
def _merge(count, mean, square, x, on):
    """Count, mean and sum of squared distances after a block; one without elements adds nothing."""
    more = tl.sum(on.to(tl.float32), axis=0)
    its_mean = tl.sum(tl.where(on, x, 0.0), axis=0) / tl.maximum(more, 1.0)
    gaps = tl.where(on, x - its_mean, 0.0)
    both = tl.maximum(count + more, 1.0)
    gap = its_mean - mean
    square += tl.sum(gaps * gaps, axis=0) + gap * gap * (count * more / both)
    return count + more, mean + gap * (more / both), square


@triton.jit(do_not_specialize=["n"])
def _find_moments(x_in, mask_in, shares, n, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    count = 0.0
    mean = 0.0
    square = 0.0
    whole = n // BLOCK
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for _ in range(program, whole, programs):
        x = tl.load(x_in + at)
        on = tl.load(mask_in + at) != 0
        count, mean, square = _merge(count, mean, square, x, on)
        at += programs.to(tl.int64) * BLOCK
    if program == whole % programs:  # what is left of a block
        on = tl.load(mask_in + at, mask=at < n, other=0) != 0
        x = tl.load(x_in + at, mask=at < n, other=0.0)
        count, mean, square = _merge(count, mean, square, x, on)
    mine = shares + program * 3
    tl.store(mine, count.to(tl.float64))
    tl.store(mine + 1, mean.to(tl.float64))
    tl.store(mine + 2, square.to(tl.float64))


@triton.jit(do_not_specialize=["n", "count"])
def _apply(
    x_in,
    shares,
    out,
    n,
    count,
    epsilon,
    SHIFT_MEAN: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.arange(0, SHARES)
    here = lanes < count
    counts = tl.load(shares + lanes * 3, mask=here, other=0.0)
    means = tl.load(shares + lanes * 3 + 1, mask=here, other=0.0)
    squares = tl.load(shares + lanes * 3 + 2, mask=here, other=0.0)
    total = tl.sum(counts, axis=0)
    mean = tl.sum(counts * means, axis=0) / total  # NaN if nothing counts
    gaps = means - mean
    square = tl.sum(squares + tl.where(counts > 0.0, counts * gaps * gaps, 0.0), axis=0)
    variance = square / (total - 1.0)  # one element: 0 / 0, NaN as in TRL
    factor = (1.0 / tl.sqrt(variance + epsilon)).to(tl.float32)
    centre = mean.to(tl.float32)
    back = centre * 0.0 if SHIFT_MEAN else centre
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    whole = n // BLOCK
    if program == 0:
        rest = whole.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_in + rest, mask=rest < n, other=0.0)
        tl.store(out + rest, (x - centre) * factor + back, mask=rest < n)
    # From the end, where the first kernel has left its data in the cache.
    at = (whole - 1 - program).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for _ in range(program, whole, programs):
        x = tl.load(x_in + at)
        tl.store(out + at, (x - centre) * factor + back)
        at -= programs.to(tl.int64) * BLOCK


def forward(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool) -> torch.Tensor:
    """The shape of x; see fastrl.ops.whiten."""
    out = torch.empty_like(x)
    n = x.numel()
    if n == 0:
        return out
    count = min(triton.cdiv(n, BLOCK), SHARES)
    shares = torch.empty(count, 3, dtype=torch.float64, device=x.device)
    with torch.cuda.device_of(x):
        _find_moments[(count,)](x, mask.view(torch.uint8), shares, n, BLOCK=BLOCK, num_warps=8)
        _apply[(count,)](
            x,
            shares,
            out,
            n,
            count,
            EPSILON,
            SHIFT_MEAN=shift_mean,
            SHARES=SHARES,
            BLOCK=BLOCK,
            num_warps=8,
        )
    return out
