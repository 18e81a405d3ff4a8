"""The runs that TRL's `PPOTrainer.train()` was recorded on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """What differs from the base configuration, and how the scripted responses end."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    model: str = "llama"
    ends: str = "never"  # never | eos | pad: which token comes up before the limit
    reach: int = 10  # where it may come up; from LENGTH on it does not
    eos_pads: bool = False  # the tokenizer pads with EOS
    lora: bool = False
    # TRL averages this one over padding as well, of positions that no packed pass computes.
    uncompared: tuple[str, ...] = ()


_PADDED = ("policy/entropy_avg",)

CASES = [
    Case("whole"),
    Case(
        "ragged",
        {
            "stop_token": "eos",
            "missing_eos_penalty": 1.0,
            "kl_estimator": "k3",
            "whiten_rewards": True,
        },
        ends="eos",
        uncompared=_PADDED,
    ),
    Case("gpt2_padding_drawn", {"lam": 0.9, "gamma": 0.99}, "gpt2", "pad", uncompared=_PADDED),
    Case(
        "eos_pads",
        {"stop_token": "eos", "missing_eos_penalty": 0.5, "vf_coef": 0.5},
        ends="eos",
        eos_pads=True,
        uncompared=_PADDED,
    ),
    Case("lora", {"cliprange": 0.05, "cliprange_value": 0.05}, "qwen2", lora=True),
    Case("short", {"stop_token": "eos"}, ends="eos", reach=5, uncompared=_PADDED),
    Case("mini_batches", {"num_mini_batches": 2, "gradient_accumulation_steps": 1}),
]

TWO_RANKS = Case("two_ranks", {"gradient_accumulation_steps": 1})
