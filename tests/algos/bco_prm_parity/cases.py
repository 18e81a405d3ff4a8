"""The runs on which fastrl and TRL 0.28 must log the same numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.algos.bco_prm_parity.running import Case


def _case(trainer: str, name: str, **settings: Any) -> Case:
    own = {key: settings.pop(key) for key in list(settings) if key in Case.__dataclass_fields__}
    return Case(f"{trainer.lower()}_{name}", trainer, config=settings, **own)


_bco = partial(_case, "BCO", reference=True)
_prm = partial(_case, "PRM")
EVALUATED = {"evaluate": True, "eval_strategy": "steps", "eval_steps": 5}

BCO = [
    _bco("unpaired"),
    _bco("paired", rows="preference", beta=0.3),
    _bco("chat", rows="unpaired_chat"),
    _bco("accumulation", gradient_accumulation_steps=2),
    _bco("evaluated", per_device_eval_batch_size=4, **EVALUATED),
    _bco("truncated", max_length=40),
    _bco("bos", bos=True),
    _bco("lora", lora=True, reference=False),
    _bco("precomputed", precompute_ref_log_probs=True),
    _bco("moe", model="qwen2_moe"),
    _bco("matched", matched=True, learning_rate=1e-4),
    _bco("matched_closely", matched=True, learning_rate=1e-4, prompt_sample_size=5,
         min_density_ratio=0.9, max_density_ratio=1.1),
]  # fmt: skip

PRM = [
    _prm("steps"),
    _prm("last_step", train_on_last_step_only=True),
    _prm("separator", step_separator="\n\n", model="llama"),
    _prm("truncated", max_length=60),
    _prm("completion_cut", max_completion_length=20),
    _prm("bos", bos=True),
    _prm("evaluated", per_device_eval_batch_size=4, **EVALUATED),
    _prm("gpt2", model="gpt2"),
    _prm("lora", lora=True),
]

ALL = [*BCO, *PRM]
