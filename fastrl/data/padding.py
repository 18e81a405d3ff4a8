"""Rows of tensors padded, shifted and cut, under TRL's names for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from fastrl.ops.classic import first_true_indices

Ids = dict[str, list[int]]


def pad(
    tensors: Sequence[torch.Tensor],
    padding_value: float = 0,
    padding_side: str = "right",
    pad_to_multiple_of: int | None = None,
) -> torch.Tensor:
    """Tensors (T_i, …) as one (B, T, …), each filled up to the largest of every dimension.

    Args:
        tensors: at least one, all of as many dimensions.
        padding_value: fills what is missing.
        padding_side: "left" or "right", where the first dimension is filled; others always behind.
        pad_to_multiple_of: T is a multiple of this.

    Returns:
        the dtype and device of the first tensor.

    Raises:
        ValueError: for another side, or no tensor.
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', not {padding_side!r}")
    if not tensors:
        raise ValueError("tensors is empty: there is nothing to pad")
    sizes = [max(lengths) for lengths in zip(*(t.shape for t in tensors), strict=True)]
    if pad_to_multiple_of is not None:
        sizes[0] = -(-sizes[0] // pad_to_multiple_of) * pad_to_multiple_of
    out = tensors[0].new_full((len(tensors), *sizes), padding_value)
    for line, tensor in zip(out, tensors, strict=True):
        first = sizes[0] - len(tensor) if padding_side == "left" else 0
        place = [slice(first, first + len(tensor)), *(slice(n) for n in tensor.shape[1:])]
        line[tuple(place)] = tensor
    return out


def pad_to_length(
    tensor: torch.Tensor, length: int, pad_value: float, dim: int = -1
) -> torch.Tensor:
    """The tensor with `pad_value` behind it up to a length in one dimension; never cut."""
    missing = max(length - tensor.shape[dim], 0)
    behind = [0, 0] * (tensor.dim() - 1 - dim % tensor.dim()) + [0, missing]
    return functional.pad(tensor, behind, value=pad_value)


def _rolled(
    shifts: torch.Tensor, columns: slice, mask: torch.Tensor, tensors: Sequence[torch.Tensor]
) -> Any:
    """Every row moved left by its own shift, what leaves coming back at the other end."""
    width = mask.shape[1]
    index = (torch.arange(width, device=mask.device) + shifts[:, None]) % max(width, 1)
    moved = [tensor.gather(1, index)[:, columns] for tensor in (mask, *tensors)]
    return tuple(moved) if tensors else moved[0]


def flush_left(mask: torch.Tensor, *tensors: torch.Tensor) -> Any:
    """Every row moved left until its first counted token is in front, common padding cut off.

    Args:
        mask: (B, T), not 0 where a token counts.
        tensors: (B, T) each, moved along.

    Returns:
        the mask (B, T'), or it and the tensors; T' is the longest row from its first counted token
        to its last.
    """
    width = mask.shape[1]
    counts = mask != 0
    first = first_true_indices(counts) % max(width, 1)
    last = width - first_true_indices(counts.flip(1))
    longest = int((last - first).clamp(min=0).max()) if mask.numel() else 0
    return _rolled(first, slice(longest), mask, tensors)


def flush_right(mask: torch.Tensor, *tensors: torch.Tensor) -> Any:
    """As `flush_left`, to the right: every row's last counted token is in the last column."""
    flipped = flush_left(mask.flip(1), *(tensor.flip(1) for tensor in tensors))
    if not tensors:
        return flipped.flip(1)
    return tuple(tensor.flip(1) for tensor in flipped)


def truncate_right(
    input_ids: torch.Tensor, stop_token_ids: int | Sequence[int], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Responses with padding after their first stop token, which stays.

    Args:
        input_ids: (..., T) token ids.
        stop_token_ids: one stop token, or several.
        pad_token_id: what comes after it.

    Returns:
        the ids, and their mask, 1 up to and with the stop token; both (..., T) int64.
    """
    several = [stop_token_ids] if isinstance(stop_token_ids, int) else list(stop_token_ids)
    stops = torch.isin(input_ids, torch.tensor(several, device=input_ids.device))
    after = torch.arange(input_ids.shape[-1], device=input_ids.device) > first_true_indices(
        stops
    ).unsqueeze(-1)
    return input_ids.masked_fill(after, pad_token_id), (~after).to(input_ids.dtype)


def truncate_response(
    stop_token_id: int, pad_token_id: int, responses: torch.Tensor
) -> torch.Tensor:
    """(B, T) responses with padding after their first stop token, which stays."""
    return truncate_right(responses, stop_token_id, pad_token_id)[0]


def decode_and_strip_padding(inputs: torch.Tensor, tokenizer: Any) -> list[str]:
    """The texts of (B, T) token ids, special tokens too, without the padding token."""
    kept = [row[row != tokenizer.pad_token_id] for row in inputs]
    return tokenizer.batch_decode(kept, skip_special_tokens=False)


def add_bos_token_if_needed(
    bos_token_id: int | None,
    prompt_len_input_ids: int,
    prompt_tokens: Ids,
    chosen_prompt_len_input_ids: int,
    chosen_tokens: Ids,
    rejected_prompt_len_input_ids: int,
    rejected_tokens: Ids,
) -> tuple[Ids, Ids, Ids]:
    """A pair's three prompts, changed in place to begin with the beginning-of-sequence token.

    Args:
        bos_token_id: None: there is no such token, and nothing changes.
        prompt_len_input_ids, chosen_prompt_len_input_ids, rejected_prompt_len_input_ids: tokens of
            each prompt.
        prompt_tokens, chosen_tokens, rejected_tokens: hold `prompt_input_ids` and
            `prompt_attention_mask`.
    """
    lengths = (prompt_len_input_ids, chosen_prompt_len_input_ids, rejected_prompt_len_input_ids)
    parts = (prompt_tokens, chosen_tokens, rejected_tokens)
    for length, part in zip(lengths, parts, strict=True):
        ids = part["prompt_input_ids"]
        if bos_token_id is not None and (length == 0 or ids[0] != bos_token_id):
            part["prompt_input_ids"] = [bos_token_id, *ids]
            part["prompt_attention_mask"] = [1, *part["prompt_attention_mask"]]
    return parts


def add_eos_token_if_needed(
    eos_token_id: int, chosen_tokens: Ids, rejected_tokens: Ids
) -> tuple[Ids, Ids]:
    """Both answers, changed in place to end with the end-of-sequence token.

    Args:
        eos_token_id: that token.
        chosen_tokens, rejected_tokens: hold `input_ids` and `attention_mask`.
    """
    for part in (chosen_tokens, rejected_tokens):
        if part["input_ids"][-1:] != [eos_token_id]:
            part["input_ids"].append(eos_token_id)
            part["attention_mask"].append(1)
    return chosen_tokens, rejected_tokens
