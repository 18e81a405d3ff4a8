"""A generation batch: rows to answers, answers to scores, and the record of both."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastrl.rewards.running import RewardFunctions, Scores
from fastrl.train.agreement import agreed
from fastrl.train.completion_log import CompletionLog
from fastrl.train.drawing import Drawing, DrawnBy
from fastrl.train.experience import Drawn, Experience, padded, put

Row = dict[str, Any]

_IDLE = 10  # generation batches that teach nothing before it is said
_UNSCORED = ("prompt", "completion", "completion_ids")


@dataclass(frozen=True)
class Scored:
    """B rows of this process, answers to them and what reward functions said."""

    rows: list[Row]
    drawn: Drawn
    values: torch.Tensor  # (B, K) fp32 on the host, NaN where there is no reward
    logged: dict[str, list[Any]]  # columns that reward functions gave to the log

    def replaced(self, other: Scored, index: list[int]) -> Scored:
        """With the first rows of another batch at some places."""
        count = len(index)
        at = torch.tensor(index, dtype=torch.int64)
        logged = {
            name: put(values, other.logged[name], index)
            for name, values in self.logged.items()
            if count <= len(other.logged.get(name, ()))
        }
        return Scored(
            put(self.rows, other.rows, index),
            self.drawn.replaced(other.drawn, index),
            self.values.index_copy(0, at, other.values[:count]),
            logged,
        )


class Collecting:
    """Draws, scores and records for an online trainer.

    Args:
        trainer: the `OnlineTrainer`.
        rewards: the reward functions; None: see `Unscored`.
        drawn_by: how answers come about where the engine does not simply draw them.
    """

    _rewards: RewardFunctions

    def __init__(self, trainer: Any, rewards: RewardFunctions | None, drawn_by: DrawnBy) -> None:
        self._trainer = trainer
        if rewards is not None:
            self._rewards = rewards
        self._drawing = Drawing(trainer, drawn_by)
        names = [] if rewards is None else rewards.names
        self.completions = CompletionLog(trainer.args, trainer.accelerator, names)
        self._user_metrics: dict[str, list[float]] = defaultdict(list)
        self._prompts_seen = 0
        self._idle = 0  # generation batches on end that taught nothing

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self._drawing.ends

    def slices(self, rows: list[Row], count: int) -> list[Experience]:
        """Answers to the rows of this process: in training shuffled and cut, else whole.

        Every process takes part in the gathering of rewards.
        """
        trainer = self._trainer
        together = trainer.answers_a_row
        found = self._scored([row for row in rows for _ in range(together)])
        if trainer.model.training and trainer.args.dynamic_sampling:
            found = self._livelier(found)
        scores = self.gathered(found.values)
        self._record_lengths(found.drawn)
        answers = trainer.experience(self._padded(self._cut(found.drawn)), scores)
        self._record_rewards(found, scores, answers)
        if not trainer.model.training:
            return [answers]
        order = torch.randperm(len(answers) // together)[:, None] * together
        rows_in_order = (order + torch.arange(together)).flatten().tolist()
        return answers.take(rows_in_order).cut(count)

    def _cut(self, drawn: Drawn) -> Drawn:
        """Answers with as much of their prompts as is computed."""
        longest = getattr(self._trainer.args, "max_length", None)  # a field of online DPO's
        return drawn if longest is None else drawn.within(longest, self._trainer.answers_a_row)

    # --- scores ----------------------------------------------------------------------------------

    def _scored(self, rows: list[Row]) -> Scored:
        """Answers to rows of this process, with the scores of reward functions."""
        trainer = self._trainer
        with agreed(trainer.accelerator, "drawing answers"):
            drawn = self._drawing.draw(rows)
        logged: dict[str, list[Any]] = defaultdict(list)
        with agreed(trainer.accelerator, "scoring answers"):
            found = self._rewards.score(
                prompts=drawn.prompts,
                completions=drawn.completions,
                completion_ids=drawn.completion_ids,
                columns=self._columns(rows, drawn),
                trainer_state=trainer.state,
                log_extra=lambda column, values: logged[column].extend(values),
                log_metric=lambda name, value: self._user_metrics[name].append(float(value)),
                environments=drawn.environments,
            )
            columns = self.completions.columns(logged, len(rows))
        self._record_unscored(found)
        return Scored(rows, drawn, found.values, columns)

    def _livelier(self, found: Scored) -> Scored:
        """The batch with new prompts in place of those whose answers all score alike.

        Such groups teach nothing (DAPO, arXiv 2503.14476, section 3.2). Each process replaces
        groups of its own, and all go through as many rounds.
        """
        trainer, group = self._trainer, self._trainer.args.num_generations
        drawn = len(found.rows) // group  # groups, in all rounds
        places = dull(found.values, trainer.reward_weights, group)
        for _ in range(trainer.args.dynamic_sampling_rounds):
            if not self._drawing.anyone(bool(places)):
                break
            rows = [row for row in self._reserve(len(places)) for _ in range(group)]
            # A process with nothing to replace draws along; what it draws is not used.
            more = self._scored(rows or found.rows[:group])
            found = found.replaced(more, [g * group + i for g in places for i in range(group)])
            drawn += len(places)
            places = dull(found.values, trainer.reward_weights, group)
        lively = len(found.rows) // group - len(places)
        lively, drawn = self.gathered(torch.tensor([[lively, drawn]])).sum(0).tolist()
        trainer.host_metrics.add("dynamic_sampling/acceptance_rate", lively / drawn)
        return found

    def _reserve(self, count: int) -> list[Row]:
        """Rows of the training set at random."""
        dataset = self._trainer.train_dataset
        return [dataset[i] for i in torch.randint(len(dataset), (count,)).tolist()]

    def _columns(self, rows: list[dict[str, Any]], drawn: Drawn) -> dict[str, list[Any]]:
        """What reward functions get beside the answers: the dataset's columns and a rollout's."""
        names = [name for name in rows[0] if name not in _UNSCORED]
        columns = {name: [row[name] for row in rows] for name in names}
        for name, given in drawn.extra.items():
            columns[name] = list(given) if isinstance(given, list) else [given] * len(rows)
        return columns

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        """(world B, …) of every process, on the host."""
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return values.cpu()
        return accelerator.gather(values.to(accelerator.device)).cpu()

    def own_rows(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """(B, …) of this process out of (world B, …)."""
        first = self._trainer.accelerator.process_index * count
        return values[first : first + count]

    # --- tensors ---------------------------------------------------------------------------------

    def _padded(self, drawn: Drawn) -> Experience:
        trainer, args = self._trainer, self._trainer.args
        pad, multiple = trainer.processing_class.pad_token_id, args.pad_to_multiple_of
        whole = [np.ones(len(ids), dtype=bool) for ids in drawn.completion_ids]
        if args.mask_truncated_completions:
            cut = self._truncated(drawn)
            whole = [mask & (not gone) for mask, gone in zip(whole, cut, strict=True)]
        counted = whole
        prompt_masks = [[1] * len(ids) for ids in drawn.prompt_ids]
        tensors = {
            "prompt_ids": padded(drawn.prompt_ids, pad, torch.int64, True, multiple),
            "prompt_mask": padded(prompt_masks, 0, torch.int64, True, multiple),
            "completion_ids": padded(drawn.completion_ids, pad, torch.int64, False, multiple),
            "completion_mask": padded(whole, 0, torch.int64, False, multiple),
        }
        if drawn.written is not None:
            counted = [
                mask & np.asarray(own) for mask, own in zip(whole, drawn.written, strict=True)
            ]
            tensors["tool_mask"] = padded(drawn.written, 1, torch.int64, False, multiple)
        if drawn.sampled_logp is not None:
            tensors["sampling_per_token_logps"] = padded(
                drawn.sampled_logp, 0.0, torch.float32, False, multiple
            )
        tokens = torch.tensor([[int(mask.sum())] for mask in counted])
        tensors["num_items_in_batch"] = self.gathered(tokens).sum()
        device = args.device
        return Experience(
            {name: tensor.to(device) for name, tensor in tensors.items()},
            [len(ids) for ids in drawn.prompt_ids],
            [len(ids) for ids in drawn.completion_ids],
            [np.flatnonzero(mask) for mask in counted],
            self._numbers(drawn.prompt_ids),
            multiple,
        )

    def _numbers(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """A number for each different prompt, used in no other generation batch."""
        known: dict[tuple[int, ...], int] = {}
        found = [known.setdefault(tuple(ids), len(known)) for ids in prompts]
        start, self._prompts_seen = self._prompts_seen, self._prompts_seen + len(known)
        return [start + number for number in found]

    def _truncated(self, drawn: Drawn) -> list[bool]:
        """Which answers were cut off by the limit."""
        last = {*self.ends, self._trainer.processing_class.pad_token_id}
        stopped = drawn.stopped or [False] * len(drawn.completion_ids)
        pairs = zip(drawn.completion_ids, stopped, strict=True)
        return [ids[-1] not in last and not ended for ids, ended in pairs]

    # --- the record ------------------------------------------------------------------------------

    def _record_lengths(self, drawn: Drawn) -> None:
        trainer, add = self._trainer, self._trainer.host_metrics.add
        columns = [
            [len(ids) for ids in drawn.prompt_ids],
            drawn.lengths(),
            [int(cut) for cut in self._truncated(drawn)],
        ]
        prompts, lengths, cut = self.gathered(torch.tensor(columns).T).double().unbind(1)
        if trainer.model.training:
            trainer.state.num_input_tokens_seen += int(prompts.sum() + lengths.sum())
        trainer.host_metrics.replace("num_tokens", trainer.state.num_input_tokens_seen)
        if self._drawing.with_tools:
            self._record_tools(drawn, len(lengths))
        add("completions/mean_length", float(lengths.mean()))
        add("completions/min_length", float(lengths.min()))
        add("completions/max_length", float(lengths.max()))
        add("completions/clipped_ratio", float(cut.mean()))
        ended = lengths[cut == 0]
        ended = ended if len(ended) else torch.zeros(1)
        add("completions/mean_terminated_length", float(ended.mean()))
        add("completions/min_terminated_length", float(ended.min()))
        add("completions/max_terminated_length", float(ended.max()))

    def _record_tools(self, drawn: Drawn, rows: int) -> None:
        counts = self.gathered(torch.tensor([[drawn.tool_calls, drawn.tool_failures]])).sum(0)
        calls, failures = counts.tolist()
        add = self._trainer.host_metrics.add
        add("tools/call_frequency", calls / rows)
        add("tools/failure_frequency", failures / calls if calls else 0.0)

    def _record_unscored(self, found: Scores) -> None:
        """How many rewards timed out or were none, where there are any."""
        counts = torch.tensor([found.timeouts, found.invalid])[None]
        timeouts, invalid = self.gathered(counts).sum(0).tolist()
        for i, name in enumerate(self._rewards.names):
            if timeouts[i]:
                self._trainer.host_metrics.add(f"rewards/{name}/timeouts", timeouts[i])
            if invalid[i]:
                self._trainer.host_metrics.add(f"rewards/{name}/invalid", invalid[i])

    def _record_rewards(self, found: Scored, scores: torch.Tensor, answers: Experience) -> None:
        trainer, add = self._trainer, self._trainer.host_metrics.add
        for i, name in enumerate(self._rewards.names):
            add(f"rewards/{name}/mean", float(scores[:, i].nanmean()))
            add(f"rewards/{name}/std", deviation(scores[:, i]))
        total = weighted_total(scores, trainer.reward_weights)
        add("reward", float(total.nanmean()))
        add("reward_std", deviation(total))
        advantages = self.gathered(answers.tensors["advantages"])
        drawn = found.drawn
        self.completions.add(
            drawn.prompts, drawn.completions, scores.tolist(), advantages.tolist(), found.logged
        )
        self._record_user_metrics()
        self._advise(scores)

    def _advise(self, scores: torch.Tensor) -> None:
        """Say it once if for many generation batches on end no group's rewards differed."""
        group = self._trainer.group_size
        lively = len(dull(scores, self._trainer.reward_weights, group)) < len(scores) // group
        self._idle = 0 if lively else self._idle + 1
        if self._idle == _IDLE:
            warnings.warn(
                f"in each of the last {_IDLE} generation batches all answers to a prompt scored "
                "alike, so nothing was learnt: look at completions (log_completions=True), give "
                "partial credit, raise temperature or num_generations, choose prompts that are "
                "neither too hard nor too easy, or set dynamic_sampling=True",
                stacklevel=2,
            )

    def _record_user_metrics(self) -> None:
        """What reward functions logged, a mean over the values of all processes."""
        trainer = self._trainer
        held = {name: (sum(values), len(values)) for name, values in self._user_metrics.items()}
        self._user_metrics.clear()
        several = self.completions.of_all([held])
        for name in sorted({name for one in several for name in one}):
            pairs = [one[name] for one in several if name in one]
            total, count = (sum(part) for part in zip(*pairs, strict=True))
            trainer.host_metrics.add(name, total / count)


class Unscored(Collecting):
    """Draws and records answers that no reward function scores: their scores are (B, 0)."""

    def __init__(self, trainer: Any, drawn_by: DrawnBy) -> None:
        super().__init__(trainer, None, drawn_by)

    def _scored(self, rows: list[Row]) -> Scored:
        with agreed(self._trainer.accelerator, "drawing answers"):
            drawn = self._drawing.draw(rows)
        return Scored(rows, drawn, torch.zeros(len(rows), 0), {})

    def _record_rewards(self, found: Scored, scores: torch.Tensor, answers: Experience) -> None:
        drawn = found.drawn
        self.completions.add(drawn.prompts, drawn.completions, scores.tolist(), None, {})


def weighted_total(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(N,) Σ_k w_k r_k of scores (N, K), a missing one counting as 0; NaN where all are missing."""
    total = (scores * weights).nansum(1)
    return total.masked_fill(scores.isnan().all(1), torch.nan)


def deviation(x: torch.Tensor) -> float:
    """Unbiased standard deviation of what is not NaN; NaN of fewer than two."""
    known = x[~x.isnan()]
    return float(known.std()) if len(known) > 1 else float("nan")


def dull(scores: torch.Tensor, weights: torch.Tensor, group: int) -> list[int]:
    """Which groups of scores (B, K) have rewards that do not differ, or none."""
    total = weighted_total(scores, weights).view(-1, group)
    low = total.nan_to_num(nan=torch.inf).amin(1)
    high = total.nan_to_num(nan=-torch.inf).amax(1)
    return (high <= low).nonzero().flatten().tolist()
