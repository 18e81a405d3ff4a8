"""The statistics of a classic PPO step, under TRL 0.7.11's keys."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from accelerate import Accelerator

from fastrl.train.statistics import PADDING, Masked, stack_dicts


def merge_minibatches(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack the minibatches' statistics; advantages and ratios stay whole distributions."""
    merged = stack_dicts(rows)
    advantages = merged["policy/advantages"].flatten()[None]
    merged["policy/advantages"] = torch.nan_to_num(advantages, PADDING)
    merged["policy/ratio"] = merged["policy/ratio"].flatten()[None]
    return merged


def _spread(x: torch.Tensor) -> torch.Tensor:
    """Unbiased deviation of a vector; NaN for fewer than two entries."""
    return x.std() if x.numel() > 1 else torch.full((), float("nan"), device=x.device)


def _lengths(name: str, rows: list[torch.Tensor]) -> dict[str, Any]:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.float)
    return {
        f"tokens/{name}_len_mean": lengths.mean().item(),
        f"tokens/{name}_len_std": _spread(lengths).item(),
        f"tokens/{name}_dist": lengths.numpy(),
    }


def step_statistics(
    kl_coef: float,
    *,
    masks: torch.Tensor,
    kls: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    non_score_reward: torch.Tensor,
    scores: torch.Tensor,
    queries: list[torch.Tensor],
    responses: list[torch.Tensor],
    train_stats: dict[str, torch.Tensor],
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """One step's statistics: `objective/*`, `ppo/*` and `tokens/*`.

    Args:
        kl_coef: the coefficient the rewards were made with.
        masks, kls, logprobs, ref_logprobs, non_score_reward: (B, T - 1).
        scores: (B,) after scaling and clipping.
        train_stats: merged minibatch statistics, each (minibatches, n); their mean over the
            minibatches becomes `ppo/<key>`.
        accelerator: given, averages over entries run over all its processes.
    """
    row_kl = (kls * masks).sum(-1)
    mean_kl = row_kl.mean()
    if mean_kl.item() < -1.0:
        warnings.warn(
            f"the KL to the reference is {mean_kl.item():.2f}, well below 0: responses were "
            "probably not sampled from the policy as it is scored (check top_k, top_p, "
            "temperature, min_length and padding in the generation arguments)",
            stacklevel=3,
        )
    stats: dict[str, Any] = {
        "objective/kl": mean_kl,
        "objective/kl_dist": row_kl,
        "objective/logprobs": logprobs,
        "objective/ref_logprobs": ref_logprobs,
        "objective/kl_coef": kl_coef,
        "objective/entropy": (-logprobs * masks).sum(-1).mean(),
        "ppo/mean_non_score_reward": Masked(masks, accelerator).mean(non_score_reward),
        "ppo/mean_scores": scores.mean(),
        "ppo/std_scores": _spread(scores if accelerator is None else accelerator.gather(scores)),
        **_lengths("queries", queries),
        **_lengths("responses", responses),
    }
    for key, value in train_stats.items():
        stats[f"ppo/{key}"] = value.mean(0)
    error, var = stats["ppo/val/error"], stats["ppo/returns/var"]
    if accelerator is not None:  # these are shares of a mean; their ratio is not
        error, var = accelerator.reduce(torch.stack([error, var]), "mean")
    stats["ppo/val/var_explained"] = 1 - error / var
    return stats


def average_over_ranks(stats: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Every tensor averaged over processes; host numbers stay this rank's own, as in TRL."""
    return {
        k: accelerator.reduce(v, "mean") if isinstance(v, torch.Tensor) else v
        for k, v in stats.items()
    }
