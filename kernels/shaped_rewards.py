"""Triton: the KL penalty everywhere, the score at the row's last counted token; a program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrl.ops.shaped_rewards import KIND_CODE

BLOCK = 1024  # columns at once


@triton.jit(do_not_specialize=["columns", "kind"])
def _shape_rows(
    scores, logp, ref_logp, mask, rewards, kl, columns, coefficient, kind, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    start = row * columns
    last = -1
    for block in range(tl.cdiv(columns, BLOCK)):
        column = block * BLOCK + tl.arange(0, BLOCK)
        on = tl.load(mask + start + column, mask=column < columns, other=0) != 0
        last = tl.maximum(last, tl.max(tl.where(on, column, -1), axis=0))
    score = tl.load(scores + row)
    for block in range(tl.cdiv(columns, BLOCK)):
        column = block * BLOCK + tl.arange(0, BLOCK)
        at = start + column
        here = column < columns
        gap = tl.load(logp + at, mask=here, other=0.0) - tl.load(
            ref_logp + at, mask=here, other=0.0
        )
        # The codes of KIND_CODE: 0 kl, 1 abs, 2 mse.
        cost = tl.where(kind == 1, tl.abs(gap), tl.where(kind == 2, 0.5 * gap * gap, gap))
        reward = -coefficient * cost + tl.where(column == last, score, 0.0)
        reward = tl.where(last < 0, float("nan"), reward)  # the score has nowhere to go
        tl.store(kl + at, cost, mask=here)
        tl.store(rewards + at, reward, mask=here)


def forward(
    scores: torch.Tensor,
    logp: torch.Tensor,
    ref_logp: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """rewards, kl (B, T); see fastrl.ops.shaped_rewards."""
    rewards, kl = torch.empty_like(logp), torch.empty_like(logp)
    rows, columns = logp.shape
    if logp.numel() > 0:
        with torch.cuda.device_of(logp):
            _shape_rows[(rows,)](
                scores,
                logp,
                ref_logp,
                mask.view(torch.uint8),
                rewards,
                kl,
                columns,
                kl_coef,
                KIND_CODE[kind],
                BLOCK=BLOCK,
                num_warps=4,
            )
    return rewards, kl
