"""Calls as scripts of 2023 and 2024 wrote them, on the trainers themselves."""

from __future__ import annotations

import warnings

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

import fastrl
from fastrl.data.collate_classic import DPODataCollatorWithPadding, RewardDataCollatorWithPadding

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran"]
PAIRS = Dataset.from_list(
    [{"prompt": "the cat", "chosen": f" sat on {w}", "rejected": f" ran and {w}"} for w in WORDS]
)
TEXTS = Dataset.from_list([{"words": f"the cat sat on {w} mat"} for w in WORDS])
ANSWERS = Dataset.from_list(
    [{"prompt": "the cat", "completion": f" sat {w}", "label": w < "d"} for w in WORDS]
)


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def model(kind=GPT2LMHeadModel):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=10, n_positions=32, n_embd=8, n_layer=1, n_head=2, pad_token_id=0,
        eos_token_id=1, num_labels=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return kind(config)


SETTINGS = {
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "bf16": False,
}


def losses(trainer):
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def old(call):
    """The trainer, which must have warned once of old spellings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = call()
    assert sum("old spellings" in str(w.message) for w in caught) == 1
    return trainer


def test_sft(tokenizer, tmp_path):
    legacy = old(
        lambda: fastrl.SFTTrainer(
            model(),
            args=TrainingArguments(str(tmp_path), **SETTINGS),
            train_dataset=TEXTS,
            dataset_text_field="words",
            max_seq_length=5,
            tokenizer=tokenizer,
        )
    )
    config = fastrl.SFTConfig(str(tmp_path), dataset_text_field="words", max_length=5, **SETTINGS)
    modern = fastrl.SFTTrainer(
        model(), args=config, train_dataset=TEXTS, processing_class=tokenizer
    )
    assert legacy._api_generation == "0.7" and modern._api_generation == "1"
    assert legacy.tokenizer is tokenizer is legacy.processing_class
    assert legacy.args.max_length == 5 and type(legacy.args) is fastrl.SFTConfig
    assert losses(legacy) == losses(modern)


def test_dpo_with_beta_in_third_place(tokenizer, tmp_path):
    legacy = old(
        lambda: fastrl.DPOTrainer(
            model(),
            model(),
            0.5,
            args=TrainingArguments(str(tmp_path), **SETTINGS),
            train_dataset=PAIRS,
            tokenizer=tokenizer,
            loss_type="ipo",
            max_length=16,
            max_prompt_length=8,
        )
    )
    config = fastrl.DPOConfig(str(tmp_path), beta=0.5, loss_type="ipo", max_length=16, **SETTINGS)
    modern = fastrl.DPOTrainer(
        model(), model(), config, train_dataset=PAIRS, processing_class=tokenizer
    )
    assert legacy._api_generation == "0.7"
    assert losses(legacy) == losses(modern)


def test_dpo_as_in_0_11(tokenizer, tmp_path):
    with pytest.warns(FutureWarning, match="max_prompt_length= has no effect"):
        config = fastrl.DPOConfig(str(tmp_path), max_prompt_length=8, **SETTINGS)
    trainer = old(
        lambda: fastrl.DPOTrainer(
            model(), ref_model=model(), args=config, train_dataset=PAIRS, tokenizer=tokenizer
        )
    )
    assert trainer._api_generation == "0.11" and trainer.args is config


def test_kto_in_the_order_of_0_11(tokenizer, tmp_path):
    if "KTOTrainer" not in fastrl.__all__:
        pytest.skip("there is no KTOTrainer yet")
    config = fastrl.KTOConfig(str(tmp_path), **SETTINGS)
    legacy = old(lambda: fastrl.KTOTrainer(model(), model(), config, ANSWERS, None, tokenizer))
    modern = fastrl.KTOTrainer(
        model(), model(), config, train_dataset=ANSWERS, processing_class=tokenizer
    )
    assert legacy._api_generation == "0.11"
    assert losses(legacy) == losses(modern)


def test_reward(tokenizer, tmp_path):
    if "RewardTrainer" not in fastrl.__all__:
        pytest.skip("there is no RewardTrainer yet")
    config = fastrl.RewardConfig(str(tmp_path), **SETTINGS)
    classifier = GPT2ForSequenceClassification
    legacy = old(
        lambda: fastrl.RewardTrainer(
            model=model(classifier),
            args=config,
            tokenizer=tokenizer,
            train_dataset=PAIRS,
            max_length=20,
        )
    )
    modern = fastrl.RewardTrainer(
        model(classifier), config, train_dataset=PAIRS, processing_class=tokenizer
    )
    assert legacy.args.max_length == 20 and config.max_length != 20
    assert losses(legacy) == losses(modern)


def test_user_subclasses_keep_working(tokenizer, tmp_path):
    class Mine(fastrl.SFTTrainer):
        def __init__(self, *args, weight=1.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.weight = weight

        def compute_loss(self, model, inputs, return_outputs=False):
            labels = inputs.pop("labels")
            logits = model(**inputs).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
            )
            return self.weight * loss

    trainer = old(
        lambda: Mine(
            model(),
            TrainingArguments(str(tmp_path), **SETTINGS),
            train_dataset=TEXTS,
            dataset_text_field="words",
            tokenizer=tokenizer,
            weight=3.0,
        )
    )
    plain = old(
        lambda: Mine(
            model(),
            TrainingArguments(str(tmp_path), **SETTINGS),
            train_dataset=TEXTS,
            dataset_text_field="words",
            tokenizer=tokenizer,
        )
    )
    assert losses(trainer)[0] == pytest.approx(3 * losses(plain)[0], rel=1e-5)


def test_unknown_arguments_are_named(tokenizer):
    with pytest.raises(TypeError, match=r"SFTTrainer has no argument 'dataset_txt_field'.*did you"):
        fastrl.SFTTrainer(model(), dataset_txt_field="x")
    with pytest.raises(TypeError, match="DPOConfig has no field 'betta'; did you mean 'beta'"):
        fastrl.DPOConfig("o", betta=1)


@pytest.mark.parametrize("kind", ["DPO", "Reward"])
def test_collators_of_that_time_give_the_same_training(tokenizer, tmp_path, kind):
    def losses(collator):
        torch.manual_seed(0)
        args = TrainingArguments(str(tmp_path), **SETTINGS)
        owner = getattr(fastrl, f"{kind}Trainer")
        policy = model(GPT2ForSequenceClassification if kind == "Reward" else GPT2LMHeadModel)
        trainer = owner(policy, args=args, train_dataset=PAIRS, tokenizer=tokenizer, **collator)
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    theirs = {
        "DPO": DPODataCollatorWithPadding(tokenizer.pad_token_id, is_encoder_decoder=False),
        "Reward": RewardDataCollatorWithPadding(tokenizer, max_length=16),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = losses({})
        assert losses({"data_collator": theirs[kind]}) == plain and len(plain) == 2
