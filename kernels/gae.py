"""Triton: generalised advantage estimation as a scan of affine maps, a program a row.

A_t = delta_t + c A_{t+1} is the map x -> delta_t + c x; maps compose associatively. A row is walked
in tiles from its end, the advantage at a tile's first column carried to the tile before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024  # columns at once


@triton.jit
def _compose(slope_right, value_right, slope_left, value_left):
    """The map of the columns on the right, then that of those on the left."""
    carried = tl.where(value_right == 0.0, 0.0, slope_left * value_right)
    return slope_left * slope_right, value_left + carried


@triton.jit(do_not_specialize=["columns"])
def _gae_rows(
    rewards, values, mask, advantages, returns, columns, gamma, decay, BLOCK: tl.constexpr
):
    start = tl.program_id(0).to(tl.int64) * columns
    carry = 0.0
    tiles = tl.cdiv(columns, BLOCK)
    for step in range(tiles):
        column = (tiles - 1 - step) * BLOCK + tl.arange(0, BLOCK)
        at = start + column
        here = column < columns
        on = tl.load(mask + at, mask=here, other=0) != 0
        next_on = tl.load(mask + at + 1, mask=column + 1 < columns, other=0) != 0
        reward = tl.load(rewards + at, mask=on, other=0.0)
        value = tl.load(values + at, mask=on, other=0.0)
        following = tl.load(values + at + 1, mask=next_on, other=0.0)
        delta = reward + gamma * following - value
        slopes = tl.where(here, decay, 1.0)
        slopes, scanned = tl.associative_scan((slopes, delta), 0, _compose, reverse=True)
        advantage = scanned + tl.where(carry == 0.0, 0.0, slopes * carry)
        tl.store(advantages + at, advantage, mask=here)
        tl.store(returns + at, advantage + value, mask=here)
        carry = tl.sum(tl.where(column == (tiles - 1 - step) * BLOCK, advantage, 0.0), axis=0)


def forward(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """advantages, returns (B, T); see fastrl.ops.gae."""
    advantages, returns = torch.empty_like(rewards), torch.empty_like(rewards)
    rows, columns = rewards.shape
    if rewards.numel() > 0:
        with torch.cuda.device_of(rewards):
            _gae_rows[(rows,)](
                rewards,
                values,
                mask.view(torch.uint8),
                advantages,
                returns,
                columns,
                gamma,
                gamma * lam,
                BLOCK=BLOCK,
                num_warps=4,
            )
    return advantages, returns
