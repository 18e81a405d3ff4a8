"""Checks on what a `step()` is given; all of them before anything is changed."""

from __future__ import annotations

from typing import Any

import torch

Rows = list[torch.Tensor]


def _check_list(name: str, rows: Any, batch_size: int | None) -> None:
    if not isinstance(rows, list):
        raise ValueError(f"{name} must be a list of tensors, got {type(rows).__name__}")
    if batch_size is not None and len(rows) != batch_size:
        raise ValueError(
            f"{name} has {len(rows)} entries but the batch size is {batch_size}: give one per row, "
            "or set batch_size in the config to the number of rows of a step"
        )
    for i, row in enumerate(rows):
        if not isinstance(row, torch.Tensor):
            raise ValueError(f"{name}[{i}] must be a tensor, got {type(row).__name__}")


def _check_tokens(name: str, rows: Rows, vocab_size: int | None) -> None:
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(f"{name}[{i}] must be 1-D, got shape {tuple(row.shape)}: squeeze it")
        if row.is_floating_point() or row.dtype == torch.bool:
            raise ValueError(f"{name}[{i}] must hold token ids, got {row.dtype}: use .long()")
        if row.numel() == 0:
            raise ValueError(f"{name}[{i}] is empty: every row needs at least one token")
    if vocab_size is None:
        return
    joined = torch.cat([row.reshape(-1) for row in rows])
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


def _check_scores(scores: Rows) -> None:
    for i, score in enumerate(scores):
        if score.ndim > 1 or score.numel() != 1:
            raise ValueError(f"scores[{i}] must hold one number, got shape {tuple(score.shape)}")
    finite = torch.stack([score.reshape(()).float() for score in scores]).isfinite()
    if not bool(finite.all()):
        i = int((~finite).nonzero()[0])
        raise ValueError(f"scores[{i}] is {scores[i].item()}: scores must be finite")


def _check_masks(masks: Rows, responses: Rows) -> None:
    for i, (mask, response) in enumerate(zip(masks, responses, strict=True)):
        if mask.shape != response.shape:
            raise ValueError(
                f"response_masks[{i}] has shape {tuple(mask.shape)}, its response "
                f"{tuple(response.shape)}: give one entry per response token"
            )
        if not bool(mask.bool().any()):
            raise ValueError(f"response_masks[{i}] is all 0: at least one token must count")


def check_step_inputs(
    batch_size: int | None,
    queries: Rows,
    responses: Rows,
    scores: Rows,
    masks: Rows | None,
    vocab_size: int | None,
) -> None:
    """Check a step's rows.

    Args:
        batch_size: rows wanted, or None for any number.
        queries, responses: 1-D token ids, none empty.
        scores: one finite number per row, shape () or (1,).
        masks: 1-D per response, not all zero; or None.
        vocab_size: ids must be below it; None leaves ids unchecked.

    Raises:
        ValueError: naming the argument, the row and what is wrong with it.
    """
    wanted = batch_size
    for name, rows in (("queries", queries), ("responses", responses), ("scores", scores)):
        _check_list(name, rows, wanted)
        wanted = len(rows)
    if masks is not None:
        _check_list("response_masks", masks, wanted)
        _check_masks(masks, responses)
    if not queries:
        raise ValueError("queries is empty: a step needs at least one row")
    _check_tokens("queries", queries, vocab_size)
    _check_tokens("responses", responses, vocab_size)
    _check_scores(scores)
