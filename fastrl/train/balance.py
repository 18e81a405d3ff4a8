"""Answers of one optimizer step spread evenly over the processes."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from fastrl.train.experience import Experience, joined, regrouped


def balanced(
    answers: Experience,
    passes: int,
    accelerator: Accelerator,
    pad_token_id: int,
    together: int = 1,
) -> list[Experience]:
    """This process's passes of an optimizer step, of equal work with those of the others.

    What each row counts for travels with it, and gradients are averaged over processes, so the
    step stays what it was. All rows go through every process's memory once, on the host.

    Args:
        answers: of this process.
        passes: how many every process makes.
        accelerator: gathers.
        pad_token_id: pads rows of unlike length.
        together: how many rows on end stay in one pass.
    """
    parts = [Experience(**held) for held in gather_object([_packed(answers)])]
    whole = joined(parts, pad_token_id)
    whole = Experience(**{**whole.__dict__, "prompts": _numbers(whole)})
    first = accelerator.process_index * passes
    shares = regrouped(whole, accelerator.num_processes * passes, together)
    device = accelerator.device
    own = [whole.take(rows) for rows in shares[first : first + passes]]
    return [
        part.with_tensors(**{name: held.to(device) for name, held in part.tensors.items()})
        for part in own
    ]


def _packed(answers: Experience) -> dict[str, Any]:
    tensors = {name: held.cpu() for name, held in answers.tensors.items()}
    return {**answers.__dict__, "tensors": tensors}


def _numbers(answers: Experience) -> list[int]:
    """Equal numbers for equal prompts, whichever process had them."""
    known: dict[tuple[int, ...], int] = {}
    rows = zip(answers.tensors["prompt_ids"].tolist(), answers.prompt_lengths, strict=True)
    return [known.setdefault(tuple(ids[len(ids) - n :]), len(known)) for ids, n in rows]
