"""PPOTrainer's `training_data_collator`, an argument of TRL 0.9 to 0.11."""

from __future__ import annotations

import pytest
import torch
from transformers import DataCollatorForLanguageModeling

import fastrl


def test_its_padding_is_what_the_passes_see(make_model, tokenizer, rows):
    widths = []

    def collate(features):
        ids = [f["input_ids"] for f in features]
        width = max(map(len, ids)) + 3  # three columns more than it takes
        widths.append(width)
        pad = tokenizer.pad_token_id
        return {
            "input_ids": torch.stack(
                [torch.cat([row, row.new_full((width - len(row),), pad)]) for row in ids]
            ),
            "attention_mask": torch.stack([torch.arange(width) < len(row) for row in ids]).long(),
        }

    def step(**given):
        config = fastrl.PPOConfig(batch_size=8, mini_batch_size=4, ppo_epochs=1, seed=3)
        with pytest.warns(UserWarning, match="No dataset is provided"):
            trainer = fastrl.PPOTrainer(
                config, make_model(), make_model(seed=1), tokenizer, **given
            )
        return trainer.step(*rows())

    class Longer(DataCollatorForLanguageModeling):
        def __call__(self, features, return_tensors=None):
            return collate(features)

    plain, own = step(), step(training_data_collator=collate)
    assert widths and own["objective/logprobs"].shape[1] == widths[0] - 1
    of_ours = step(training_data_collator=Longer(tokenizer, mlm=False))
    assert of_ours["objective/logprobs"].shape[1] == own["objective/logprobs"].shape[1]
    assert of_ours["objective/logprobs"][0, 0] != 0, "padded rows have the prompt's positions"
    for key in ("objective/kl", "ppo/loss/total", "ppo/returns/mean"):
        assert own[key] == pytest.approx(plain[key], rel=1e-4, abs=1e-6)
        assert of_ours[key] == pytest.approx(plain[key], rel=1e-4, abs=1e-6)
