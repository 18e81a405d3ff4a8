"""`group_by_length`: rows that tell their lengths are grouped, others are refused."""

from __future__ import annotations

import pytest
from datasets import Dataset

import fastrl
from tests.legacy.error_parts import ANSWERS, PAIRS, Parts

GROUPED = {"train_sampling_strategy": "group_by_length"}
REFUSED = r"'group_by_length' \(group_by_length=True\): {} cannot .* no padding.* leave it out"


def test_rows_of_answers_are_refused(tmp_path):
    parts = Parts(tmp_path)
    with pytest.raises(ValueError, match=REFUSED.format("DPOTrainer")):
        parts.dpo(args=parts.dpo_args(**GROUPED))
    with pytest.raises(ValueError, match=REFUSED.format("KTOTrainer")):
        parts.kto(args=parts.kto_args(**GROUPED))
    args = fastrl.RewardConfig(str(tmp_path), use_cpu=True, bf16=False, **GROUPED)
    with pytest.raises(ValueError, match=REFUSED.format("RewardTrainer")):
        fastrl.RewardTrainer(parts.judge(), args, None, PAIRS, processing_class=parts.tokenizer)
    args = fastrl.BCOConfig(str(tmp_path), use_cpu=True, bf16=False, **GROUPED)
    with pytest.raises(ValueError, match=REFUSED.format("BCOTrainer")):
        fastrl.BCOTrainer(
            parts.language(), args=args, train_dataset=ANSWERS, processing_class=parts.tokenizer
        )


def test_rows_of_ids_are_grouped(tmp_path):
    """Batches of rows of like lengths have less padding than those of any rows."""
    parts = Parts(tmp_path)
    texts = Dataset.from_list([{"text": " ".join(["cat"] * (1 + i % 9))} for i in range(72)])

    def padding(**order):
        args = parts.sft_args(per_device_train_batch_size=2, **order)
        trainer = fastrl.SFTTrainer(
            parts.language(), args, train_dataset=texts, processing_class=parts.tokenizer
        )
        masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        return sum(int((1 - mask).sum()) for mask in masks)

    assert padding(**GROUPED) < padding() / 3
    stream = {"train_dataset": texts.to_iterable_dataset(), "processing_class": parts.tokenizer}
    args = parts.sft_args(max_steps=2, **GROUPED)
    with pytest.raises(ValueError, match=REFUSED.format("SFTTrainer")):
        fastrl.SFTTrainer(parts.language(), args, **stream)
