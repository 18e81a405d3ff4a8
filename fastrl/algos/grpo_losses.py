"""The losses of GRPO and its relatives: a surrogate and a weight each, one row of a table.

Notation: A is an answer's advantage, m the mask of the tokens that count, n = Σ_t m their number
and r the importance ratio: π/π_old of each token, or of a whole answer its geometric mean (GSPO,
arXiv 2507.18071, equation 7).

A loss is Σ_i w_i Σ_t m_it l_it. The surrogate gives l of each token. The weight w of an answer
follows from the slice (micro-batch) that it was drawn into, not from the rows it is computed
with: within an optimizer step rows may be grouped in any way, and the sum stays what it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Figures = dict[str, torch.Tensor]
Surrogate = Callable[["Answers", "Settings"], tuple[torch.Tensor, Figures]]
Weight = Callable[["Step"], torch.Tensor]

LEVELS = ("token", "sequence")
CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@dataclass(frozen=True)
class Settings:
    """What the losses read of a `GRPOConfig`, under the same names."""

    loss_type: str
    importance_sampling_level: str
    beta: float
    epsilon: float
    epsilon_high: float | None
    delta: float | None
    sapo_temperature_neg: float
    sapo_temperature_pos: float
    vespo_k_pos: float
    vespo_lambda_pos: float
    vespo_k_neg: float
    vespo_lambda_neg: float
    off_policy_mask_threshold: float | None
    use_bias_correction_kl: bool

    @classmethod
    def of(cls, args: Any) -> Settings:
        """Read from a config."""
        return cls(**{f.name: getattr(args, f.name) for f in dataclasses.fields(cls)})

    @property
    def above(self) -> float:
        """How far the ratio may rise."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


@dataclass(frozen=True)
class Answers:
    """What a loss sees of B answers of up to T tokens; (B, T) fp32 unless said otherwise."""

    logp: torch.Tensor
    mask: torch.Tensor  # bool
    advantages: torch.Tensor  # (B,), or (B, T) where tokens have their own
    old_logp: torch.Tensor | None = None  # None: exactly on-policy, the ratio is 1
    ref_logp: torch.Tensor | None = None  # needed where beta is not 0
    sampled_logp: torch.Tensor | None = None  # the engine's own, NaN where it gave none
    engine_ratio: torch.Tensor | None = None  # (B, T) or (B, 1), of `engine_ratio`
    kept: torch.Tensor | None = None  # bool, tokens the surrogate is confined to; None: all

    @property
    def advantage(self) -> torch.Tensor:
        """A, (B, 1) or (B, T)."""
        return self.advantages[:, None] if self.advantages.dim() == 1 else self.advantages

    @property
    def old(self) -> torch.Tensor:
        """The policy's log-probabilities at collection, without gradient."""
        return self.logp.detach() if self.old_logp is None else self.old_logp

    @property
    def log_ratio(self) -> torch.Tensor:
        """log π/π_old of each token, 0 where the mask is."""
        return (self.logp - self.old).masked_fill(~self.mask, 0.0)

    def ratio(self, level: str) -> torch.Tensor:
        """r: (B, T) at level "token", (B, 1) at level "sequence"."""
        if level == "sequence":
            return mean_over_answer(self.log_ratio, self.mask).exp()
        return self.log_ratio.exp()


@dataclass(frozen=True)
class TokenLosses:
    """The outcome of `token_losses`."""

    loss: torch.Tensor  # (B, T) fp32, 0 where the mask is
    kl: torch.Tensor | None  # (B, T), what beta weighs; 0 where the mask is
    figures: Figures  # what the surrogate can tell for the log; (B, T), or (B, 1) of answers


def mean_over_answer(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, 1): the mean of x (B, T) over the tokens that count; 0 where none do."""
    total = x.masked_fill(~mask, 0.0).sum(1, keepdim=True)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def clipped_surrogate(
    ratio: torch.Tensor,
    advantage: torch.Tensor,
    below: float,
    above: float,
    delta: float | None = None,
) -> torch.Tensor:
    """-min(r A, clip(r, 1 - below, 1 + above) A), PPO's (arXiv 1707.06347, equation 7).

    With delta the first r is min(r, delta), which bounds the loss where A < 0 (two-sided clipping,
    arXiv 2505.07291, equation 1).
    """
    clipped = ratio.clamp(1 - below, 1 + above)
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(bounded * advantage, clipped * advantage)


def _clipped(a: Answers, s: Settings) -> tuple[torch.Tensor, Figures]:
    ratio = a.ratio(s.importance_sampling_level)
    loss = clipped_surrogate(ratio, a.advantage, s.epsilon, s.above, s.delta)
    if s.delta is not None:
        ratio = ratio.clamp(max=s.delta)  # as TRL counts what is clipped
    low = (ratio < 1 - s.epsilon) & (a.advantage < 0)
    high = (ratio > 1 + s.above) & (a.advantage > 0)
    return loss, {"clipped_low": low, "clipped_high": high, "clipped": low | high}


def _cispo(a: Answers, s: Settings) -> tuple[torch.Tensor, Figures]:
    # The ratio is bounded by epsilon_high itself, and is a factor without gradient.
    ratio = a.ratio(s.importance_sampling_level).detach()
    loss = -ratio.clamp(max=s.above) * a.advantage * a.logp
    return loss, {"clipped": (ratio > s.above) & (a.advantage > 0)}


def _sapo(a: Answers, s: Settings) -> tuple[torch.Tensor, Figures]:
    # -A (4/τ) σ(τ(r - 1)), τ by the sign of A: slope 1 at r = 1, flat far away from it
    ratio = a.ratio(s.importance_sampling_level)
    sharpness = torch.where(a.advantage > 0, s.sapo_temperature_pos, s.sapo_temperature_neg)
    gate = torch.sigmoid(sharpness * (ratio - 1)) * 4 / sharpness
    return -gate * a.advantage, {}


def _vespo(a: Answers, s: Settings) -> tuple[torch.Tensor, Figures]:
    # -φ A log π, φ = exp(λ + k log W - λ W) without gradient; W is the ratio of the whole answer
    # (a product, not a mean), k and λ go by the sign of A.
    bottom = math.log(1e-8)
    log_w = a.log_ratio.detach().clamp(-20.0, 20.0).sum(1, keepdim=True)
    if a.engine_ratio is not None:
        log_w = log_w + a.engine_ratio.log().clamp(bottom, 20.0).sum(1, keepdim=True)
    log_w = log_w.clamp(bottom, 20.0)
    gains = a.advantage >= 0
    power = torch.where(gains, s.vespo_k_pos, s.vespo_k_neg)
    decay = torch.where(gains, s.vespo_lambda_pos, s.vespo_lambda_neg).clamp(min=1e-4)
    phi = (decay + power * log_w - decay * log_w.exp()).exp()
    phi = phi.nan_to_num(nan=0.0, posinf=0.0)
    return -phi * a.advantage * a.logp, {"phi": phi}


@dataclass(frozen=True)
class Step:
    """What of an optimizer step sets the weights of its R answers on this rank.

    Evaluation has neither accumulation nor slices of a generation batch: both are 1 there.
    """

    lengths: torch.Tensor  # (R,) int64, tokens that count
    slices: torch.Tensor  # (R,) int64, the slice of each answer; all rows of a slice are here
    accumulation: int  # slices of this optimizer step
    slices_per_generation: int
    generation_tokens: torch.Tensor | float  # scalar: that count in the batch of all ranks
    ranks: int
    max_completion_length: int

    def over_slice(self, x: torch.Tensor) -> torch.Tensor:
        """(R,): for each row the sum of x (R,) over the rows of its slice."""
        return ((self.slices[:, None] == self.slices) * x).sum(1)

    @property
    def share(self) -> torch.Tensor:
        """(R,) fp32: an equal part of the slice for each of its rows, of the step for a slice."""
        rows = self.over_slice(torch.ones_like(self.lengths))
        return 1.0 / (rows * self.accumulation)


def per_answer(step: Step) -> torch.Tensor:
    """Mean over each answer's tokens, then over the answers of the slice."""
    return step.share / step.lengths.clamp(min=1)


def per_slice_token(step: Step) -> torch.Tensor:
    """Mean over all tokens of the slice."""
    return 1.0 / (step.over_slice(step.lengths).clamp(min=1) * step.accumulation)


def per_generation_token(step: Step) -> torch.Tensor:
    """Sum over the tokens, by the generation batch's tokens of all ranks for one step."""
    tokens = torch.as_tensor(step.generation_tokens, device=step.lengths.device).clamp(min=1)
    of_step = tokens / step.ranks * step.accumulation / step.slices_per_generation
    return (1.0 / of_step).float().expand(len(step.lengths))


def per_cap(step: Step) -> torch.Tensor:
    """Sum over the tokens by the longest possible length, then mean over the slice's answers."""
    return step.share / step.max_completion_length


def per_row(step: Step) -> torch.Tensor:
    """Sum over each answer's tokens, then mean over the answers of the slice."""
    return step.share


@dataclass(frozen=True)
class Loss:
    """How a token's loss is computed, and what each answer's tokens weigh."""

    surrogate: Surrogate
    weight: Weight


LOSSES: dict[str, Loss] = {
    "grpo": Loss(_clipped, per_answer),  # DeepSeekMath, arXiv 2402.03300, equation 3
    "dr_grpo": Loss(_clipped, per_cap),  # arXiv 2503.20783, section 3.2
    "dapo": Loss(_clipped, per_generation_token),  # arXiv 2503.14476, equation 8
    "bnpo": Loss(_clipped, per_slice_token),  # TRL's: dapo by the tokens of each micro-batch
    "cispo": Loss(_cispo, per_generation_token),  # MiniMax-M1, arXiv 2506.13585, equations 4, 5
    "sapo": Loss(_sapo, per_answer),  # arXiv 2511.20347, equations 5, 6
    "luspo": Loss(_clipped, per_row),  # arXiv 2602.05261: GSPO, each answer times its length
    "vespo": Loss(_vespo, per_generation_token),  # arXiv 2602.10693
}


def k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """KL(π ‖ π_ref) of each token, never negative: d = log π_ref/π, e^d - d - 1.

    Schulman's third estimator, as in arXiv 2402.03300, equation 4.
    """
    apart = ref_logp - logp
    return apart.exp() - apart - 1


def token_losses(answers: Answers, settings: Settings) -> TokenLosses:
    """The loss of each token, before any weighing.

    The surrogate times the masks and the engine's correction, plus beta times the KL to the
    reference, which use_bias_correction_kl multiplies by the ratio (DeepSeek-V3.2,
    arXiv 2512.02556, equation 7). vespo has the engine's correction within its own weight.

    Raises:
        KeyError: for an unknown loss_type.
        ValueError: where beta is not 0 and there is no ref_logp.
    """
    a, s = _without_padding(answers), settings
    loss, figures = LOSSES[s.loss_type].surrogate(a, s)
    if s.off_policy_mask_threshold is not None:
        loss = loss * on_policy(a, s.off_policy_mask_threshold)
    if a.kept is not None:
        loss = loss * a.kept
    if a.engine_ratio is not None and s.loss_type != "vespo":
        loss = loss * a.engine_ratio
    kl = None
    if s.beta != 0:
        kl = _kl(a, s)
        loss = loss + s.beta * kl
    figures = {name: x.detach() for name, x in figures.items()}
    return TokenLosses(loss.expand_as(a.logp).masked_fill(~a.mask, 0.0), kl, figures)


def _without_padding(a: Answers) -> Answers:
    """Nothing that stands outside the mask reaches the loss or its gradient, NaN included."""
    ref = None if a.ref_logp is None else a.ref_logp.float().masked_fill(~a.mask, 0.0)
    return dataclasses.replace(a, logp=a.logp.float().masked_fill(~a.mask, 0.0), ref_logp=ref)


def _kl(a: Answers, s: Settings) -> torch.Tensor:
    if a.ref_logp is None:
        raise ValueError(f"beta={s.beta} weighs the KL to a reference, but ref_logp is None")
    kl = k3(a.logp, a.ref_logp)
    if s.use_bias_correction_kl:
        kl = kl * a.ratio(s.importance_sampling_level)
    return kl.masked_fill(~a.mask, 0.0)


def on_policy(answers: Answers, threshold: float) -> torch.Tensor:
    """Which answers are kept; bool, shaped as `Answers.advantage`.

    An answer worse than its group (A < 0) is dropped where the policy has moved away from the one
    that wrote it: mean log π_sampled/π above the threshold (arXiv 2512.02556, equation 9). Tokens
    the engine gave no log-probability count as unmoved.
    """
    wrote = answers.old if answers.sampled_logp is None else answers.sampled_logp
    moved = (wrote - answers.logp.detach()).nan_to_num(nan=0.0)
    return (answers.advantage >= 0) | (mean_over_answer(moved, answers.mask) <= threshold)


def high_entropy(
    entropy: torch.Tensor, mask: torch.Tensor, share: float, pool: torch.Tensor | None = None
) -> torch.Tensor:
    """The tokens of highest entropy (arXiv 2506.01939, equation 6); (B, T) bool.

    Args:
        entropy: (B, T).
        mask: (B, T) bool, tokens that count.
        share: how much of the pool is kept, in [0, 1]; 0 keeps the single highest.
        pool: (N,) entropies the threshold is a quantile of (with several ranks: of all of them);
            default: those under the mask.
    """
    pool = (entropy[mask] if pool is None else pool).float()
    if not len(pool):
        return torch.zeros_like(mask)
    # torch.quantile stops at 2^24 elements; this is the same interpolation without a limit.
    ordered = pool.sort().values
    rank = torch.tensor(1 - share, device=pool.device) * (len(pool) - 1)
    low, high = ordered[rank.floor().long()], ordered[rank.ceil().long()]
    return (entropy >= torch.lerp(low, high, rank - rank.floor())) & mask


def engine_ratio(
    old_logp: torch.Tensor,
    sampled_logp: torch.Tensor,
    mask: torch.Tensor,
    mode: str,
    lowest: float | None,
    highest: float | None,
) -> torch.Tensor:
    """π_old over the probability the engine sampled with: what the two's difference costs.

    Args:
        old_logp, sampled_logp: (B, T); a token the engine gave no log-probability (NaN) has
            ratio 1.
        mask: (B, T) bool.
        mode: one of `CORRECTIONS`: a ratio for each token or for the whole answer (their product);
            outside the bounds it is moved to them (truncate) or becomes 0 (mask).
        lowest, highest: the bounds; None: no bound on that side.

    Returns:
        (B, T), 1 where the mask is not; or (B, 1) for the modes of a sequence.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in CORRECTIONS:
        raise ValueError(f"mode={mode!r} is none of {', '.join(CORRECTIONS)}")
    level, beyond = mode.split("_")
    apart = (old_logp - sampled_logp).nan_to_num(nan=0.0).masked_fill(~mask, 0.0)
    ratio = (apart.sum(1, keepdim=True) if level == "sequence" else apart).exp()
    lowest = -math.inf if lowest is None else lowest
    highest = math.inf if highest is None else highest
    if beyond == "truncate":
        return ratio.clamp(lowest, highest)
    return ratio.masked_fill((ratio < lowest) | (ratio > highest), 0.0)


def weighted_sum(loss: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_i w_i Σ_t l_it of any of a step's rows: loss (B, T), 0 where masked; weights (B,)."""
    return (loss.sum(1) * weights).sum()
