"""One training run of a case, with TRL 1.16 or with fastrl, on answers that come from a script."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.algos.offline_parity.running import BASE as OFFLINE
from tests.algos.online_parity import making
from tests.algos.online_parity.making import EOS, LETTERS, LONGEST
from tests.algos.online_parity.running import Case, _policy, _rewards

RECORD = Path(__file__).parent / "recorded.json"
PROMPTS = 24
METRICS = (
    "loss",
    "grad_norm",
    "beta",
    "logps/chosen",
    "logps/rejected",
    "objective/entropy",
    "objective/kl",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "objective/scores_margin",
    "rewards/accuracies",
    "rewards/chosen",
    "rewards/margins",
    "rewards/rejected",
    "val/contain_eos_token",
)
BASE: dict[str, Any] = {
    **OFFLINE,
    "max_new_tokens": LONGEST,
    "max_steps": 8,
    "learning_rate": 2e-3,
}


class Script(making.Script):
    """Answers as a model gives them: ended by EOS, or as long as allowed."""

    def _answer(self, random: np.random.RandomState) -> tuple[list[int], list[float | None]]:
        length = LONGEST if "whole" in self.options else random.randint(1, LONGEST + 4)
        completion = random.randint(*LETTERS, min(length, LONGEST)).tolist()
        if length < LONGEST or length % 2:
            completion[-1] = EOS
        return completion, [None] * len(completion)


def evenness(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Of half of the answers 1: many pairs tie."""
    return [float(sum(ids) % 2) for ids in completion_ids]


making.REWARDS.setdefault("evenness", evenness)


def run(
    case: Case,
    trainer_class: Callable[..., Any],
    config_class: type,
    give: Callable[[Any, Script], None] = making.give_completions,
    **settings: Any,
) -> dict[str, list[float]]:
    """`run_in` a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(Path(folder), case, trainer_class, config_class, give, **settings)


def run_in(
    folder: Path,
    case: Case,
    trainer_class: Callable[..., Any],
    config_class: type,
    give: Callable[[Any, Script], None],
    metrics: tuple[str, ...] = (),
    **settings: Any,
) -> dict[str, list[float]]:
    """Train, and give the values of each metric in order.

    Args:
        folder: one of all ranks.
        give: puts the script in the place of what the trainer draws.
        metrics: which; none named are `METRICS`.
        settings: more of the configuration.
    """
    torch.manual_seed(0)
    rows = making.prompts(PROMPTS, case.chat)
    script = Script([rows], case.script)
    more = {"ref_model": making.model("llama")} if "reference" in case.script else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_class(
            args=config_class(str(folder), **{**BASE, **case.config, **settings}),
            train_dataset=rows,
            processing_class=making.tokenizer(),
            **_policy(case, folder),
            **_rewards(case, folder),
            **more,
        )
        if case.lora == "new":
            making.fill_adapters(trainer.model)
        give(trainer, script)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    return {key: [entry[key] for entry in logged] for key in metrics or METRICS}


@cache
def recorded() -> dict[str, Any]:
    """What was recorded of TRL: `cases`, `fields`, `arguments`."""
    return json.loads(RECORD.read_text())


def differences(got: dict[str, list[float]], want: dict[str, list[float]]) -> list[str]:
    """Each metric that is not TRL's, with the steps at which; empty if the runs agree."""
    said = []
    for key, theirs in want.items():
        pairs = list(enumerate(zip(got[key], theirs, strict=True), 1))
        off = [f"{step}: {a} for {b}" for step, (a, b) in pairs if not _agree(a, b)]
        if off:
            said.append(f"{key} at {', '.join(off)}")
    return said


def _agree(ours: float, theirs: float) -> bool:
    # Differences of sums of some dozens are as exact as these.
    return abs(ours - theirs) <= 1e-4 * max(abs(theirs), 0.1)
