"""FSDP2 is not let round what a model answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from fastrl.train.precision import keep_answers


def accelerator(policy: Any) -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(mixed_precision_policy=policy))
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_16_bit_answers_are_refused_and_nothing_else_changes(half: torch.dtype) -> None:
    given = accelerator(MixedPrecisionPolicy(half, half, half))
    keep_answers(given)
    kept = given.state.fsdp_plugin.mixed_precision_policy
    assert kept == MixedPrecisionPolicy(half, half, None)


def test_whoever_asks_for_fp32_gets_it() -> None:
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
    given = accelerator(policy)
    keep_answers(given)
    assert given.state.fsdp_plugin.mixed_precision_policy is policy
    keep_answers(SimpleNamespace(state=SimpleNamespace()))
