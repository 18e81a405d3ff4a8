"""The runs of ORPO and CPO on which fastrl and TRL 1.16 must log the same numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.algos.offline_parity.running import Case


def _case(trainer: str, name: str, rows: str = "preference", **config: Any) -> Case:
    own = ("model", "lora", "evaluate", "steepness")
    settings = {key: config.pop(key) for key in own if key in config}
    config = {"learning_rate": 1e-4, **config}
    return Case(f"{trainer.lower()}_{name}", trainer, rows, config, steps=10, count=48, **settings)


_orpo = partial(_case, "ORPO")
_cpo = partial(_case, "CPO")

ORPO = [
    _orpo("evaluated", evaluate=True, eval_strategy="steps", eval_steps=5),
    _orpo("strong", beta=2.0, model="llama"),
    _orpo("accumulation", gradient_accumulation_steps=2, max_length=48),
    _orpo("chat", rows="preference_chat"),
    _orpo("lora", lora=True),
    _orpo("moe", model="qwen2_moe"),
]

CPO = [
    _cpo("evaluated", evaluate=True, eval_strategy="steps", eval_steps=5),
    _cpo("hinge", loss_type="hinge", model="llama"),
    _cpo("ipo", loss_type="ipo"),
    _cpo("simpo", loss_type="simpo", simpo_gamma=0.3, beta=2.0, cpo_alpha=0.0),
    _cpo("alphapo", loss_type="alphapo", alpha=0.4, beta=0.7),
    _cpo("shaped", loss_type="ipo", alpha=-0.3, cpo_alpha=0.5),
    _cpo("smoothed", label_smoothing=0.2),
    _cpo("simpo_smoothed", loss_type="simpo", label_smoothing=0.1, max_length=48),
    _cpo("accumulation", gradient_accumulation_steps=2),
    _cpo("lora", lora=True),
    _cpo("gpt2", model="gpt2", gradient_checkpointing=True),
]

ALL = [*ORPO, *CPO]
