"""A language model that calls tools in plain text, turn by turn, until it submits an answer.

The protocol is TRL 0.7's: the model writes `<request><tool>query<call>`, the environment answers
`result<response>`, and the model ends with `<submit>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from fastrl.models import door
from fastrl.models.embeddings import position_limit
from fastrl.rollout.completion import Request
from fastrl.rollout.counts import require_count
from fastrl.rollout.plan import Plan
from fastrl.rollout.prompts import check_prompts, limits, row_seeds
from fastrl.rollout.text_history import TextHistory

Tool = Callable[[str], Any]
Rows = list[torch.Tensor]


class StringStoppingCriteria(StoppingCriteria):
    """For `model.generate`: True once every row holds one of some strings behind its prompt.

    Args:
        stop_strings: the strings.
        tokenizer: decodes what was generated, special tokens too.
    """

    def __init__(self, stop_strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.stop_strings = stop_strings
        self.tokenizer = tokenizer
        self.first_call = True
        self.generated_tokens: list[int] = []  # per row, through the end of its string
        self.start_length = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> bool:
        """Of (B, T) ids, the newest token just appended."""
        if self.first_call:
            self.start_length = input_ids.shape[-1] - 1
            self.generated_tokens = [1] * len(input_ids)
            self.first_call = False
        texts = self.tokenizer.batch_decode(input_ids[:, self.start_length :])
        done = [any(string in text for string in self.stop_strings) for text in texts]
        self.generated_tokens = [
            count + (not ended) for count, ended in zip(self.generated_tokens, done, strict=True)
        ]
        self.first_call = all(done)
        return self.first_call


def _named(tools: Any) -> dict[str, Tool]:
    """Tools by the name that the model calls them by."""
    if isinstance(tools, Mapping):
        found = dict(tools)
    else:
        listed = list(tools or ())
        names = [getattr(tool, "__name__", type(tool).__name__) for tool in listed]
        found = dict(zip(names, listed, strict=True))
        if len(found) < len(names):
            raise ValueError(f"tools: two have one name ({', '.join(names)}); give a dict of them")
    for name, tool in found.items():
        if not callable(tool):
            raise ValueError(f"tools: {name!r} must be callable, got {type(tool).__name__}")
    return found


class TextEnvironment:
    """Episodes of a model with tools; they feed `PPOTrainer.step`. Interface of TRL 0.7.

    Every segment is tokenised by itself, with the special tokens that its tokenizer adds, as there.
    Answers are drawn by the rollout engine, each ends with the token that completes `<call>` or
    `<submit>`, or with its end-of-sequence token (TRL left the padding behind that one in place).

    Args:
        model: a value-head model, or any causal model of transformers.
        tokenizer: of the model.
        tools: functions of one string, by name; or a list of them, named by class or function.
        reward_fn: called with the last segments of all episodes and the keywords of `run`; gives a
            number or tensor each.
        prompt: stands before every query.
        max_turns: most turns of the model.
        max_tool_reponse: most characters of a tool's result (spelt as in TRL 0.7).
        max_length: an episode of more tokens than this ends, truncated; so does one that fills the
            model's positions.
        generation_kwargs: for `model.generate`.
        max_tool_response: as `max_tool_reponse`.

    Raises:
        ValueError: naming the argument.
    """

    request_token = "<request>"
    call_token = "<call>"
    response_token = "<response>"
    submit_token = "<submit>"

    def __init__(
        self,
        model: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tools: Mapping[str, Tool] | Sequence[Tool] | None = None,
        reward_fn: Callable[..., Sequence[Any]] | None = None,
        prompt: str | None = None,
        max_turns: int = 4,
        max_tool_reponse: int = 100,
        max_length: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        max_tool_response: int | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"tokenizer must be a tokenizer, got {type(tokenizer).__name__}")
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a value-head model, got {type(model).__name__}")
        instance, _ = door.find(model)
        if reward_fn is not None and not callable(reward_fn):
            raise ValueError(f"reward_fn must be callable, got {type(reward_fn).__name__}")
        self.model = model
        self.tokenizer = tokenizer
        self.tools = _named(tools)
        self.reward_fn = reward_fn
        self.prompt = prompt
        self.max_turns = require_count("max_turns", max_turns)
        longest = max_tool_reponse if max_tool_response is None else max_tool_response
        self.max_tool_response = require_count("max_tool_reponse", longest, 3)
        self.max_length = None if max_length is None else require_count("max_length", max_length)
        self.generation_kwargs = dict(generation_kwargs or {})
        self.is_encoder_decoder = bool(getattr(instance.config, "is_encoder_decoder", False))
        self.current_device = instance.device

    def run(
        self, queries: Sequence[str], **rewards_kwargs: Any
    ) -> tuple[Rows, Rows, Rows, list[Any], list[TextHistory]]:
        """Play one episode for each query.

        Args:
            queries: texts that follow the prompt.
            rewards_kwargs: handed to `reward_fn`.

        Returns:
            query ids (Q,), response ids (R,), masks (R,) that are 1 on tokens the model wrote, what
            `reward_fn` gave, and the histories; a list of each, in the order of the queries.

        Raises:
            ValueError: for queries that are no texts or that the model has no room for, no
                `reward_fn`, or another number of rewards than of queries.
        """
        histories = self._begin(queries)
        for _ in range(self.max_turns):
            if all(history.completed for history in histories):
                break
            histories = self.generate(histories)
            histories = self.tasks_end_check(histories)
            histories = [self.step(history) for history in histories]
            histories = self.tasks_end_check(histories, model_turn=False)
        self.compute_reward(histories, **rewards_kwargs)
        split = [history.split_query_response_tokens() for history in histories]
        query_ids, responses, masks = (list(part) for part in zip(*split, strict=True))
        return query_ids, responses, masks, [h.reward for h in histories], histories

    def _begin(self, queries: Sequence[str]) -> list[TextHistory]:
        """The prompts, checked."""
        if isinstance(queries, str) or not queries or not all(isinstance(q, str) for q in queries):
            raise ValueError(f"queries must be a list of texts, at least one, got {queries!r:.80}")
        if self.reward_fn is None:
            raise ValueError("reward_fn was not given, so nothing says what an episode is worth")
        texts = [(self.prompt or "") + query for query in queries]
        tokens = [self._ids(text) for text in texts]
        check_prompts(door.find(self.model)[0], [row.tolist() for row in tokens])
        return [TextHistory(t, row, system=True) for t, row in zip(texts, tokens, strict=True)]

    def _ids(self, text: str) -> torch.Tensor:
        encoded = self.tokenizer(text, return_tensors="pt")
        return encoded["input_ids"][0].to(self.current_device)

    def step(self, history: TextHistory) -> TextHistory:
        """Answer what the model asked for last, unless the episode is over.

        What goes wrong in a tool is told to the model.
        """
        self._end(history, model_turn=True)
        if not history.completed:
            said = self._shortened(self._answer(history.last_text_segment)) + self.response_token
            history.append_segment(said, self._ids(said), system=True)
        return history

    def _end(self, history: TextHistory, model_turn: bool) -> None:
        """Complete a history if it has come to an end."""
        truncated, ended = self.task_end_check(history, model_turn=model_turn)
        if ended:
            history.complete(truncated=truncated)

    def _shortened(self, answer: str) -> str:
        """An answer that keeps to `max_tool_response` characters."""
        fits = len(answer) <= self.max_tool_response
        return answer if fits else answer[: self.max_tool_response - 3] + "..."

    def _answer(self, asked: str) -> str:
        """What the environment says to a call."""
        tool, query = self.parse_tool_call(asked)
        if tool is None or query is None:
            return f"Unknown tool call: {asked}"
        try:
            return str(self.tools[tool](query))
        except Exception as error:  # a tool may fail with anything
            return f"Tool error: {error}"

    def parse_tool_call(self, text: str) -> tuple[str | None, str | None]:
        """(tool, query) of the first `<request><tool>query<call>` in a text; None, None if none."""
        spans = f"{re.escape(self.request_token)}(.*?){re.escape(self.call_token)}"
        call = re.search(spans, text, re.DOTALL)
        if call is None:
            return None, None
        name = re.search(r"<(.*?)>", call[1])
        if name is None:
            return None, None
        return name[1], call[1].partition(">")[2]

    def compute_reward(
        self, histories: list[TextHistory], **reward_kwargs: Any
    ) -> list[TextHistory]:
        """Set `reward` of each history, by its last segment.

        Raises:
            ValueError: no `reward_fn`, or one that gives another number of rewards.
        """
        if self.reward_fn is None:
            raise ValueError("reward_fn was not given, so nothing says what an episode is worth")
        rewards = self.reward_fn([h.last_text_segment for h in histories], **reward_kwargs)
        if len(rewards) != len(histories):
            raise ValueError(f"reward_fn gave {len(rewards)} rewards to {len(histories)} episodes")
        for history, reward in zip(histories, rewards, strict=True):
            history.reward = reward
        return histories

    def generate(self, histories: list[TextHistory]) -> list[TextHistory]:
        """Append the model's next segment to every history that goes on."""
        active = [history for history in histories if not history.completed]
        if not active:
            return histories
        answers = self._generate_batched([history.tokens for history in active])
        texts = self.tokenizer.batch_decode(answers)
        for history, text, answer in zip(active, texts, answers, strict=True):
            history.append_segment(text, answer, system=False)
        return histories

    def tasks_end_check(
        self, histories: list[TextHistory], model_turn: bool = True
    ) -> list[TextHistory]:
        """Complete the histories that have come to an end.

        Args:
            model_turn: whether the last segment is the model's.
        """
        for history in histories:
            self._end(history, model_turn)
        return histories

    def task_end_check(self, history: TextHistory, model_turn: bool = True) -> tuple[bool, bool]:
        """(truncated, ended) of a history that is not completed; a completed one is neither.

        It ends where it is full, holds the end-of-sequence token's text, or its last segment holds
        `<submit>`, or is the model's and calls no tool.
        """
        if history.completed:
            return False, False
        if self._is_full(history):
            return True, True
        eos, last = self.tokenizer.eos_token, history.last_text_segment
        if eos is not None and str(eos) in history.text:
            return False, True
        calls = self.request_token in last and self.call_token in last
        return False, self.submit_token in last or (model_turn and not calls)

    def _is_full(self, history: TextHistory) -> bool:
        length = len(history.tokens)
        if self.max_length is not None and length > self.max_length:
            return True
        table = None if self.is_encoder_decoder else position_limit(door.find(self.model)[0])
        return table is not None and length >= table

    def _generate_batched(self, query_tensors: Rows, batch_size: int | None = None) -> Rows:
        """The model's next words to each row of ids (L,), through what ended them.

        Args:
            batch_size: rows decoded together; None: as many as the engine likes.
        """
        inner = extract_model_from_parallel(self.model)
        arguments = dict(self.generation_kwargs)
        given = arguments.pop("stop_strings", None) or []
        stops = [given] if isinstance(given, str) else list(given)
        arguments["stop_strings"] = [self.call_token, self.submit_token, *stops]
        config = arguments.pop("generation_config", None)
        plan = Plan.of(inner, config, arguments, self.tokenizer)
        prompts = [tuple(row.tolist()) for row in query_tensors]
        most = limits(door.find(inner)[0], plan.config, prompts)
        requests = [
            Request(ids, seeds, (limit,))
            for ids, seeds, limit in zip(
                prompts, row_seeds(None, len(prompts), 1), most, strict=True
            )
        ]
        return [
            torch.tensor(answer.token_ids, device=self.current_device)
            for (answer,) in plan.answers(requests, batch_size)
        ]
