"""Answers as trainers learn from them: padded rows, cut into slices and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fastrl.train.batch import Batch
from fastrl.types import Shared, Spans

Message = dict[str, Any]
Text = str | list[Message]

# A part this much heavier than an equal share of the work is cut in two.
UNEVEN = 1.5


def put(rows: list[Any], others: Sequence[Any], index: Sequence[int]) -> list[Any]:
    """Rows with the first of others at the places `index`."""
    rows = list(rows)
    for place, other in zip(index, others, strict=False):
        rows[place] = other
    return rows


@dataclass(frozen=True)
class Drawn:
    """Answers to the rows of a generation batch on this process; every list has a row's entry."""

    prompts: list[Text]  # as reward functions see them
    completions: list[Text]  # a text, or the messages that were added
    prompt_ids: list[Sequence[int]]
    completion_ids: list[Sequence[int]]  # through the end-of-sequence token, never empty
    # which tokens of an answer the model wrote; None: all
    written: list[Sequence[bool]] | None = None
    # log-probability of each token as the engine drew it, NaN where it has none; None: not known
    sampled_logp: list[Sequence[float]] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # columns a rollout function added
    stopped: list[bool] | None = None  # which answers a stop string ended; None: not known, or none
    tool_calls: int = 0
    tool_failures: int = 0
    environments: list[Any] | None = None  # of each row, where there are any

    def replaced(self, other: Drawn, index: Sequence[int]) -> Drawn:
        """With the first answers of another batch at some places."""
        lists = {
            name: put(held, getattr(other, name), index)
            for name, held in self.__dict__.items()
            if isinstance(held, list)
        }
        extra = {
            name: put(held, other.extra[name], index) if isinstance(held, list) else held
            for name, held in self.extra.items()
        }
        calls = self.tool_calls + other.tool_calls
        failures = self.tool_failures + other.tool_failures
        return replace(self, **lists, extra=extra, tool_calls=calls, tool_failures=failures)

    def within(self, longest: int, together: int) -> Drawn:
        """With prompts that lost their beginning where prompt and answer were longer than that.

        Args:
            longest: most tokens of both; of a prompt the last token stays, and answers do whole.
            together: how many rows on end answer one prompt; they are cut alike.
        """
        cut: list[Sequence[int]] = []
        for start in range(0, len(self.prompt_ids), together):
            rows = slice(start, start + together)
            room = max(longest - max(map(len, self.completion_ids[rows])), 1)
            cut += [ids[-room:] for ids in self.prompt_ids[rows]]
        return replace(self, prompt_ids=cut)

    def lengths(self) -> list[int]:
        """Tokens the model wrote in each answer."""
        if self.written is None:
            return [len(ids) for ids in self.completion_ids]
        return [int(sum(mask)) for mask in self.written]


def padded(
    rows: Sequence[Sequence[Any]],
    fill: float,
    dtype: torch.dtype,
    left: bool = False,
    multiple: int | None = None,
) -> torch.Tensor:
    """(B, T) on the host, rows padded by `fill` on one side to a multiple of `multiple`."""
    width = max(map(len, rows))
    if multiple is not None:
        width = -(-width // multiple) * multiple
    held = torch.full((len(rows), width), fill, dtype=dtype)
    for line, row in zip(held, rows, strict=True):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        line[place] = torch.as_tensor(row, dtype=dtype)
    return held


@dataclass(frozen=True)
class Experience:
    """B answers with what a loss needs of each.

    `tensors` has TRL's keys: `prompt_ids`, `prompt_mask` (B, P) padded in front, `completion_ids`,
    `completion_mask` (B, C) padded behind, and what the algorithm adds: (B,), (B, C), (B, 1) or a
    scalar. The host knows the lengths, which tokens are scored, and which rows answer the same
    prompt, so that no padding is computed and nothing waits for a device.
    """

    tensors: dict[str, torch.Tensor]
    prompt_lengths: list[int]
    completion_lengths: list[int]
    # the tokens of each answer that count, within the answer, rising; all of them mostly
    scored: list[np.ndarray]
    prompts: list[int]  # rows with equal numbers answer the same prompt
    multiple: int | None = None  # what P and C are multiples of, if of anything

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def tokens(self) -> list[int]:
        """How many tokens of each answer count."""
        return [len(which) for which in self.scored]

    @property
    def width(self) -> tuple[int, int]:
        """(P, C) of the padded rows."""
        return self.tensors["prompt_ids"].shape[1], self.tensors["completion_ids"].shape[1]

    def take(self, rows: Sequence[int]) -> Experience:
        """Some of the rows, without columns that are padding in all of them and not asked for."""
        prompt, completion = self.width
        front = prompt - self._kept(max(self.prompt_lengths[i] for i in rows), prompt)
        behind = self._kept(max(self.completion_lengths[i] for i in rows), completion)
        index = torch.as_tensor(rows, device=self.tensors["prompt_ids"].device)
        tensors = {}
        for name, tensor in self.tensors.items():
            held = tensor if tensor.dim() == 0 else tensor.index_select(0, index)
            if name in ("prompt_ids", "prompt_mask"):
                held = held[:, front:]
            elif held.dim() == 2 and held.shape[1] == completion:
                held = held[:, :behind]
            tensors[name] = held
        return Experience(
            tensors,
            [self.prompt_lengths[i] for i in rows],
            [self.completion_lengths[i] for i in rows],
            [self.scored[i] for i in rows],
            [self.prompts[i] for i in rows],
            self.multiple,
        )

    def _kept(self, needed: int, width: int) -> int:
        """Columns to keep where so many hold something."""
        multiple = self.multiple or 1
        return min(width, -(-needed // multiple) * multiple)

    def cut(self, parts: int) -> list[Experience]:
        """Equal parts in order; rows that are left over belong to none."""
        size = len(self) // parts
        return [self.take(range(i * size, (i + 1) * size)) for i in range(parts)]

    def with_tensors(self, **more: torch.Tensor) -> Experience:
        """The same answers, with more known of them."""
        fields = {**self.__dict__, "tensors": {**self.tensors, **more}}
        return Experience(**fields)

    def batch(self) -> Batch:
        """What `compute_loss` gets, prompts to be computed once."""
        return Batch({**self.tensors, "spans": self.spans()})

    def spans(self) -> Spans:
        """Where the answers lie in [prompt | completion] (B, P + C)."""
        prompt, completion = self.width
        members: dict[int, list[int]] = {}
        for row, key in enumerate(self.prompts):
            members.setdefault(key, []).append(row)
        return Spans(
            shape=(len(self), prompt + completion),
            rows=list(range(len(self))),
            starts=[prompt - length for length in self.prompt_lengths],
            lengths=[
                p + c for p, c in zip(self.prompt_lengths, self.completion_lengths, strict=True)
            ],
            scored=[
                which + length
                for which, length in zip(self.scored, self.prompt_lengths, strict=True)
            ],
            shared=tuple(
                Shared(tuple(rows), self.prompt_lengths[rows[0]])
                for rows in members.values()
                if len(rows) > 1
            ),
        )


def joined(parts: Sequence[Experience], pad_token_id: int) -> Experience:
    """The rows of several experiences one after the other; scalars are left out."""
    wide = [max(part.width[side] for part in parts) for side in (0, 1)]
    tensors = {}
    for name, tensor in parts[0].tensors.items():
        if tensor.dim() == 0:
            continue
        # A number for each answer looks like one for each token where answers have one token.
        of_tokens = all(part.tensors[name].shape[1:] == part.width[1:] for part in parts)
        columns = []
        for part in parts:
            held = part.tensors[name]
            lacking = (wide[0] - part.width[0], wide[1] - part.width[1])
            fill = pad_token_id if name.endswith("_ids") else 0
            if name in ("prompt_ids", "prompt_mask"):
                held = torch.nn.functional.pad(held, (lacking[0], 0), value=fill)
            elif of_tokens:
                held = torch.nn.functional.pad(held, (0, lacking[1]), value=fill)
            columns.append(held)
        tensors[name] = torch.cat(columns)
    return Experience(
        tensors,
        [length for part in parts for length in part.prompt_lengths],
        [length for part in parts for length in part.completion_lengths],
        [which for part in parts for which in part.scored],
        [number for part in parts for number in part.prompts],
        parts[0].multiple,
    )


def regrouped(experience: Experience, parts: int, together: int = 1) -> list[list[int]]:
    """Rows for `parts` passes of like work, answers to a prompt together where that is possible.

    Work is counted in tokens fed: a prompt once in each pass that has answers to it. Heavy groups
    are halved until every pass can have one and none is more than `UNEVEN` times an equal share;
    `together` rows on end answer one prompt and stay in one pass.
    """

    def work(rows: Sequence[int]) -> int:
        return experience.prompt_lengths[rows[0]] + sum(
            experience.completion_lengths[row] for row in rows
        )

    groups: dict[int, list[int]] = {}
    for row, key in enumerate(experience.prompts):
        groups.setdefault(key, []).append(row)
    pieces = sorted(groups.values(), key=work, reverse=True)
    while len(pieces[0]) > together or len(pieces) < parts:
        share = sum(map(work, pieces)) / parts
        if len(pieces) >= parts and work(pieces[0]) <= UNEVEN * share:
            break
        largest = next(i for i, piece in enumerate(pieces) if len(piece) > together)
        piece = pieces.pop(largest)
        half = len(piece) // (2 * together) * together
        pieces = sorted([*pieces, piece[:half], piece[half:]], key=work, reverse=True)
    passes: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for piece in pieces:
        lightest = min(range(parts), key=lambda i: (loads[i], i))
        passes[lightest] += piece
        loads[lightest] += work(piece)
    return [sorted(rows, key=lambda row: (experience.prompts[row], row)) for rows in passes]
