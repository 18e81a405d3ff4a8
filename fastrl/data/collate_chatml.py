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
        max_length: longer conversations are cut at their end; None: 1024, or what the tokenizer
            says if that is less.
        prompt_key: column of the prompt as text; where a row has none it is all but the last turn.
        messages_key: column of the conversation.

    Raises:
        ValueError: the tokenizer has no padding token.
    """

    tokenizer: PreTrainedTokenizerBase
    ignore_index: int = IGNORED
    max_length: int | None = None
    prompt_key: str = "prompt"
    messages_key: str = "messages"

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise ValueError("tokenizer has no padding token: set tokenizer.pad_token")
        if self.max_length is None:
            self.max_length = min(self.tokenizer.model_max_length, _LONGEST)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [self._ids(example) for example in examples]
        prompts = [
            self._encoded(self._prompt(example), len(row))
            for example, row in zip(examples, ids, strict=True)
        ]
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
            "input_ids": pad(ids, padding, "left"),
            "attention_mask": pad(masks, 0, "left"),
            "labels": pad(labels, self.ignore_index, "left"),
            "prompts": pad(prompts, padding, "left"),
            "prompt_attention_mask": pad([torch.ones_like(row) for row in prompts], 0, "left"),
        }

    def _ids(self, example: Mapping[str, Any]) -> torch.Tensor:
        if "input_ids" in example:
            return torch.tensor(example["input_ids"])
        text = self.tokenizer.apply_chat_template(example[self.messages_key], tokenize=False)
        return self._encoded(text, self.max_length)

    def _prompt(self, example: Mapping[str, Any]) -> Any:
        given = example.get(self.prompt_key)
        if given is not None:
            return given
        return self.tokenizer.apply_chat_template(
            example[self.messages_key][:-1], tokenize=False, add_generation_prompt=True
        )

    def _encoded(self, text: Any, longest: int | None) -> torch.Tensor:
        made = self.tokenizer(text, truncation=True, max_length=longest, add_special_tokens=False)
        return torch.tensor(made["input_ids"])
