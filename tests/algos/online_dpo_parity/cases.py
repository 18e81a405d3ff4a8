"""The runs on which fastrl and TRL 1.16 must log the same numbers."""

from __future__ import annotations

from typing import Any

from tests.algos.online_parity.running import Case


def _case(name: str, **given: Any) -> Case:
    """Fields of `Case`, the rest the trainer's configuration."""
    own = ("model", "lora", "chat", "rewards")
    fields = {key: given.pop(key) for key in own if key in given}
    script = frozenset(given.pop("script", "").split())
    return Case(name, "OnlineDPO", given, script=script, **fields)


# In `script`: `whole` answers are all of one length, so that TRL has no padding to count;
# `reference` is another model than the policy's start.
ALL = [
    _case("default"),
    _case("whole", script="whole"),
    _case("ipo", loss_type="ipo", beta=0.3),
    _case("ipo_whole", loss_type="ipo", script="whole"),
    _case("penalty", missing_eos_penalty=0.7),
    _case("strong", beta=[0.8]),
    _case("ties", rewards=("evenness",)),
    _case("weights", reward_weights=[0.3, 1.5]),
    _case("judge", rewards=("judge",)),
    _case("temperature", temperature=0.5),
    _case("cut", max_length=20, per_device_train_batch_size=1),
    _case("accumulation", gradient_accumulation_steps=2, per_device_train_batch_size=2),
    _case("lora", lora="new"),
    _case("lora_given", lora="given"),
    _case("reference", script="reference"),
    _case("chat", chat=True),
    _case("llama", model="llama"),
    _case("checkpointed", gradient_checkpointing=True),
]
