"""Trainers whose arguments and rows are others in another release of TRL; PPO's are apart."""

from __future__ import annotations

import inspect

import pytest
import torch
from datasets import Dataset
from transformers import GPT2ForSequenceClassification, TrainingArguments

import fastrl
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.online import RLOO
from fastrl.legacy.online_dpo import ONLINE_DPO
from tests.compat.colliding import (  # noqa: F401
    CHAT,
    PAIRS,
    QUIET,
    TEXTS,
    model,
    no_pin,
    quietly,
    word_tokenizer,
)

# --- SFTTrainer -----------------------------------------------------------------------------------


def first_row(words, dataset=TEXTS, pin=None, **arguments):
    """The words of the first prepared row."""
    fastrl.set_api(pin)
    trainer = quietly(fastrl.SFTTrainer, model(), train_dataset=dataset, **arguments)
    return words.convert_ids_to_tokens(trainer.train_dataset[0]["input_ids"])


def test_sft_ends_texts_with_eos_since_1_and_not_before(tokenizer, tmp_path):
    plain = {"args": TrainingArguments(str(tmp_path), **QUIET)}
    own = {"args": fastrl.SFTConfig(str(tmp_path), **QUIET)}
    modern = {"processing_class": tokenizer}
    text = ["the", "cat", "sat"]
    assert first_row(tokenizer, **own, **modern) == [*text, "<eos>"]
    assert first_row(tokenizer, **own, tokenizer=tokenizer) == text  # the old name shows it
    assert first_row(tokenizer, **plain, **modern, dataset_text_field="text") == text
    assert first_row(tokenizer, **plain, **modern) == [*text, "<eos>"]  # fits all releases
    assert first_row(tokenizer, **plain, **modern, pin="0.7") == text
    assert first_row(tokenizer, **own, **modern, pin="0.11") == text
    assert first_row(tokenizer, **own, **modern, pin="1") == [*text, "<eos>"]
    packed = fastrl.SFTConfig(str(tmp_path), packing=True, max_length=8, **QUIET)
    rows = first_row(tokenizer, args=packed, tokenizer=tokenizer)
    assert rows == [*text, "<eos>", "on", "a", "mat", "<eos>"]  # between texts there always was


def test_sft_learns_prompt_and_completion_as_one_chat_before_1(tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": "the cat", "completion": " sat"}] * 2)
    tokenizer.chat_template = CHAT
    args = fastrl.SFTConfig(str(tmp_path), **QUIET)
    trainer = quietly(fastrl.SFTTrainer, model(), args, train_dataset=rows, tokenizer=tokenizer)
    row = trainer.train_dataset[0]
    words = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert words == ["user", "the", "cat", "assistant", "sat"]
    assert row["labels"] == row["input_ids"]  # all of it is learned
    modern = fastrl.SFTTrainer(model(), args, train_dataset=rows, processing_class=tokenizer)
    row = modern.train_dataset[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["the", "cat", "sat", "<eos>"]
    assert row["labels"][:2] == [-100, -100]
    column = first_row(tokenizer, rows, args=args, tokenizer=tokenizer, dataset_text_field="prompt")
    assert column == ["the", "cat"]


def test_sft_formatting_func_by_what_it_returns(tokenizer, tmp_path):
    args = {"args": fastrl.SFTConfig(str(tmp_path), **QUIET), "processing_class": tokenizer}
    batch = first_row(
        tokenizer, **args, formatting_func=lambda rows: [t + " on" for t in rows["text"]]
    )
    row = first_row(tokenizer, **args, formatting_func=lambda row: row["text"] + " on")
    assert batch == row == ["the", "cat", "sat", "on", "<eos>"]


def test_sft_seventh_positional_by_the_pin(tokenizer, tmp_path):
    args = fastrl.SFTConfig(str(tmp_path), **QUIET)
    given = (model(), args, None, TEXTS, None, tokenizer, lambda *_, **__: None)
    trainer = fastrl.SFTTrainer(*given)
    assert trainer.compute_loss_func is given[-1] and trainer._api_generation == "1"
    fastrl.set_api("0.7")  # there it was model_init, which made the model
    with pytest.raises(TypeError, match="no longer takes model_init"):
        fastrl.SFTTrainer(*given)
    trainer = fastrl.SFTTrainer(*given[:6])  # up to here the orders are one: nothing is old in it
    assert trainer.processing_class is tokenizer and trainer._api_generation == "0.11"


def test_sft_config_renamed_and_removed_fields():
    with pytest.warns(FutureWarning, match="max_seq_length= is max_length="):
        config = fastrl.SFTConfig("out", max_seq_length=7, use_liger=False, **QUIET)
    assert config.max_length == 7 and config.use_liger_kernel is False
    with pytest.warns(FutureWarning, match="num_of_sequences= has no effect"):
        fastrl.SFTConfig("out", num_of_sequences=16, **QUIET)


# --- DPOTrainer, KTOTrainer -----------------------------------------------------------------------


def prompt_of(words, trainer, args, **name):
    rows = PAIRS if trainer is fastrl.DPOTrainer else PAIRS.map(
        lambda row: {"completion": row["chosen"], "label": True},
        remove_columns=["chosen", "rejected"],
    )  # fmt: skip
    made = quietly(trainer, model(), model(), args=args, train_dataset=rows, **name)
    row = made.train_dataset[0]
    return words.convert_ids_to_tokens(row["prompt_ids"]), made


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_prompts_of_pairs_begin_with_bos_before_1(kind, tokenizer, tmp_path):
    trainer, config = getattr(fastrl, f"{kind}Trainer"), getattr(fastrl, f"{kind}Config")
    args = config(str(tmp_path), **QUIET)
    old, made = prompt_of(tokenizer, trainer, args, tokenizer=tokenizer)
    assert old == ["<bos>", "the", "cat"] and made._api_generation == "0.11"
    new, made = prompt_of(tokenizer, trainer, args, processing_class=tokenizer)
    assert new == ["the", "cat"] and made._api_generation == "1"
    fastrl.set_api("0.11")
    pinned, _ = prompt_of(tokenizer, trainer, args, processing_class=tokenizer)
    assert pinned == old


def test_dpo_third_positional_by_its_type(tokenizer, tmp_path):
    args = TrainingArguments(str(tmp_path), **QUIET)
    made = quietly(
        fastrl.DPOTrainer, model(), model(), 0.4, 0.1, "ipo", args, None, -100, 0, "keep_end",
        PAIRS, None, tokenizer,
    )  # fmt: skip
    told = made.args
    assert (told.beta, told.label_smoothing, told.loss_type) == (0.4, 0.1, ["ipo"])
    # What 0.7 had in the place of fields that were not given.
    assert (told.max_length, told.truncation_mode, told.f_alpha_divergence_coef) == (
        512,
        "keep_end",
        1.0,
    )
    config = fastrl.DPOConfig(str(tmp_path), **QUIET)
    made = fastrl.DPOTrainer(
        model(), model(), config, train_dataset=PAIRS, processing_class=tokenizer
    )
    assert made.args is config


def test_dpo_losses_of_old_names(tmp_path):
    with pytest.raises(ValueError, match=r"loss_type='kto_pair' is none of sigmoid"):
        fastrl.DPOConfig(str(tmp_path), loss_type="kto_pair", **QUIET)
    config = fastrl.DPOConfig(
        str(tmp_path), f_divergence_type=fastrl.FDivergenceType.JS_DIVERGENCE, **QUIET
    )
    assert config.f_divergence_type == "js_divergence"
    assert type(config.f_divergence_type) is str  # as a report or a YAML file can hold it


def test_get_batch_samples_by_its_first_argument(tokenizer, tmp_path):
    args = fastrl.DPOConfig(str(tmp_path), max_length=6, **QUIET)
    seen = []

    class Mine(fastrl.DPOTrainer):
        def get_batch_samples(self, model, batch):
            seen.append(model)
            return super().get_batch_samples(model, batch)

    made = Mine(model(), model(), args, train_dataset=PAIRS, processing_class=tokenizer)
    batch = {
        "prompt_input_ids": torch.tensor([[3, 4], [3, 4]]),
        "prompt_attention_mask": torch.ones(2, 2, dtype=torch.long),
        "reference_output": torch.tensor([[3, 4, 5, 2], [3, 4, 8, 2]]),
    }
    policy, reference = made.get_batch_samples(made.model, batch)
    assert reference == ["the cat sat", "the cat mat"]
    assert all(text.startswith("the cat") for text in policy) and seen == [made.model]
    batches, _ = made.get_batch_samples(iter([{"labels": torch.ones(1, 3)}]), 2, "cpu")
    assert len(batches) == 1 and len(seen) == 1  # transformers' loop does not see the override


# --- RewardTrainer --------------------------------------------------------------------------------


def test_reward_rows_by_their_columns(tokenizer, tmp_path):
    rows = {
        "input_ids_chosen": [[3, 4, 5], [3, 4]],
        "attention_mask_chosen": [[1, 1, 1], [1, 1]],
        "input_ids_rejected": [[3, 4, 8], [3]],
        "attention_mask_rejected": [[1, 1, 0], [1]],
    }
    args = fastrl.RewardConfig(str(tmp_path), **QUIET)
    classifier = model(GPT2ForSequenceClassification)
    made = quietly(
        fastrl.RewardTrainer, classifier, args, train_dataset=Dataset.from_dict(rows),
        tokenizer=tokenizer,
    )  # fmt: skip
    assert made.train_dataset["chosen_ids"][:] == [[3, 4, 5], [3, 4]]
    assert made.train_dataset["rejected_ids"][:] == [[3, 4], [3]]
    made = fastrl.RewardTrainer(
        model(GPT2ForSequenceClassification), args, train_dataset=PAIRS, processing_class=tokenizer
    )
    assert made.train_dataset["chosen_ids"][0] == [3, 4, 5, 2]


# --- RLOOTrainer, OnlineDPOTrainer ----------------------------------------------------------------


def recorder(trainer, table, config):
    """A class with a trainer's constructor, which keeps what it is given."""

    class Recorder:
        def __init__(self, **given):
            self.given = given

    visible = inspect.signature(trainer.__init__)
    Recorder.__init__.__signature__ = visible
    return accepts_legacy(table, config)(Recorder)


def test_rloo_first_positional_is_the_config_in_0_11(tokenizer):
    made = recorder(fastrl.RLOOTrainer, RLOO, fastrl.RLOOConfig)
    config = fastrl.RLOOConfig("out", **QUIET)
    policy, start, judge = model(), model(), model(GPT2ForSequenceClassification)
    with pytest.warns(FutureWarning, match="ref_policy= has no effect: the reference is the model"):
        old = made(config, tokenizer, policy, start, judge, TEXTS)
    wanted = {
        "args": config,
        "processing_class": tokenizer,
        "model": policy,
        "reward_funcs": judge,
        "train_dataset": TEXTS,
    }
    assert old.given == wanted and old._api_generation == "0.11"
    named = quietly(
        made, config=config, tokenizer=tokenizer, policy=policy, ref_policy=None,
        reward_model=judge, train_dataset=TEXTS,
    )  # fmt: skip
    assert named.given == wanted
    modern = made(policy, judge, config, TEXTS, processing_class=tokenizer)
    assert modern.given == wanted and modern._api_generation == "1"


def test_online_dpo_third_positional_by_its_type(tokenizer):
    made = recorder(fastrl.OnlineDPOTrainer, ONLINE_DPO, fastrl.OnlineDPOConfig)
    config = fastrl.OnlineDPOConfig("out", **QUIET)
    policy, judge = model(), model(GPT2ForSequenceClassification)
    old = quietly(made, policy, None, judge, None, config, None, TEXTS, None, tokenizer)
    assert old.given["reward_funcs"] is judge and old.given["args"] is config
    assert old.given["train_dataset"] is TEXTS and old.given["processing_class"] is tokenizer
    modern = made(policy, None, judge, config, None, TEXTS)
    assert modern.given["args"] is config and modern.given["train_dataset"] is TEXTS
    assert fastrl.experimental.online_dpo.OnlineDPOTrainer is fastrl.OnlineDPOTrainer
    assert fastrl.trainer.online_dpo_trainer.OnlineDPOTrainer is fastrl.OnlineDPOTrainer
