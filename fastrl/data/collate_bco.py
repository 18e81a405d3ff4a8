"""Marked answers -> batches for BCO: as KTO's, with the prompts for the model that embeds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastrl.data.collate import padded, steps, token_array
from fastrl.data.collate_preference import DataCollatorForUnpairedPreference


@dataclass
class DataCollatorForBCO(DataCollatorForUnpairedPreference):
    """Rows of `prompt_ids`, `completion_ids`, `label` and, with an embedding, `embedding_ids`.

    Returns what `DataCollatorForUnpairedPreference` does, and for rows with `embedding_ids`
    `embedding_input_ids` and `embedding_attention_mask`, (B, T') int64, padded behind.

    Args:
        embedding_pad_token_id: id of the embedding tokenizer's padding token.
    """

    embedding_pad_token_id: int = 0

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of some answers."""
        batch = super().torch_call(examples)
        if "embedding_ids" in examples[0]:
            prompts = [token_array(example["embedding_ids"]) for example in examples]
            lengths = [len(prompt) for prompt in prompts]
            width = max(lengths)
            batch["embedding_input_ids"] = padded(prompts, self.embedding_pad_token_id, width)
            batch["embedding_attention_mask"] = steps(lengths, width)
        return batch
