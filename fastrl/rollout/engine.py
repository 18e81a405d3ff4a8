"""Continuous batching in this process: prompts in, answers out, no padding in between.

Each prompt is fed once. Its answers take slots of a running batch, one token a step; a row that
ends leaves at once and a waiting one enters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fastrl.models.policy import PACK_TOKENS
from fastrl.ops.decode_attention import Decoding
from fastrl.ops.penalise import penalise
from fastrl.ops.sample import sample
from fastrl.ops.token_logprobs import token_logprobs
from fastrl.rollout.completion import Completion, Finish, Request
from fastrl.rollout.keyvalues import Decode, Prefill, Slots
from fastrl.rollout.lockstep import Lockstep
from fastrl.rollout.sampling import Sampling
from fastrl.rollout.serving import Served

# Rows decoded together: enough that reading the weights is shared, few enough to fit.
MAX_ROWS = {"cpu": 64, "cuda": 256}

Ends = Callable[[list[int]], bool]  # answer so far -> whether a stop string has come up


@dataclass
class _Row:
    """An answer under way."""

    request: int
    number: int  # which of the request's answers
    seed: int
    limit: int
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    logp_full: list[float] = field(default_factory=list)


@dataclass
class _Prompt:
    """A prompt some of whose answers have not ended."""

    request: int
    to_come: int  # answers that have not ended
    logits: torch.Tensor = field(init=False)  # (V,) after its last token


class Engine:
    """One rollout over a served model.

    Args:
        served: the model, in evaluation mode and without gradients for as long as this lives.
        requests: prompts of at least one token.
        sampling: how tokens are chosen.
        ends: whether an answer's tokens end with a stop string; None: there are none.
        max_rows: answers decoded together; None: `MAX_ROWS`.
    """

    def __init__(
        self,
        served: Served,
        requests: Sequence[Request],
        sampling: Sampling,
        ends: Ends | None = None,
        max_rows: int | None = None,
    ) -> None:
        self.served = served
        self.requests = requests
        self.sampling = sampling
        self.ends = ends
        self.device = served.device
        self.max_rows = max_rows or MAX_ROWS.get(self.device.type, 64)
        self.waiting = deque(
            _Row(i, j, seed, limit)
            for i, request in enumerate(requests)
            for j, (seed, limit) in enumerate(zip(request.seeds, request.limits, strict=True))
        )
        self.most_rows = min(self.max_rows, len(self.waiting))
        self.rows: list[_Row] = []  # row i is in slot i of `answers`
        self.prompts: list[_Prompt] = []  # prompt i is in slot i of `prompt_keys`
        self.answers = Slots()
        self.prompt_keys = Slots()
        self.done: list[list[Completion | None]] = [[None] * len(r.seeds) for r in requests]
        self.lockstep = Lockstep(served)

    def run(self) -> list[tuple[Completion, ...]]:
        """The answers to each request, in order."""
        while self.lockstep.anyone(bool(self.rows or self.waiting)):
            self._step()
        return [tuple(c for c in answers if c is not None) for answers in self.done]

    def _step(self) -> None:
        """One pass through the model, of new prompts or of the running rows."""
        running = len(self.rows)
        fresh = self._enter()
        if fresh:
            self._prefill(fresh)
        if len(self.rows) > running:
            first = {prompt.request: prompt.logits for prompt in self.prompts}
            self._take(torch.stack([first[row.request] for row in self.rows[running:]]), running)
        if fresh:
            return
        if self.rows:
            self._take(self._decode(), 0)
        else:
            self.lockstep.idle()

    def _enter(self) -> list[_Prompt]:
        """Give waiting rows the free slots; returns the prompts that this needs, to be fed."""
        known = {prompt.request for prompt in self.prompts}
        fresh: list[_Prompt] = []
        tokens = 0
        while self.waiting and len(self.rows) < self.max_rows:
            request = self.waiting[0].request
            if request not in known:
                tokens += len(self.requests[request].prompt_ids)
                if fresh and tokens > PACK_TOKENS.get(self.device.type, 8192):
                    break
                known.add(request)
                fresh.append(_Prompt(request, len(self.requests[request].seeds)))
            self.rows.append(self.waiting.popleft())
        return fresh

    def _prefill(self, fresh: list[_Prompt]) -> None:
        prompts = [self.requests[prompt.request].prompt_ids for prompt in fresh]
        lengths = [len(ids) for ids in prompts]
        ids, positions = self._to_device(
            np.concatenate(prompts), np.concatenate([np.arange(n) for n in lengths])
        )
        last = torch.tensor(np.cumsum(lengths) - 1, device=self.device)
        attends = Prefill(tuple(lengths), self.prompt_keys, len(self.prompts))
        logits = self.served.logits(ids, positions, attends, last)
        for prompt, row in zip(fresh, logits, strict=True):
            prompt.logits = row
        self.prompts += fresh

    def _to_device(self, *columns: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, ...]:
        """Each (n,) int64, by one copy."""
        return torch.tensor(np.array(columns, dtype=np.int64), device=self.device).unbind()

    def _decode(self) -> torch.Tensor:
        """(n, V) logits after the newest token of each row, which is fed."""
        slot = {prompt.request: i for i, prompt in enumerate(self.prompts)}
        prompt_lengths = [len(self.requests[prompt.request].prompt_ids) for prompt in self.prompts]
        of_row = [slot[row.request] for row in self.rows]
        kept = [len(row.ids) - 1 for row in self.rows]
        positions = [prompt_lengths[i] + length for i, length in zip(of_row, kept, strict=True)]
        ids, places = self._to_device([row.ids[-1] for row in self.rows], positions)
        at = Decoding.of(of_row, kept, prompt_lengths, self.device)
        room = (self.most_rows, -(-at.longest_answer // 64) * 64)
        attends = Decode(at, self.prompt_keys, self.answers, room)
        return self.served.logits(ids, places, attends)

    def _take(self, logits: torch.Tensor, first: int) -> None:
        """Draw a token for each row from `first` on; rows that end leave."""
        rows = self.rows[first:]
        seeds, steps = self._to_device([row.seed for row in rows], [len(row.ids) for row in rows])
        how = self.sampling
        shaped = logits
        if how.repetition_penalty != 1.0:
            shaped = penalise(logits, self._seen(rows), how.repetition_penalty)
        tokens, logp, logp_full = sample(
            shaped, seeds, steps, how.temperature, how.top_k, how.top_p, how.min_p
        )
        if how.repetition_penalty != 1.0:
            logp_full, _ = token_logprobs(logits, tokens, how.temperature or 1.0)
        drawn = torch.stack([tokens.double(), logp.double(), logp_full.double()]).tolist()
        for row, token, p, full in zip(rows, *drawn, strict=True):
            row.ids.append(int(token))
            row.logp.append(p)
            row.logp_full.append(full)
        for i in reversed(range(first, len(self.rows))):
            finish = self._finish(self.rows[i])
            if finish is not None:
                self._leave(i, finish)

    def _seen(self, rows: list[_Row]) -> torch.Tensor:
        """(n, L) int64 tokens of prompt and answer, padded by -1."""
        held = [[*self.requests[row.request].prompt_ids, *row.ids] for row in rows]
        seen = np.full((len(rows), max(map(len, held))), -1, dtype=np.int64)
        for line, ids in zip(seen, held, strict=True):
            line[: len(ids)] = ids
        return torch.from_numpy(seen).to(self.device)

    def _finish(self, row: _Row) -> Finish | None:
        if row.ids[-1] in self.sampling.eos:
            return "eos"
        if self.ends is not None and self.ends(row.ids):
            return "stop"
        return "length" if len(row.ids) >= row.limit else None

    def _leave(self, slot: int, finish: Finish) -> None:
        """Record a row's answer; the last row takes its slot, and so for a prompt that is done."""
        row = self.rows[slot]
        self.done[row.request][row.number] = Completion(
            tuple(row.ids), tuple(row.logp), tuple(row.logp_full), finish
        )
        last = self.rows.pop()
        if last is not row:
            self.rows[slot] = last
            self.answers.move(len(self.rows), slot, len(last.ids) - 1)
        at = next(i for i, prompt in enumerate(self.prompts) if prompt.request == row.request)
        self.prompts[at].to_come -= 1
        if self.prompts[at].to_come == 0:
            moved = self.prompts.pop()
            if at < len(self.prompts):
                self.prompts[at] = moved
                length = len(self.requests[moved.request].prompt_ids)
                self.prompt_keys.move(len(self.prompts), at, length)
