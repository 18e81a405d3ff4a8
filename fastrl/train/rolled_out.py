"""Answers that a user's own `rollout_func` draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from fastrl.train.experience import Drawn, Text

RolloutFunction = Callable[[list[Any], Any], Mapping[str, Any]]

_ROLLED = ("prompt_ids", "completion_ids", "logprobs")


def rolled_out(
    rollout_func: RolloutFunction,
    prompts: list[Text],
    trainer: Any,
    texts_of: Callable[[list[Text], list[list[int]]], list[Text]],
) -> Drawn:
    """What `rollout_func(prompts, trainer)` returned, with the answers as `texts_of` writes them.

    Raises:
        ValueError: naming the key and the row, for what is no answer to each prompt.
    """
    output = dict(rollout_func(copy.deepcopy(prompts), trainer))
    check_rollout(output, len(prompts))
    extra = {key: given for key, given in output.items() if key not in _ROLLED}
    written = extra.pop("env_mask", None)
    answers = [list(map(int, ids)) for ids in output["completion_ids"]]
    return Drawn(
        prompts,
        texts_of(prompts, answers),
        [list(map(int, ids)) for ids in output["prompt_ids"]],
        answers,
        None if written is None else [[bool(x) for x in mask] for mask in written],
        _numbers(output["logprobs"]),
        extra,
    )


def _numbers(logprobs: Any) -> list[list[float]] | None:
    if logprobs is None:
        return None
    return [[float("nan") if x is None else float(x) for x in row] for row in logprobs]


def check_rollout(output: Mapping[str, Any], rows: int) -> None:
    """Refuse what a rollout function returned if it does not describe an answer to each row.

    Raises:
        ValueError: naming the key and the row.
    """
    missing = sorted(set(_ROLLED) - set(output))
    if missing:
        raise ValueError(
            f"rollout_func returned no {', '.join(missing)}; it has to give prompt_ids, "
            "completion_ids and logprobs (None where they are not known)"
        )
    for key in ("prompt_ids", "completion_ids"):
        if len(output[key]) != rows:
            raise ValueError(f"rollout_func: {key} has {len(output[key])} rows for {rows} prompts")
        for row, ids in enumerate(output[key]):
            if not len(ids):
                raise ValueError(f"rollout_func: {key}[{row}] is empty")
    for key in ("logprobs", "env_mask"):
        if output.get(key) is None:
            continue
        if len(output[key]) != rows:
            raise ValueError(f"rollout_func: {key} has {len(output[key])} rows for {rows} prompts")
        for row, (given, ids) in enumerate(zip(output[key], output["completion_ids"], strict=True)):
            if len(given) != len(ids):
                raise ValueError(
                    f"rollout_func: {key}[{row}] has {len(given)} entries for the {len(ids)} "
                    f"tokens of completion_ids[{row}]"
                )
