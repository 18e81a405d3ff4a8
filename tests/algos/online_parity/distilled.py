"""The runs of `DistillationTrainer` on which fastrl and TRL 1.16 must log the same numbers."""

from __future__ import annotations

from typing import Any

from tests.algos.online_parity.running import Case


def _case(name: str, **given: Any) -> Case:
    """Fields of `Case`, the rest the trainer's configuration."""
    own = ("model", "lora", "chat", "stream", "evaluate", "by_path", "teacher")
    fields = {key: given.pop(key) for key in own if key in given}
    return Case(f"distillation_{name}", "Distillation", given, group="distillation", **fields)


EVALUATES = {"eval_strategy": "steps", "eval_steps": 4}

ALL = [
    _case("reverse"),
    _case("forward", beta=0.0),
    _case("middle", beta=0.5),
    _case("uneven", beta=0.1, temperature=0.7),
    _case("hot", temperature=2.0, beta=0.0),
    _case("accumulation", gradient_accumulation_steps=4),
    _case("rest", gradient_accumulation_steps=3, num_train_epochs=2, max_steps=-1),
    _case("lora", lora="new", beta=0.5),
    _case("lora_given", lora="given"),
    _case("chat", chat=True, beta=0.0),
    _case("llama", model="llama"),
    _case("scaled", teacher="granite", beta=0.9),
    _case("capped", teacher="gemma2", beta=0.3),
    _case("like", teacher="like"),
    _case("in_order", shuffle_dataset=False, per_device_train_batch_size=3),
    _case("stream", stream=True, gradient_accumulation_steps=2),
    _case("checkpointed", gradient_checkpointing=True),
    _case("by_path", by_path=True),
    _case("evaluated", evaluate="one", gradient_accumulation_steps=2, **EVALUATES),
    _case("evaluated_several", evaluate="several", beta=0.5, **EVALUATES),
    _case("moe", model="qwen2_moe", teacher="like"),
    _case("logged_rarely", logging_steps=5, gradient_accumulation_steps=2),
]
