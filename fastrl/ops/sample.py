"""Draw one token a row from logits, with noise that is the same on every backend and device.

**Noise.** Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
with key (seed mod 2^32, seed div 2^32) and counter (v div 4, step mod 2^32, step div 2^32, 0);
word v mod 4 of its output is the word x of token v. The uniform is
u = min((fp32(x) + 1/2) * 2^-32, 1 - 2^-24), in (0, 1) and fine-grained near 0; the exponential
e = -log(1 - u) and the Gumbel noise g = -log(e) use `_log`, a polynomial in single fp32 products
and sums, so that every backend gets the same bits. g is in [-2.82, 22.88]; the large values, which
decide, come from small u and keep their resolution.

**Distribution.** d = (logit - largest logit) * fp32(1 / temperature), in fp32. The token is the
first argmax of d + g over the kept tokens. Filters follow transformers' order and are thresholds on
d, so that equal d are kept or dropped together and the largest is always kept. top_k keeps d >= the
k-th largest. Of what is left, with integer weights w = floor(2^40 * exp(d)), top_p keeps a token if
the weights of the strictly larger ones sum to less than max(1, floor(top_p * total)). min_p keeps
d >= fp32(log(min_p)). Integers sum to the same in any order, so all backends keep the same tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import (
    can_ask,
    require_floating,
    require_number,
    require_tensor,
    require_whole,
)

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Philox4x32, table 2 of the paper
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

_SQRT_HALF_BITS = 0x3F3504F3
_LN2_HIGH = 0.693359375  # times a small integer: exact in fp32
_LN2_LOW = -2.12194440e-4
# Chebyshev fits, highest power first.
# Q of log(1 + f) = f - f^2/2 + f^3 Q(f) on [sqrt(1/2) - 1, sqrt(2) - 1].
_LOG = (
    -0.0790274366736412,
    0.12622319161891937,
    -0.12998183071613312,
    0.14214496314525604,
    -0.166412815451622,
    0.20001044869422913,
    -0.25000306963920593,
    0.3333333134651184,
)
# 2^f on [-1/2, 1/2].
_EXP2 = (
    0.00015453163359779865,
    0.0013390863314270973,
    0.009618083015084267,
    0.055503569543361664,
    0.24022650718688965,
    0.6931471824645996,
    1.0,
)
_LOG2_E = 1.4426950216293335
_WEIGHT_BITS = 40


def _multiply(factor: int, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of factor * words; split so that no product leaves int64."""
    low = factor * (words & 0xFFFF)
    high = factor * (words >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Philox4x32-10: 4 words of a 4-word counter and a 2-word key, all int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _KEY_STEPS[0]) & _MASK32
        k1 = (k1 + _KEY_STEPS[1]) & _MASK32
    return [c0, c1, c2, c3]


def _log(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of positive normal fp32 numbers, every operation rounded on its own."""
    bits = x.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    poly = torch.full_like(f, _LOG[0])
    for coefficient in _LOG[1:]:
        poly = poly * f + coefficient
    square = f * f
    count = exponent.float()
    tail = square * f * poly + count * _LN2_LOW - 0.5 * square
    return (f + tail) + count * _LN2_HIGH


def _gumbel(words: torch.Tensor) -> torch.Tensor:
    """Gumbel noise of random 32-bit words (int64)."""
    u = ((words.float() + 0.5) * 2.0**-32).clamp_max(1.0 - 2.0**-24)
    rest = 1.0 - u
    lost = (1.0 - rest) - u  # what the subtraction above rounded away
    return -_log(-(_log(rest) + lost))


def _weights(d: torch.Tensor) -> torch.Tensor:
    """floor(2^40 * exp(d)) of d <= 0 as int64, up to the polynomial's error."""
    y = d.clamp_min(-40.0) * _LOG2_E
    whole = torch.floor(y + 0.5)
    f = y - whole
    poly = torch.full_like(f, _EXP2[0])
    for coefficient in _EXP2[1:]:
        poly = poly * f + coefficient
    scale = ((whole.int() + (_WEIGHT_BITS + 127)) << 23).view(torch.float32)
    return (poly * scale).long()


def _threshold(d: torch.Tensor, top_k: int, top_p: float, log_min_p: float) -> torch.Tensor:
    """(B, 1) fp32: tokens with d at or above it are kept."""
    vocab = d.shape[1]
    if top_k in (0, vocab) and top_p == 1.0:
        return d.new_full((len(d), 1), log_min_p)  # nothing to sort for
    ordered = d.sort(dim=1, descending=True).values
    last = min(top_k or vocab, vocab) - 1
    within = ordered >= ordered[:, last : last + 1]
    if top_p < 1.0:
        weights = _weights(ordered) * within
        running = weights.cumsum(dim=1)
        limit = (running[:, -1:].double() * top_p).long().clamp_min(1)
        within = within & (running - weights < limit)
    smallest = ordered.gather(1, within.sum(dim=1, keepdim=True) - 1)
    return smallest.clamp_min(log_min_p)


class _Reference:
    @staticmethod
    def noise(seeds: torch.Tensor, steps: torch.Tensor, vocab: int) -> torch.Tensor:
        """(B, vocab) fp32."""
        group = torch.arange((vocab + 3) // 4, device=seeds.device)[None]
        zero = torch.zeros_like(group)
        seed, step = seeds[:, None], steps[:, None]
        counter = (group, step & _MASK32, (step >> 32) & _MASK32, zero)
        words = philox(counter, (seed & _MASK32, (seed >> 32) & _MASK32))
        return _gumbel(torch.stack(words, dim=-1).flatten(1)[:, :vocab])

    @staticmethod
    def forward(
        logits: torch.Tensor,
        seeds: torch.Tensor,
        steps: torch.Tensor,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
    ) -> Three:
        x = logits.float()
        largest = x.amax(dim=1, keepdim=True)
        bad = ~(largest.isfinite() & ~x.isnan().any(dim=1, keepdim=True))
        if can_ask(logits) and bool(bad.any()):
            raise _bad_row(int(bad.flatten().nonzero()[0]))
        d = torch.where(bad, 0.0, (x - largest) * (1.0 / temperature if temperature > 0 else 1.0))
        kept = d
        if temperature > 0:
            threshold = _threshold(d, top_k, top_p, math.log(min_p) if min_p > 0 else -math.inf)
            kept = d.masked_fill(d < threshold, -math.inf)
            score = kept + _Reference.noise(seeds, steps, d.shape[1])
        else:
            score = d
        column = torch.arange(d.shape[1], device=d.device)
        first = torch.where(score == score.amax(dim=1, keepdim=True), column, d.shape[1])
        tokens = first.amin(dim=1, keepdim=True)
        logp_full = torch.log_softmax(d.double(), dim=1).gather(1, tokens)
        logp = torch.log_softmax(kept.double(), dim=1).gather(1, tokens)
        if temperature == 0:
            logp = torch.zeros_like(logp)
        logp, logp_full = (
            p.float().masked_fill(bad, math.nan).squeeze(1) for p in (logp, logp_full)
        )
        return tokens.masked_fill(bad, 0).squeeze(1), logp, logp_full


def _bad_row(row: int) -> ValueError:
    return ValueError(
        f"logits: row {row} cannot be sampled from: it holds NaN or +inf, or nothing but -inf; "
        "check the model's output for this row"
    )


class _Cpp:
    @staticmethod
    def noise(seeds: torch.Tensor, steps: torch.Tensor, vocab: int) -> torch.Tensor:
        noise = torch.empty(seeds.shape[0], vocab, dtype=torch.float32)
        core = _native.load("cpu")
        pointers = [_native.pointer(t) for t in (seeds, steps, noise)]
        core.gumbel_noise(*pointers, *noise.shape, torch.get_num_threads())
        return noise

    @staticmethod
    def forward(
        logits: torch.Tensor,
        seeds: torch.Tensor,
        steps: torch.Tensor,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
    ) -> Three:
        tokens = torch.empty_like(seeds)
        logp, logp_full = (torch.empty(seeds.shape, dtype=torch.float32) for _ in range(2))
        bad_row = _native.load("cpu").sample(
            _native.pointer(logits),
            _native.DTYPE_CODE[logits.dtype],
            *logits.shape,
            *(_native.pointer(t) for t in (seeds, steps)),
            temperature,
            top_k,
            top_p,
            min_p,
            *(_native.pointer(t) for t in (tokens, logp, logp_full)),
            torch.get_num_threads(),
        )
        if bad_row >= 0:
            raise _bad_row(bad_row)
        return tokens, logp, logp_full


SAMPLE = Op(
    "sample",
    reference=_Reference,
    cpp=_Cpp,
    cuda="fastrl.ops._cuda:Sample",
    triton="fastrl.kernels.sample",
)

torch.library.define(
    "fastrl::sample",
    "(Tensor logits, Tensor seeds, Tensor steps, float temperature, int top_k, float top_p, "
    "float min_p) -> (Tensor, Tensor, Tensor)",
)


def _run(logits: torch.Tensor, seeds: torch.Tensor, steps: torch.Tensor, *options: Any) -> Three:
    return SAMPLE.pick(logits, seeds, steps).forward(logits, seeds, steps, *options)


torch.library.impl("fastrl::sample", "default", _run)


@torch.library.register_fake("fastrl::sample")
def _fake(logits: torch.Tensor, seeds: torch.Tensor, steps: torch.Tensor, *_: Any) -> Three:
    logp = torch.empty_like(seeds, dtype=torch.float32)
    return torch.empty_like(seeds), logp, torch.empty_like(logp)


def _checked_options(
    vocabulary: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[float, int, float, float]:
    """The options as plain numbers; a top_k over the vocabulary is no limit."""
    warmth = require_number("temperature", temperature)
    if not (warmth == 0 or 1e-30 <= warmth <= 1e30):
        raise ValueError(f"temperature must be 0 (greedy) or in [1e-30, 1e30], not {temperature}")
    most = min(require_whole("top_k", top_k, 0), vocabulary)
    shares = []
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        shares.append(require_number(name, value))
        if not 0 <= shares[-1] <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {value}")
    return warmth, most, shares[0], shares[1]


def _per_row(name: str, value: object, rows: int, device: torch.device) -> torch.Tensor:
    """(B,) int64 on the device."""
    if not isinstance(value, torch.Tensor):
        whole = require_whole(name, value, -(2**63))
        if whole >= 2**63:
            raise ValueError(f"{name} must be below 2**63, not {whole}")
        return torch.full((rows,), whole, dtype=torch.int64, device=device)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, not {value.dtype}; call {name}.long()")
    if value.shape != (rows,):
        raise ValueError(f"{name} must be ({rows},), one a row, not of shape {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, logits on {device}; move one of them")
    return value.contiguous()


def _check_logits(logits: torch.Tensor) -> torch.Tensor:
    """The logits, contiguous, in a dtype that every backend reads."""
    require_floating("logits", logits)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (B, V) with V > 0, not of shape {tuple(logits.shape)}")
    if logits.dtype not in _native.DTYPE_CODE:
        logits = logits.float()
    return logits.contiguous()


def sample(
    logits: torch.Tensor,
    seeds: torch.Tensor,
    step: int | torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one token a row; the same (seed, step, logits) give the same token on every backend.

    Args:
        logits: (B, V) floats; -inf forbids a token. Other dtypes than fp32, bf16, fp16 become fp32.
        seeds: (B,) int64, one stream of noise a row.
        step: position in the stream, an int or (B,) int64; a new one for each token drawn.
        temperature: divides the logits; 0 takes the first largest logit instead of drawing.
        top_k, top_p, min_p: filters in transformers' order (see the module); 0, 1 and 0 are off.

    Returns:
        tokens (B,) int64; logp (B,) fp32 under the filtered and renormalised distribution;
        logp_full (B,) fp32 under softmax(logits / temperature). At temperature 0 logp is 0 and
        logp_full is taken at temperature 1. Neither carries a gradient.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range. On the CPU also for
            a row with NaN, +inf or only -inf; on a GPU such a row gets token 0 and NaN for both.
    """
    logits = _check_logits(logits).detach()
    options = _checked_options(logits.shape[1], temperature, top_k, top_p, min_p)
    seeds = _per_row("seeds", require_tensor("seeds", seeds), len(logits), logits.device)
    steps = _per_row("step", step, len(logits), logits.device)
    if torch.compiler.is_compiling():
        return torch.ops.fastrl.sample(logits, seeds, steps, *options)
    return _run(logits, seeds, steps, *options)


def gumbel_noise(seeds: torch.Tensor, step: int | torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The noise that `sample` adds to each token, the same bits on every backend.

    Args:
        seeds: (B,) int64.
        step: an int or (B,) int64.
        vocabulary: tokens a row, at least 1.

    Returns:
        (B, vocabulary) fp32.

    Raises:
        TypeError, ValueError: for a wrong shape, dtype or device.
    """
    vocabulary = require_whole("vocabulary", vocabulary, 1)
    seeds = _per_row("seeds", require_tensor("seeds", seeds), seeds.numel(), seeds.device)
    steps = _per_row("step", step, len(seeds), seeds.device)
    return SAMPLE.pick(seeds).noise(seeds, steps, vocabulary)
