"""Checks on what a `step()` is given; all of them before anything is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Rows = list[torch.Tensor]


@dataclass(frozen=True)
class Limits:
    """What the models of a step can take."""

    vocabulary: int | None = None  # ids must be below it; None leaves ids unchecked
    tokens: int | None = None  # longest query and response together; None: any length
    uncounted: int = 0  # first tokens of a response that never count: 2 of an encoder–decoder's


def _check_list(name: str, rows: Any, batch_size: int | None) -> None:
    if not isinstance(rows, list):
        mend = f": list({name})" if isinstance(rows, tuple | torch.Tensor) else ""
        raise ValueError(f"{name} must be a list of tensors, got {type(rows).__name__}{mend}")
    if batch_size is not None and len(rows) != batch_size:
        raise ValueError(
            f"{name} has {len(rows)} entries but the batch size is {batch_size}: give one per row, "
            "or set batch_size in the config to the number of rows of a step"
        )
    for i, row in enumerate(rows):
        if not isinstance(row, torch.Tensor):
            raise ValueError(
                f"{name}[{i}] must be a tensor, got {type(row).__name__}: torch.as_tensor({name}"
                f"[{i}])"
            )


def check_prompts(name: str, rows: Rows, vocab_size: int | None) -> None:
    """Check that each entry is 1-D token ids.

    Raises:
        ValueError: naming the entry and what is wrong with it.
    """
    for i, row in enumerate(rows):
        if not isinstance(row, torch.Tensor):
            raise ValueError(f"{name}[{i}] must be a tensor, got {type(row).__name__}")
        if row.ndim != 1:
            raise ValueError(f"{name}[{i}] must be 1-D, got shape {tuple(row.shape)}: squeeze it")
        if row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
            raise ValueError(f"{name}[{i}] must hold token ids, got {row.dtype}: use .long()")
        if row.numel() == 0:
            raise ValueError(f"{name}[{i}] is empty: every row needs at least one token")
    if vocab_size is None or not rows:
        return
    joined = torch.cat([row.long() for row in rows])
    bad = (joined < 0) | (joined >= vocab_size)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        value = int(joined[at])
        i = 0
        while at >= len(rows[i]):
            at -= len(rows[i])
            i += 1
        raise ValueError(
            f"{name}[{i}][{at}] is {value}, outside the vocabulary of {vocab_size}: "
            "tokenizer and model do not match, or padding was left in"
        )


def _check_lengths(queries: Rows, responses: Rows, longest: int | None) -> None:
    for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
        tokens = len(query) + len(response)
        if longest is not None and tokens > longest:
            raise ValueError(
                f"queries[{i}] and responses[{i}] have {tokens} tokens together, the model takes "
                f"{longest} (max_position_embeddings): shorten them, or max_new_tokens"
            )


def _check_scores(scores: Rows) -> None:
    for i, score in enumerate(scores):
        if score.ndim > 1 or score.numel() != 1:
            raise ValueError(f"scores[{i}] must hold one number, got shape {tuple(score.shape)}")
        if score.is_complex():
            raise ValueError(f"scores[{i}] is complex: a score is one real number")
    finite = torch.stack([score.reshape(()).float() for score in scores]).isfinite()
    if not bool(finite.all()):
        i = int((~finite).nonzero()[0])
        raise ValueError(f"scores[{i}] is {scores[i].item()}: scores must be finite (as fp32)")


def _check_masks(masks: Rows, responses: Rows, uncounted: int) -> None:
    for i, (mask, response) in enumerate(zip(masks, responses, strict=True)):
        if mask.shape != response.shape:
            raise ValueError(
                f"response_masks[{i}] has shape {tuple(mask.shape)}, its response "
                f"{tuple(response.shape)}: give one entry per response token"
            )
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"response_masks[{i}] must hold 0 and 1 only: 1 where a token counts")
        if not bool(mask[uncounted:].any()):
            but = f" from token {uncounted} on" if uncounted else ""
            raise ValueError(f"response_masks[{i}] is all 0{but}: at least one token must count")


def _check_counted(responses: Rows, masks: Rows | None, uncounted: int) -> None:
    for i, response in enumerate(responses):
        if len(response) <= uncounted:
            raise ValueError(
                f"responses[{i}] has {len(response)} tokens, of which an encoder-decoder's first "
                f"{uncounted} do not count: at least {uncounted + 1} are needed"
            )
    rows = responses if masks is None else masks
    counted = sum(len(r) - uncounted if masks is None else int(r[uncounted:].sum()) for r in rows)
    if counted < 2:
        raise ValueError(
            "responses: a single token counts in the whole batch, and advantages are whitened over "
            "at least two; use longer responses or a larger batch_size"
        )


def check_step_inputs(
    batch_size: int | None,
    queries: Rows,
    responses: Rows,
    scores: Rows,
    masks: Rows | None,
    limits: Limits,
) -> None:
    """Check a step's rows.

    Args:
        batch_size: rows wanted, or None for any number.
        queries, responses: 1-D token ids, none empty.
        scores: one finite number per row, shape () or (1,).
        masks: 1-D per response, 0 or 1, not all zero; or None.
        limits: of the models that the rows go through.

    Raises:
        ValueError: naming the argument, the row and what is wrong with it.
    """
    wanted = batch_size
    for name, rows in (("queries", queries), ("responses", responses), ("scores", scores)):
        _check_list(name, rows, wanted)
        wanted = len(rows)
    if masks is not None:
        _check_list("response_masks", masks, wanted)
    if not queries:
        raise ValueError("queries is empty: a step needs at least one row")
    check_prompts("queries", queries, limits.vocabulary)
    check_prompts("responses", responses, limits.vocabulary)
    _check_lengths(queries, responses, limits.tokens)
    if masks is not None:
        _check_masks(masks, responses, limits.uncounted)
    _check_counted(responses, masks, limits.uncounted)
    _check_scores(scores)
