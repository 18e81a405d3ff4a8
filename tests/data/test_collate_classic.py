"""Collators of tokenised pairs, against batches laid out by hand."""

from __future__ import annotations

import legacy_cases as cases
import pytest
import torch

from fastrl.data.collate_chatml import DataCollatorForChatML
from fastrl.data.collate_classic import DPODataCollatorWithPadding, RewardDataCollatorWithPadding


def pair(chosen, rejected, **more):
    return {
        "input_ids_chosen": chosen,
        "attention_mask_chosen": [1] * len(chosen),
        "input_ids_rejected": rejected,
        "attention_mask_rejected": [1] * len(rejected),
        **more,
    }


ROWS = [pair([2, 3, 4], [5]), pair([2], [3, 4])]


def lists(batch):
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in batch.items()}


def test_reward_collator_pads_each_side_for_itself():
    batch = RewardDataCollatorWithPadding(cases.load_tokenizer())(ROWS)
    assert lists(batch) == {
        "input_ids_chosen": [[2, 3, 4], [2, 0, 0]],
        "attention_mask_chosen": [[1, 1, 1], [1, 0, 0]],
        "input_ids_rejected": [[5, 0], [3, 4]],
        "attention_mask_rejected": [[1, 0], [1, 1]],
        "return_loss": True,
    }


def test_reward_collator_keeps_to_tokenizer_length_and_multiple():
    tokenizer = cases.load_tokenizer()
    tokenizer.padding_side = "left"
    options = {"padding": "max_length", "max_length": 5}
    batch = RewardDataCollatorWithPadding(tokenizer, **options)(ROWS)
    assert batch["input_ids_rejected"].tolist() == [[0, 0, 0, 0, 5], [0, 0, 0, 3, 4]]
    batch = RewardDataCollatorWithPadding(tokenizer, pad_to_multiple_of=4)(ROWS)
    assert batch["input_ids_chosen"].tolist() == [[0, 2, 3, 4], [0, 0, 0, 2]]


def test_reward_collator_takes_margins():
    rows = [{**row, "margin": margin} for row, margin in zip(ROWS, (1, 0.5), strict=True)]
    batch = RewardDataCollatorWithPadding(cases.load_tokenizer())(rows)
    assert batch["margin"].tolist() == [1.0, 0.5] and batch["margin"].dtype == torch.float32


def test_reward_collator_names_the_row_and_column():
    with pytest.raises(ValueError, match="row 1 of the batch has no attention_mask_rejected"):
        RewardDataCollatorWithPadding(cases.load_tokenizer())(
            [ROWS[0], {k: v for k, v in ROWS[1].items() if k != "attention_mask_rejected"}]
        )


PREFERENCE = [
    {
        "prompt_input_ids": [2, 3],
        "prompt_attention_mask": [1, 1],
        "chosen_input_ids": [2, 3, 4],
        "chosen_labels": [-100, -100, 4],
        "reference_chosen_logps": -1.5,
        "prompt": "rain on",
    },
    {
        "prompt_input_ids": [2],
        "prompt_attention_mask": [1],
        "chosen_input_ids": [2, 5],
        "chosen_labels": [-100, 5],
        "reference_chosen_logps": -2.0,
        "prompt": "rain",
    },
]


def test_preference_collator_pads_prompts_in_front():
    batch = DPODataCollatorWithPadding(pad_token_id=9)(PREFERENCE)
    assert lists(batch) == {
        "prompt_input_ids": [[2, 3], [9, 2]],
        "prompt_attention_mask": [[1, 1], [0, 1]],
        "chosen_input_ids": [[2, 3, 4], [2, 5, 9]],
        "chosen_labels": [[-100, -100, 4], [-100, 5, -100]],
        "reference_chosen_logps": [-1.5, -2.0],
        "prompt": ["rain on", "rain"],
    }


def test_preference_collator_of_an_encoder_decoder():
    rows = [
        {k: row[k] for k in ("prompt_input_ids", "prompt_attention_mask", "chosen_labels")}
        for row in PREFERENCE
    ]
    batch = DPODataCollatorWithPadding(9, -7, is_encoder_decoder=True)(rows)
    assert lists(batch) == {
        "prompt_input_ids": [[2, 3], [2, 9]],
        "prompt_attention_mask": [[1, 1], [1, 0]],
        "chosen_labels": [[-100, -100, 4], [-100, 5, -7]],
    }
    with pytest.raises(ValueError, match="column 'query_input_ids'"):
        DPODataCollatorWithPadding(9, is_encoder_decoder=True)([{"query_input_ids": [1]}])


def test_preference_collator_of_pictures():
    pictures = [
        {"prompt_pixel_values": torch.ones(1, 2, 2)},
        {"prompt_pixel_values": torch.ones(2, 1, 2)},
    ]
    batch = DPODataCollatorWithPadding()(pictures)["prompt_pixel_values"]
    assert batch.shape == (2, 2, 2, 2) and batch.dtype == torch.float32
    assert batch.sum((1, 2, 3)).tolist() == [4, 4] and batch[0, 1].sum() == 0


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_preference_collator_needs_a_padding_token(encoder_decoder):
    with pytest.raises(ValueError, match="pad_token_id is None, so prompt_input_ids"):
        DPODataCollatorWithPadding(None, is_encoder_decoder=encoder_decoder)(PREFERENCE)


CHATS = [
    [{"role": "user", "content": "rain on"}, {"role": "assistant", "content": "the roof"}],
    [{"role": "user", "content": "on"}, {"role": "assistant", "content": "6"}],
]
TURNS = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}7 {% endif %}"


@pytest.mark.parametrize("given", ["messages", "ids"])
def test_chatml_collator_learns_the_last_turn(given):
    tokenizer = cases.load_tokenizer()
    tokenizer.chat_template = TURNS
    rows = [{"messages": chat} for chat in CHATS]
    if given == "ids":
        rows = [
            {"input_ids": [2, 3, 4, 5], "prompt": "rain on"},
            {"input_ids": [3, 6], "attention_mask": [1, 1], "prompt": "on"},
        ]
    assert lists(DataCollatorForChatML(tokenizer)(rows)) == {
        "input_ids": [[2, 3, 4, 5], [0, 0, 3, 6]],
        "attention_mask": [[1, 1, 1, 1], [0, 0, 1, 1]],
        "labels": [[-100, -100, 4, 5], [-100, -100, -100, 6]],
        "prompts": [[2, 3], [0, 3]],
        "prompt_attention_mask": [[1, 1], [0, 1]],
    }


def test_chatml_collator_cuts_and_asks_for_the_next_turn():
    tokenizer = cases.load_tokenizer()
    tokenizer.chat_template = TEMPLATE
    collate = DataCollatorForChatML(tokenizer, ignore_index=-1, max_length=3)
    batch = collate([{"messages": CHATS[0]}])
    assert batch["input_ids"].tolist() == [[2, 3, 4]]
    assert batch["prompts"].tolist() == [[2, 3, 7]]  # "7" asks for it
    assert batch["labels"].tolist() == [[-1, -1, -1]]
    assert DataCollatorForChatML(tokenizer).max_length == 1024
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="tokenizer has no padding token"):
        DataCollatorForChatML(tokenizer)
