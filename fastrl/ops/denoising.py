"""A denoising step of a diffusion model as a Gaussian policy: its mean, deviation and density."""

from __future__ import annotations

import math

import torch

PREDICTIONS = ("epsilon", "sample", "v_prediction")
_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def like_batch(values: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Numbers per row, (B,) or (), shaped to broadcast against a batch (B, ...); fp32."""
    rows = values.to(batch.device, torch.promote_types(values.dtype, torch.float32))
    return rows.reshape(-1, *(1,) * (batch.dim() - 1))


def guide(
    unconditional: torch.Tensor, conditional: torch.Tensor, scale: float, rescale: float = 0.0
) -> torch.Tensor:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6 with w + 1 = scale).

    `rescale` moves the result towards the deviation of `conditional`, per row (arXiv 2305.08891,
    section 3.4). All tensors (B, C, H, W).
    """
    guided = unconditional + scale * (conditional - unconditional)
    if not rescale:
        return guided
    over = tuple(range(1, guided.dim()))
    factor = conditional.std(over, keepdim=True) / guided.std(over, keepdim=True)
    return guided * (rescale * factor + 1 - rescale)


def split_prediction(
    output: torch.Tensor, sample: torch.Tensor, alpha: torch.Tensor, kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(clean sample, noise) that a model's output stands for, both (B, ...).

    Args:
        output, sample: (B, ...) the model's output, and what it was given.
        alpha: cumulative alpha of the step, broadcastable to them.
        kind: what the model predicts, one of `PREDICTIONS`.

    Raises:
        ValueError: another kind.
    """
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    if kind == "epsilon":
        return (sample - noise * output) / signal, output
    if kind == "sample":
        return output, (sample - signal * output) / noise
    if kind == "v_prediction":
        return signal * sample - noise * output, signal * output + noise * sample
    raise ValueError(f"prediction_type={kind!r} of the scheduler: it must be one of {PREDICTIONS}")


def ddim_transition(
    clean: torch.Tensor,
    noise: torch.Tensor,
    alpha: torch.Tensor,
    alpha_next: torch.Tensor,
    eta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of DDIM's next sample (arXiv 2010.02502, eq. 12 and 16).

    deviation = eta · sqrt((1 − alpha_next) / (1 − alpha) · (1 − alpha / alpha_next))
    mean = sqrt(alpha_next) · clean + sqrt(1 − alpha_next − deviation²) · noise

    Args:
        clean, noise: (B, ...) what the model predicts.
        alpha, alpha_next: cumulative alphas before and after the step, broadcastable to them.
        eta: 0 is deterministic, 1 has the noise of DDPM.
    """
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    deviation = eta * variance.sqrt()
    direction = (1 - alpha_next - deviation.square()).sqrt()
    return alpha_next.sqrt() * clean + direction * noise, deviation


def gaussian_logp(drawn: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """log N(drawn; mean, deviation²), averaged over all but the first dimension: (B,).

    Gradients go to the mean only: what was drawn is taken as given. NaN where the deviation is 0,
    as there is no density.
    """
    squares = (drawn.detach() - mean).square() / (2 * deviation.square())
    return -(squares + deviation.log() + _HALF_LOG_TAU).flatten(1).mean(1)
