"""Collators of tokenised pairs by their columns of TRL 0.7 to 0.28."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fastrl.data.padding import pad

_SIDES = ("chosen", "rejected")
_PADDED = ("_input_ids", "_attention_mask", "_labels", "_pixel_values")


@dataclass
class RewardDataCollatorWithPadding:
    """Pads each side of tokenised pairs for itself.

    Called with rows of `input_ids_{chosen,rejected}` and `attention_mask_{chosen,rejected}`, it
    returns these four, (B, T) of each side's own width, padded on the tokenizer's side,
    `return_loss`: True, and `margin` (B,) fp32 if the rows have one.

    Args:
        tokenizer: pads, and has the padding token and side.
        padding: as of `tokenizer.pad`: True for the longest row, "max_length".
        max_length: the width with padding="max_length".
        pad_to_multiple_of: widths are multiples of this.
        return_tensors: the kind of the padded four: "pt", "np".

    Raises (when called):
        ValueError: a row without one of the columns.
    """

    tokenizer: PreTrainedTokenizerBase
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = [f"{name}_{side}" for side in _SIDES for name in ("input_ids", "attention_mask")]
        for row, feature in enumerate(features):
            missing = [name for name in columns if name not in feature]
            if missing:
                raise ValueError(
                    f"row {row} of the batch has no {missing[0]}, but {sorted(feature)}: rows of "
                    f"tokenised pairs have {', '.join(columns)}"
                )
        batch: dict[str, Any] = {}
        for side in _SIDES:
            padded = self._padded(features, side)
            batch |= {f"{name}_{side}": padded[name] for name in ("input_ids", "attention_mask")}
        batch["return_loss"] = True
        if "margin" in features[0]:
            margins = [feature["margin"] for feature in features]
            batch["margin"] = torch.tensor(margins, dtype=torch.float)
        return batch

    def _padded(self, features: Sequence[Mapping[str, Any]], side: str) -> Any:
        return self.tokenizer.pad(
            [
                {name: feature[f"{name}_{side}"] for name in ("input_ids", "attention_mask")}
                for feature in features
            ],
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors=self.return_tensors,
        )


@dataclass
class DPODataCollatorWithPadding:
    """Pads the columns of tokenised pairs by their names, and passes the others on as lists.

    What ends in `_input_ids`, `_attention_mask` or `_labels` becomes (B, T) int64, prompts padded
    in front and the rest behind; `_pixel_values` fp32, as large as the largest; `_logps` (B,).
    For an encoder–decoder all is padded behind, and answers are labels.

    Args:
        pad_token_id: of `_input_ids`.
        label_pad_token_id: of `_labels`, and of an encoder–decoder's answers.
        is_encoder_decoder: whose rows these are.

    Raises (when called):
        ValueError: no pad_token_id, or an encoder–decoder's column that is neither prompt nor
            answer.
    """

    pad_token_id: int | None = 0
    label_pad_token_id: int = -100
    is_encoder_decoder: bool | None = False

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in features[0]:
            values = [feature[name] for feature in features]
            if name.endswith(_PADDED):
                kind = torch.float32 if name.endswith("_pixel_values") else torch.int64
                rows = [torch.as_tensor(value, dtype=kind) for value in values]
                front = name.startswith("prompt_") and not name.endswith("_pixel_values")
                side = "left" if front and not self.is_encoder_decoder else "right"
                batch[name] = pad(rows, self._filling(name), side)
            elif name.endswith("_logps"):
                batch[name] = torch.tensor(values)
            else:
                batch[name] = values
        return batch

    def _filling(self, name: str) -> int:
        """What a column is padded with."""
        if name.endswith(("_attention_mask", "_pixel_values")):
            return 0
        answer = name.endswith("_labels")
        if self.is_encoder_decoder:
            answer = name.startswith((*_SIDES, "completion")) or "decoder" in name
            if not answer and not (name.startswith("prompt") and name.endswith("_input_ids")):
                raise ValueError(
                    f"column {name!r}: of an encoder-decoder's rows prompt_input_ids, masks and "
                    "what begins with chosen, rejected or completion is padded"
                )
        if answer:
            return self.label_pad_token_id
        if self.pad_token_id is None:
            raise ValueError(
                f"pad_token_id is None, so {name} cannot be padded: set tokenizer.pad_token (to "
                "tokenizer.eos_token, say) and give its id"
            )
        return self.pad_token_id


def not_classic(collator: Any) -> Any:
    """The collator; None for one of this file's own.

    Scripts hand those to trainers whose rows are prepared otherwise today, and whose own collators
    pad as well.
    """
    own = (RewardDataCollatorWithPadding, DPODataCollatorWithPadding)
    return None if type(collator) in own else collator
