"""The runs on which fastrl and TRL 0.28 must log the same numbers: Nash-MD's and XPO's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.algos.online_dpo_parity import running
from tests.algos.online_parity import making
from tests.algos.online_parity.running import Case

_PAIR = (
    "loss", "grad_norm", "beta", "logps/chosen", "logps/rejected", "objective/entropy",
    "rewards/accuracies", "rewards/margins", "val/model_contain_eos_token",
    "val/ref_contain_eos_token",
)  # fmt: skip
METRICS = {
    "NashMD": (*_PAIR, "loss/kl", "loss/score", "mixture_coef", "rewards/probabilities"),
    "XPO": (
        *_PAIR, "loss/dpo", "loss/xpo", "alpha", "objective/kl", "rewards/chosen",
        "rewards/rejected",
    ),
}  # fmt: skip
OF_SCORES = {
    "NashMD": ("rewards/chosen", "rewards/rejected"),
    "XPO": ("objective/model_scores", "objective/ref_scores", "objective/scores_margin"),
}


def metrics(case: Case) -> tuple[str, ...]:
    """What TRL logs of a case."""
    scores = () if "judged" in case.script else OF_SCORES[case.trainer]
    return METRICS[case.trainer] + scores


def spread(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Something of the ids, from 0 to 2."""
    return [((31 * sum(ids)) % 17) ** 0.5 / 2 for ids in completion_ids]


making.REWARDS.setdefault("spread", spread)


def judge(trainer: str) -> Any:
    """One that compares lengths of texts: for Nash-MD by a probability, as TRL asks for it."""

    def shares(pairs: list[tuple[str, str]]) -> list[float]:
        several = [[len(text.strip()) + 1 for text in pair] for pair in pairs]
        return [first / (first + second) for first, second in several]

    class Judge:
        if trainer == "NashMD":

            def judge(
                self,
                prompts: Any,
                pairs: Any,
                shuffle_order: bool = True,
                return_scores: bool = False,
            ) -> list[float]:
                assert return_scores
                return shares(pairs)

        else:

            def judge(self, prompts: Any, pairs: Any, shuffle_order: bool = True) -> list[int]:
                return [int(share < 0.5) for share in shares(pairs)]

    return Judge()


def _case(trainer: str, name: str, **given: Any) -> Case:
    """Fields of `Case`, the rest the trainer's configuration."""
    own = ("model", "lora", "chat", "rewards")
    fields = {key: given.pop(key) for key in own if key in given}
    script = frozenset(given.pop("script", "").split())
    fields = {"rewards": ("spread",), **fields}
    return Case(f"{trainer}-{name}", trainer, given, script=script, **fields)


# In `script`: `judged` by `judge`; `reference` is another model than the policy's start.
_BOTH: list[dict[str, Any]] = [
    {"name": "default"},
    {"name": "penalty", "missing_eos_penalty": 0.7},
    {"name": "strong", "beta": 0.8},
    {"name": "ties", "rewards": ("evenness",)},
    {"name": "judge", "script": "judged"},
    {"name": "accumulation", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    {"name": "lora", "lora": "new"},
    {"name": "reference", "script": "reference"},
    {"name": "chat", "chat": True},
    {"name": "llama", "model": "llama"},
]
ALL = [
    *(_case(trainer, **given) for trainer in METRICS for given in _BOTH),
    _case("NashMD", "mixture", mixture_coef=0.125),
    _case("XPO", "ipo", loss_type="ipo", beta=0.3),
    _case("XPO", "exploring", alpha=0.05),
]


def run(
    case: Case,
    trainer_class: type,
    config_class: type,
    give: Callable[..., None] = making.give_completions,
    **settings: Any,
) -> dict[str, list[float]]:
    """Train ten steps; the values of each of the case's metrics in order."""

    def made(**given: Any) -> Any:
        if "judged" in case.script:
            given["judge"] = judge(case.trainer)
            del given["reward_funcs"]
        return trainer_class(**given)

    settings = {"max_steps": 10, **settings}
    return running.run(case, made, config_class, give, metrics=metrics(case), **settings)
