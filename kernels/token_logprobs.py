"""Triton: log-probability of the target and entropy of each row of logits, and their gradients.

A program sums a share of a row: the largest logit of a block of columns first, then one rescale of
the running sums for the whole block. The target's column is left out of the sums, so that 1 - p
keeps its digits. Few rows are split over several programs; a second kernel merges the shares in
order. Lengths, strides and temperature are run-time numbers that no variant is compiled for, and
the blocks of a row begin at multiples of 16 elements of memory, so that any stride is read in
vectors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 4096  # columns at once
SPLITS = 64  # shares of a row, at most
_LEAST_SHARE = 8192
_ROWS_AT_ONCE = 528  # programs that keep every processor of a large GPU busy
_LOG2E = 1.4426950408889634

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def _log1p(x):
    """For fp64 x >= 0, without a library function."""
    return tl.where(x < 1e-5, x * (1.0 - x * (0.5 - x / 3.0)), tl.log(1.0 + x))


@triton.jit
def _add_block(x, slope, top, exp_sum, exp_dist):
    """Running sums (one per lane) after a block; columns to be left out are -inf."""
    higher = tl.maximum(top, tl.max(x, axis=0))
    ref = tl.where(higher == float("-inf"), 0.0, higher)
    shift = tl.where(top == float("-inf"), 0.0, (top - ref) * slope)
    scale = tl.where(top == float("-inf"), 0.0, tl.exp2(shift))
    exp_dist = tl.where(scale > 0.0, scale * (exp_dist + exp_sum * shift), 0.0)
    exp_sum = exp_sum * scale
    d = (x - ref) * slope
    e = tl.exp2(d)
    # Nothing where e is nothing: 0 * -inf must not be formed. NaN stays in exp_sum.
    exp_dist += tl.where(e > 0.0, e * d, 0.0)
    return higher, exp_sum + e, exp_dist


@triton.jit
def _sum_columns(logits, begin, end, target, slope, BLOCK: tl.constexpr):
    """max, sum of 2^d and sum of 2^d d over the elements [begin, end) but `target`."""
    lanes = tl.arange(0, BLOCK)
    top = float("-inf")
    exp_sum = tl.zeros([BLOCK], tl.float32)
    exp_dist = tl.zeros([BLOCK], tl.float32)
    aligned = tl.cdiv(begin, 16) * 16
    head = begin + tl.arange(0, 16)
    few = tl.load(logits + head, mask=head < tl.minimum(aligned, end), other=float("-inf"))
    few = tl.where(head == target, float("-inf"), few.to(tl.float32))
    nothing = tl.zeros([16], tl.float32)
    top, few_sum, few_dist = _add_block(few, slope, top, nothing, nothing)
    exp_sum += tl.where(lanes == 0, tl.sum(few_sum, axis=0), 0.0)
    exp_dist += tl.where(lanes == 0, tl.sum(few_dist, axis=0), 0.0)
    blocks = (tl.maximum(end - aligned, 0) // BLOCK).to(tl.int32)
    for block in range(blocks):
        at = aligned + block * BLOCK + lanes
        x = tl.load(logits + at).to(tl.float32)
        x = tl.where(at == target, float("-inf"), x)
        top, exp_sum, exp_dist = _add_block(x, slope, top, exp_sum, exp_dist)
    at = aligned + blocks * BLOCK + lanes
    x = tl.load(logits + at, mask=at < end, other=float("-inf")).to(tl.float32)
    x = tl.where(at == target, float("-inf"), x)
    top, exp_sum, exp_dist = _add_block(x, slope, top, exp_sum, exp_dist)
    return top, tl.sum(exp_sum, axis=0), tl.sum(exp_dist, axis=0)


@triton.jit(do_not_specialize=["vocab", "row_stride", "splits", "share"])
def _forward_shares(
    logits, targets, sums, vocab, row_stride, splits, share, slope, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    row = (program // splits).to(tl.int64)
    start = row * row_stride
    begin = tl.minimum((program % splits) * share, vocab)
    end = tl.minimum(begin + share, vocab)
    target = tl.load(targets + row)
    column = tl.where((target >= 0) & (target < vocab), start + target, -1)
    top, exp_sum, exp_dist = _sum_columns(logits, start + begin, start + end, column, slope, BLOCK)
    mine = sums + program.to(tl.int64) * 3
    tl.store(mine, top)
    tl.store(mine + 1, exp_sum)
    tl.store(mine + 2, exp_dist)


@triton.jit
def _scores(peak, mass, spread, x, temperature):
    """logp, entropy and lse in fp64, from the others' sums and the target's logit x."""
    x = tl.where(x == float("inf"), float("nan"), x)
    z = x / temperature
    lead = (x - peak) / temperature
    # Differences first: logits near the end of the range would swallow the logarithm.
    gap = tl.where(mass == 0.0, float("-inf") - z, tl.log(mass) - lead)
    rest = _log1p(tl.exp(-tl.abs(gap)))
    logp = tl.where(gap > 0.0, -gap - rest, -rest)
    lse = tl.where(gap > 0.0, peak / temperature + tl.log(mass), z) + rest
    small = tl.exp(-tl.abs(lead))
    # Relative to the target where it is the largest, else to the largest of the others.
    beside = mass * small
    spread_beside = tl.where(beside > 0.0, small * (spread - mass * lead), beside)
    at_target = _log1p(beside) - spread_beside / (1.0 + beside)
    whole = mass + small
    mine = tl.where(small > 0.0, small * lead, 0.0)
    at_others = tl.log(whole) - (spread + mine) / whole
    entropy = tl.where(lead >= 0.0, at_target, at_others)
    return logp, tl.where(entropy < 0.0, 0.0, entropy), lse


@triton.jit(do_not_specialize=["vocab", "row_stride", "splits"])
def _finish_rows(
    logits,
    targets,
    sums,
    logp_out,
    entropy_out,
    lse_out,
    vocab,
    row_stride,
    splits,
    temperature,
    SPLITS: tl.constexpr,
):
    """From the shares of a row to its results."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, SPLITS)
    here = lanes < splits
    share = sums + (row * splits + lanes) * 3
    tops = tl.load(share, mask=here, other=float("-inf"))
    exp_sums = tl.load(share + 1, mask=here, other=0.0).to(tl.float64)
    exp_dists = tl.load(share + 2, mask=here, other=0.0).to(tl.float64)
    slope = 1.4426950408889634 / temperature
    top = tl.max(tops, axis=0)
    shift = tl.where(tops == float("-inf"), 0.0, (tops - top).to(tl.float64) * slope)
    scale = tl.where(tops == float("-inf"), 0.0, tl.exp(shift * 0.6931471805599453))
    mass = tl.sum(tl.where(here, exp_sums * scale, 0.0), axis=0)
    dist = tl.where(scale > 0.0, scale * (exp_dists + exp_sums * shift), 0.0)
    spread = tl.sum(dist, axis=0) * 0.6931471805599453
    target = tl.load(targets + row)
    valid = (target >= 0) & (target < vocab)
    x = tl.load(logits + row * row_stride + target, mask=valid, other=float("nan"))
    logp, entropy, lse = _scores(top.to(tl.float64), mass, spread, x.to(tl.float64), temperature)
    tl.store(logp_out + row, logp.to(tl.float32))
    tl.store(entropy_out + row, entropy.to(tl.float32))
    tl.store(lse_out + row, lse.to(tl.float32))


def _splits(rows: int, vocab: int) -> tuple[int, int]:
    """How many programs share a row, and the columns of each."""
    if rows * 2 >= _ROWS_AT_ONCE:
        return 1, vocab
    splits = min(triton.cdiv(_ROWS_AT_ONCE, rows), triton.cdiv(vocab, _LEAST_SHARE), SPLITS)
    return splits, triton.cdiv(triton.cdiv(vocab, splits), 16) * 16


def forward(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Three:
    """logp, entropy, lse (N,) of logits (N, V); see fastrl.ops.token_logprobs."""
    rows, vocab = logits.shape
    logp, entropy, lse = (
        torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3)
    )
    if rows == 0:
        return logp, entropy, lse
    splits, share = _splits(rows, vocab)
    sums = torch.empty(rows * splits * 3, dtype=torch.float32, device=logits.device)
    slope = _LOG2E / temperature
    stride = logits.stride(0)
    with torch.cuda.device_of(logits):
        _forward_shares[(rows * splits,)](
            logits, targets, sums, vocab, stride, splits, share, slope, BLOCK=BLOCK, num_warps=8
        )
        _finish_rows[(rows,)](
            logits,
            targets,
            sums,
            logp,
            entropy,
            lse,
            vocab,
            stride,
            splits,
            temperature,
            SPLITS=SPLITS,
            num_warps=1,
        )
    return logp, entropy, lse


@triton.jit
def _anchor(logits, start, end, column, x_target, lse, temperature, slope, BLOCK: tl.constexpr):
    """ref and offset (fp64) with log p = (x - ref) / temperature + offset; ref is a float."""
    ref = (lse * temperature).to(tl.float32).to(tl.float64)
    offset = ref / temperature - lse
    # Above 64 an fp32 log-sum-exp has lost digits that the gradient wants: it is summed again.
    if not (tl.abs(lse) <= 64.0):
        top, exp_sum, _ = _sum_columns(logits, start, end, column, slope, BLOCK)
        peak = top.to(tl.float64)
        ref = tl.maximum(peak, x_target)
        total = tl.exp((x_target - ref) / temperature)
        gap = tl.where(top == float("-inf"), 0.0, (peak - ref) / temperature)
        total += tl.where(top == float("-inf"), 0.0, exp_sum.to(tl.float64) * tl.exp(gap))
        offset = -tl.log(total)
    return ref, offset


@triton.jit
def _gradient_block(x, ref, slope, flat, steep, counts):
    """2^d and 2^d * (flat + steep * d), which is the gradient of every column but the target's."""
    d = (x - ref) * slope
    e = tl.exp2(d)
    gradient = tl.where(e == 0.0, 0.0 * flat, e * (flat + steep * d))  # never 0 * -inf
    return e, tl.where(counts, gradient, 0.0)


@triton.jit
def _gradient_columns(
    logits, out, start, end, move, column, ref, slope, flat, steep, counts, BLOCK: tl.constexpr
):
    """Writes the elements [start, end), the target's as 0; returns the sum of 2^d."""
    kind = out.dtype.element_ty
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    aligned = tl.cdiv(start, 16) * 16
    head = start + tl.arange(0, 16)
    inside = head < tl.minimum(aligned, end)
    few = tl.load(logits + head, mask=inside, other=float("-inf")).to(tl.float32)
    few = tl.where(head == column, float("-inf"), few)
    tl.debug_barrier()  # out may be the logits, and several warps have read these few
    few_sum, few_gradient = _gradient_block(few, ref, slope, flat, steep, counts)
    tl.store(out + (move + head), few_gradient.to(kind), mask=inside)
    blocks = (tl.maximum(end - aligned, 0) // BLOCK).to(tl.int32)
    for block in range(blocks):
        at = aligned + block * BLOCK + lanes
        x = tl.load(logits + at).to(tl.float32)
        x = tl.where(at == column, float("-inf"), x)
        e, gradient = _gradient_block(x, ref, slope, flat, steep, counts)
        total += e
        tl.store(out + (move + at), gradient.to(kind))
    at = aligned + blocks * BLOCK + lanes
    x = tl.load(logits + at, mask=at < end, other=float("-inf")).to(tl.float32)
    x = tl.where(at == column, float("-inf"), x)
    e, gradient = _gradient_block(x, ref, slope, flat, steep, counts)
    tl.store(out + (move + at), gradient.to(kind), mask=at < end)
    return tl.sum(total + e, axis=0) + tl.sum(few_sum, axis=0)


@triton.jit(do_not_specialize=["vocab", "row_stride", "gap"])
def _backward_rows(
    logits,
    targets,
    lse_in,
    entropy_in,
    grad_logp,
    grad_entropy,
    anchors,
    out,
    vocab,
    row_stride,
    gap,
    temperature,
    slope,
    UNIT: tl.constexpr,
    HAS_LOGP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All columns but the target's (left 0); what the target needs goes to `anchors` (N, 4).

    The rows of `out` are gap * UNIT elements farther apart than those of the logits.
    """
    row = tl.program_id(0).to(tl.int64)
    g = tl.full((), 0.0, tl.float64)
    h = tl.full((), 0.0, tl.float64)
    entropy = tl.full((), 0.0, tl.float64)
    if HAS_LOGP:
        g = tl.load(grad_logp + row).to(tl.float64)
    if HAS_ENTROPY:
        h = tl.load(grad_entropy + row).to(tl.float64)
        entropy = tl.load(entropy_in + row).to(tl.float64)
    counts = (g != 0.0) | (h != 0.0)  # a row without gradients is 0 even where it holds NaN
    target = tl.load(targets + row)
    valid = (target >= 0) & (target < vocab)
    start = row * row_stride
    end = start + vocab
    column = tl.where(valid, start + target, -1)
    x_target = tl.load(logits + column, mask=valid, other=float("nan")).to(tl.float64)
    lse = tl.load(lse_in + row).to(tl.float64)
    ref, offset = _anchor(logits, start, end, column, x_target, lse, temperature, slope, BLOCK)
    factor = tl.where(valid, tl.exp(offset), float("nan"))
    flat = (-factor / temperature * (g + h * (offset + entropy))).to(tl.float32)
    steep = (-factor / temperature * h * 0.6931471805599453).to(tl.float32)
    tl.debug_barrier()  # out may be the logits: every warp has read the target's before any writes
    move = row * gap * UNIT  # from a place in logits to one in out
    total = _gradient_columns(
        logits, out, start, end, move, column, ref.to(tl.float32), slope, flat, steep, counts, BLOCK
    )
    mine = anchors + row * 4
    tl.store(mine, total.to(tl.float64) * factor)
    tl.store(mine + 1, (x_target - ref) / temperature + offset)
    tl.store(mine + 2, g)
    tl.store(mine + 3, h)


@triton.jit(do_not_specialize=["rows", "vocab", "out_stride"])
def _write_targets(
    targets, entropy_in, anchors, out, rows, vocab, out_stride, temperature, BLOCK: tl.constexpr
):
    """The targets' own columns, in a kernel of its own: after the rows have been written."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = row < rows
    target = tl.load(targets + row, mask=here, other=-1)
    here = here & (target >= 0) & (target < vocab)
    others = tl.load(anchors + row * 4, mask=here, other=0.0)
    far = tl.load(anchors + row * 4 + 1, mask=here, other=0.0)
    g = tl.load(anchors + row * 4 + 2, mask=here, other=0.0)
    h = tl.load(anchors + row * 4 + 3, mask=here, other=0.0)
    entropy = tl.load(entropy_in + row, mask=here, other=0.0).to(tl.float64)
    # log(1 - others), with the digits of small `others`.
    small = tl.where(others < 0.5, others, 0.0)
    series = -small * (1.0 + small * (0.5 + small / 3.0))
    near = tl.where(small < 1e-5, series, tl.log(1.0 - small))
    logp = tl.where(others < 0.5, near, far)
    p = tl.exp(logp)
    result = g * others - tl.where((h != 0.0) & (p > 0.0), h * p * (logp + entropy), 0.0)
    result = tl.where((g != 0.0) | (h != 0.0), result / temperature, 0.0)
    tl.store(
        out + (row * out_stride + target), result.to(tl.float32).to(out.dtype.element_ty), mask=here
    )


def backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    entropy: torch.Tensor,
    grad_logp: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    temperature: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """d logits (N, V); `out` may be the logits. See fastrl.ops.token_logprobs."""
    if out is None:
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    rows, vocab = logits.shape
    if rows == 0:
        return out
    anchors = torch.empty(rows, 4, dtype=torch.float64, device=logits.device)
    gap = out.stride(0) - logits.stride(0)
    unit = 16 if gap % 16 == 0 else 1  # 16: the compiler knows that stores are aligned as loads are
    with torch.cuda.device_of(logits):
        _backward_rows[(rows,)](
            logits,
            targets,
            lse,
            entropy,
            lse if grad_logp is None else grad_logp,
            lse if grad_entropy is None else grad_entropy,
            anchors,
            out,
            vocab,
            logits.stride(0),
            gap // unit,
            temperature,
            _LOG2E / temperature,
            UNIT=unit,
            HAS_LOGP=grad_logp is not None,
            HAS_ENTROPY=grad_entropy is not None,
            BLOCK=BLOCK,
            num_warps=8,
        )
        _write_targets[(triton.cdiv(rows, 128),)](
            targets, entropy, anchors, out, rows, vocab, out.stride(0), temperature, BLOCK=128
        )
    return out
