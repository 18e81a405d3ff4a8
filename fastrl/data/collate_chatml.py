"""Conversations -> batches whose last turn is learnt, with their prompts apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fastrl.data.collate import IGNORED
from fastrl.data.padding import pad

_LONGEST = 1024  # where neither collator nor tokenizer says


@dataclass
class DataCollatorForChatML:
    """Called with conversations, or their token ids and prompts, it gives what GKD learns from.

    Returns `input_ids`, `attention_mask` and `labels` (B, T), the prompt's labels ignored, and
    `prompts` and `prompt_attention_mask` (B, P); all int64 and padded in front.

    Args:
        tokenizer: has the chat template and the padding token.
        ignore_index: the label of what is not learnt.
        max_length: longer conversations are cut to it; None: 1024, or what the tokenizer
            says if that is less.
        prompt_key: column of the prompt as text; where a row has none it is all but the last turn.
        messages_key: column of the conversation.
        truncation_mode: which part of a long conversation stays: "keep_start", as in TRL 0.11, or
            "keep_end", as in 1.16.

    Raises:
        ValueError: the tokenizer has no padding token, or truncation_mode is neither of the two.
    """

    tokenizer: PreTrainedTokenizerBase
    ignore_index: int = IGNORED
    max_length: int | None = None
    prompt_key: str = "prompt"
    messages_key: str = "messages"
    truncation_mode: str = "keep_start"

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise ValueError("tokenizer has no padding token: set tokenizer.pad_token")
        if self.truncation_mode not in ("keep_start", "keep_end"):
            raise ValueError(
                f"truncation_mode={self.truncation_mode!r} is none of keep_start, keep_end"
            )
        if self.max_length is None:
            self.max_length = min(self.tokenizer.model_max_length, _LONGEST)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids, prompts = zip(*(self._parts(example) for example in examples), strict=True)
        masks = [
            torch.tensor(example.get("attention_mask", [1] * len(row)))
            for example, row in zip(examples, ids, strict=True)
        ]
        labels = [
            row.masked_fill(torch.arange(len(row)) < len(prompt), self.ignore_index)
            for row, prompt in zip(ids, prompts, strict=True)
        ]
        padding = self.tokenizer.pad_token_id
        return {
            "input_ids": pad(list(ids), padding, "left"),
            "attention_mask": pad(masks, 0, "left"),
            "labels": pad(labels, self.ignore_index, "left"),
            "prompts": pad(list(prompts), padding, "left"),
            "prompt_attention_mask": pad([torch.ones_like(row) for row in prompts], 0, "left"),
        }

    def _parts(self, example: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """A row's token ids, cut, and those of its prompt."""
        prompt = self._prompt(example)
        if "input_ids" in example:
            ids = torch.tensor(example["input_ids"])
            return ids, self._encoded(prompt, len(ids))
        text = self.tokenizer.apply_chat_template(example[self.messages_key], tokenize=False)
        if self.truncation_mode == "keep_start":
            ids = self._encoded(text, self.max_length)
            return ids, self._encoded(prompt, len(ids))
        ids = self._encoded(text, None)
        begins = self._end_of(prompt, text)
        assert self.max_length is not None
        cut = max(len(ids) - self.max_length, 0)
        return ids[cut:], ids[cut : max(begins, cut)]

    def _end_of(self, prompt: str, text: str) -> int:
        """How many tokens of the text begin within the prompt that it begins with."""
        if not (self.tokenizer.is_fast and text.startswith(prompt)):
            return len(self._encoded(prompt, None))
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return sum(start < len(prompt) for start, _ in made["offset_mapping"])

    def _prompt(self, example: Mapping[str, Any]) -> Any:
        given = example.get(self.prompt_key)
        if given is not None:
            return given
        return self.tokenizer.apply_chat_template(
            example[self.messages_key][:-1], tokenize=False, add_generation_prompt=True
        )

    def _encoded(self, text: Any, longest: int | None) -> torch.Tensor:
        cut = longest is not None
        made = self.tokenizer(text, truncation=cut, max_length=longest, add_special_tokens=False)
        return torch.tensor(made["input_ids"])
