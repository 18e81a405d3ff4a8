"""Triton: one token a row, with the noise, filters and ties that fastrl.ops.sample defines.

A program takes a row through a few passes: the largest logit; where there are filters, a search for
the threshold, two bits of it a pass; then sums and the argmax of d + noise. Products and sums must
not be fused (`enable_fp_fusion=False`): the noise and the weights have the reference's bits.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024  # groups of four tokens at once
_GROUPS = 256  # of the noise alone

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def _random_words(group, seed, step):
    """Philox4x32-10: the words of tokens 4 * group to 4 * group + 3."""
    c0 = group.to(tl.uint32)
    c1 = tl.zeros_like(c0) + (step & 0xFFFFFFFF).to(tl.uint32)
    c2 = tl.zeros_like(c0) + ((step >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c3 = tl.zeros_like(c0)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    factor0 = tl.full((), 0xD2511F53, tl.uint32)
    factor1 = tl.full((), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(factor0, c0)
        low0 = factor0 * c0
        high1 = tl.umulhi(factor1, c2)
        low1 = factor1 * c2
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _log(x):
    """Natural logarithm, every operation rounded on its own."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    poly = f * -0.0790274366736412 + 0.12622319161891937
    poly = poly * f + -0.12998183071613312
    poly = poly * f + 0.14214496314525604
    poly = poly * f + -0.166412815451622
    poly = poly * f + 0.20001044869422913
    poly = poly * f + -0.25000306963920593
    poly = poly * f + 0.3333333134651184
    square = f * f
    count = exponent.to(tl.float32)
    tail = (square * f * poly + count * -2.12194440e-4) - square * 0.5
    return (f + tail) + count * 0.693359375


@triton.jit
def _gumbel(word):
    u = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    u = tl.minimum(u, 0.99999994)  # 1 - 2^-24
    rest = 1.0 - u
    lost = (1.0 - rest) - u
    return -_log(-(_log(rest) + lost))


@triton.jit
def _weight(d):
    """floor(2^40 exp(d)) as int64."""
    y = tl.maximum(d, -40.0) * 1.4426950216293335
    whole = tl.floor(y + 0.5)
    f = y - whole
    poly = f * 0.00015453163359779865 + 0.0013390863314270973
    poly = poly * f + 0.009618083015084267
    poly = poly * f + 0.055503569543361664
    poly = poly * f + 0.24022650718688965
    poly = poly * f + 0.6931471824645996
    poly = poly * f + 1.0
    scale = ((whole.to(tl.int32) + 167) << 23).to(tl.float32, bitcast=True)
    return (poly * scale).to(tl.int64)


@triton.jit
def _load_d(row, token, vocab, largest, rate):
    x = tl.load(row + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    return (x - largest) * rate


@triton.jit
def _largest_logit(row, vocab, BLOCK: tl.constexpr):
    """The largest logit, and how many are NaN."""
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    bad = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        x = tl.load(row + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
        bad += (x != x).to(tl.int32)
        largest = tl.maximum(largest, tl.where(x != x, float("-inf"), x))
    return tl.max(largest, axis=0), tl.sum(bad, axis=0)


@triton.jit
def _sums_below(
    row, vocab, largest, rate, least, one, two, three, WEIGH: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums of the kept tokens' weights (or of 1) below three keys; the key of d is -d's bits."""
    sum1 = tl.zeros((BLOCK,), tl.int64)
    sum2 = tl.zeros((BLOCK,), tl.int64)
    sum3 = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        d = _load_d(row, token, vocab, largest, rate)
        key = tl.abs(d).to(tl.uint32, bitcast=True)
        amount = _weight(d) if WEIGH else tl.full((BLOCK,), 1, tl.int64)
        amount = tl.where((d >= least) & (token < vocab), amount, 0)
        sum1 += tl.where(key < one, amount, 0)
        sum2 += tl.where(key < two, amount, 0)
        sum3 += tl.where(key < three, amount, 0)
    return tl.sum(sum1, axis=0), tl.sum(sum2, axis=0), tl.sum(sum3, axis=0)


@triton.jit
def _threshold(row, vocab, largest, rate, least, limit, WEIGH: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest d such that the sum over all larger ones is below the limit."""
    found = tl.full((), 0, tl.uint32)
    unit = tl.full((), 1, tl.uint32)
    for step in range(16):
        shift = (tl.full((), 30, tl.int32) - 2 * step).to(tl.uint32)
        one = found + (unit << shift)
        two = one + (unit << shift)
        three = two + (unit << shift)
        sum1, sum2, sum3 = _sums_below(
            row, vocab, largest, rate, least, one, two, three, WEIGH, BLOCK
        )
        below = (sum1 < limit).to(tl.uint32) + (sum2 < limit) + (sum3 < limit)
        found += below.to(tl.uint32) << shift
    reached = found < tl.full((), 0xFF800000, tl.uint32)  # else all of them stay below the limit
    return tl.where(reached, -(found.to(tl.float32, bitcast=True)), least)


@triton.jit
def _draw(row, vocab, largest, rate, least, seed, step, GREEDY: tl.constexpr, BLOCK: tl.constexpr):
    """The token, and the sums of exp(d) but of one d = 0 over all and over the kept tokens."""
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.full((BLOCK,), 0, tl.int32)
    full = tl.zeros((BLOCK,), tl.float32)
    kept = tl.zeros((BLOCK,), tl.float32)
    peaks = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, tl.cdiv(vocab, 4), BLOCK):
        group = start + tl.arange(0, BLOCK)
        words = _random_words(group, seed, step)
        for i in tl.static_range(4):
            token = 4 * group + i
            d = _load_d(row, token, vocab, largest, rate)
            on = d >= least
            share = tl.where(d < 0.0, tl.exp(d), 0.0)
            full += share
            kept += tl.where(on, share, 0.0)
            peaks += (d == 0.0).to(tl.int32)
            score = d if GREEDY else d + _gumbel(words[i])
            better = on & (token < vocab) & (score > best)
            best = tl.where(better, score, best)
            where = tl.where(better, token, where)
    top = tl.max(best, axis=0)
    token = tl.min(tl.where(best == top, where, vocab), axis=0)
    rest = tl.sum(peaks, axis=0).to(tl.float64) - 1.0
    full_sum = tl.sum(full.to(tl.float64), axis=0) + rest
    return token, full_sum, tl.sum(kept.to(tl.float64), axis=0) + rest


@triton.jit
def _log1p(x):
    """For fp64 x >= 0, without a library function."""
    return tl.where(x < 1e-5, x * (1.0 - x * (0.5 - x / 3.0)), tl.log(1.0 + x))


@triton.jit(do_not_specialize=["vocab", "top_k", "top_p_bits"])
def _sample_rows(
    logits,
    seeds,
    steps,
    tokens,
    logp_out,
    logp_full_out,
    vocab,
    rate,
    top_k,
    top_p_bits,
    min_d,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * vocab
    largest, bad = _largest_logit(row, vocab, BLOCK)
    possible = (bad == 0) & (tl.abs(largest) < float("inf"))
    least = tl.full((), float("-inf"), tl.float32)
    if possible:
        if TOP_K:
            least = _threshold(row, vocab, largest, rate, least, top_k, False, BLOCK)
        if TOP_P:
            every = tl.full((), 0xFFFFFFFF, tl.uint32)
            total, _, _ = _sums_below(
                row, vocab, largest, rate, least, every, every, every, True, BLOCK
            )
            top_p = top_p_bits.to(tl.float64, bitcast=True)
            limit = tl.maximum((total.to(tl.float64) * top_p).to(tl.int64), 1)
            least = _threshold(row, vocab, largest, rate, least, limit, True, BLOCK)
    least = tl.maximum(least, min_d)
    seed = tl.load(seeds + r)
    step = tl.load(steps + r)
    token, full, kept = _draw(row, vocab, largest, rate, least, seed, step, GREEDY, BLOCK)
    token = tl.where(possible, token, 0)
    chosen = _load_d(row, token, vocab, largest, rate).to(tl.float64)
    logp_full = (chosen - _log1p(full)).to(tl.float32)
    logp = (chosen - _log1p(kept)).to(tl.float32)
    if GREEDY:
        logp = tl.full((), 0.0, tl.float32)
    tl.store(tokens + r, token.to(tl.int64))
    tl.store(logp_out + r, tl.where(possible, logp, float("nan")))
    tl.store(logp_full_out + r, tl.where(possible, logp_full, float("nan")))


@triton.jit(do_not_specialize=["vocab", "blocks"])
def _noise_rows(seeds, steps, out, vocab, blocks, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    r = (program // blocks).to(tl.int64)
    group = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    words = _random_words(group, tl.load(seeds + r), tl.load(steps + r))
    for i in tl.static_range(4):
        token = 4 * group + i
        tl.store(out + r * vocab + token, _gumbel(words[i]), mask=token < vocab)


def noise(seeds: torch.Tensor, steps: torch.Tensor, vocab: int) -> torch.Tensor:
    """(B, vocab) fp32; see fastrl.ops.gumbel_noise."""
    out = torch.empty(len(seeds), vocab, dtype=torch.float32, device=seeds.device)
    blocks = triton.cdiv(vocab, 4 * _GROUPS)
    if len(seeds):
        with torch.cuda.device_of(seeds):
            _noise_rows[(len(seeds) * blocks,)](
                seeds, steps, out, vocab, blocks, BLOCK=_GROUPS, enable_fp_fusion=False
            )
    return out


def forward(
    logits: torch.Tensor,
    seeds: torch.Tensor,
    steps: torch.Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> Three:
    """tokens, logp, logp_full (B,); see fastrl.ops.sample."""
    rows, vocab = logits.shape
    tokens = torch.empty_like(seeds)
    logp, logp_full = (
        torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2)
    )
    greedy = temperature == 0
    # A Python float would arrive as fp32, but the limit is a product in fp64: hand over its bits.
    top_p_bits = struct.unpack("q", struct.pack("d", max(top_p, 1e-300)))[0]
    options: dict[str, Any] = {
        "TOP_K": 0 < top_k < vocab and not greedy,
        "TOP_P": top_p < 1.0 and not greedy,
        "GREEDY": greedy,
    }
    if rows:
        with torch.cuda.device_of(logits):
            _sample_rows[(rows,)](
                logits,
                seeds,
                steps,
                tokens,
                logp,
                logp_full,
                vocab,
                1.0 if greedy else 1.0 / temperature,
                top_k,
                top_p_bits,
                math.log(min_p) if min_p > 0 and not greedy else -math.inf,
                BLOCK=BLOCK,
                num_warps=8,
                enable_fp_fusion=False,
                **options,
            )
    return tokens, logp, logp_full
