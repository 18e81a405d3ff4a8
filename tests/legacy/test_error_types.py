"""What TRL 0.7.11 raised, and users' code catches, is raised here with the same type.

Each row is a call and the type that TRL raised, read in its sources. Where TRL failed by accident
(an AttributeError of None) or what it refused has since become possible, there is no row.
"""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2Model

import fastrl
from fastrl.data.chat_setup import setup_chat_format
from fastrl.data.collate_classic import DPODataCollatorWithPadding, RewardDataCollatorWithPadding
from fastrl.ops.classic import masked_var, randn_tensor
from fastrl.train.on_policy import exact_div
from fastrl.train.statistics import flatten_dict
from tests.legacy.error_parts import PAIRS, Parts, check

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("errors"))


ROW = [torch.tensor([2, 3])] * 2
SCORES = [torch.tensor(1.0)] * 2
VH = fastrl.AutoModelForCausalLMWithValueHead


def response_only(parts):
    return fastrl.DataCollatorForCompletionOnlyLM("sat", tokenizer=parts.tokenizer)


def soft_prompts():
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


def log_to_wandb(parts):
    trainer = copy.copy(parts.trainer)
    trainer.config = copy.copy(trainer.config)
    trainer.config.log_with = "wandb"
    trainer.log_stats({}, {"query": ["a"], "response": ["b"]}, SCORES, columns_to_log=["other"])


ERRORS = {
    "PPOConfig: batches that do not divide": (
        ValueError,
        lambda p: fastrl.PPOConfig(batch_size=7, mini_batch_size=2),
    ),
    "PPOConfig: an unknown penalty": (AssertionError, lambda p: fastrl.PPOConfig(kl_penalty="l")),
    "PPOTrainer: no PPOConfig": (ValueError, lambda p: p.ppo(config={"batch_size": 2})),
    "PPOTrainer: no tokenizer": (ValueError, lambda p: p.ppo(tokenizer="gpt2")),
    "PPOTrainer: a model without a value head": (ValueError, lambda p: p.ppo(model=p.language())),
    "PPOTrainer: a reference without one": (ValueError, lambda p: p.ppo(ref_model=p.language())),
    "PPOTrainer: no dataset": (ValueError, lambda p: p.ppo(dataset=[1, 2])),
    "PPOTrainer: no scheduler": (ValueError, lambda p: p.ppo(lr_scheduler=object())),
    "PPOTrainer: pushing nowhere": (
        ValueError,
        lambda p: p.ppo(
            config=fastrl.PPOConfig(
                batch_size=2, mini_batch_size=1, push_to_hub_if_best_kwargs={"private": True}
            )
        ),
    ),
    "PPOTrainer.generate: a batch as one tensor": (
        ValueError,
        lambda p: p.trainer.generate(torch.ones(2, 2, dtype=torch.int64)),
    ),
    "PPOTrainer.step: queries are no list": (
        ValueError,
        lambda p: p.trainer.step(torch.ones(2, 2).long(), ROW, SCORES),
    ),
    "PPOTrainer.step: responses are no tensors": (
        ValueError,
        lambda p: p.trainer.step(ROW, [[2], [3]], SCORES),
    ),
    "PPOTrainer.step: another batch size": (
        ValueError,
        lambda p: p.trainer.step(ROW[:1], ROW[:1], SCORES[:1]),
    ),
    "PPOTrainer.step: a table of scores": (
        ValueError,
        lambda p: p.trainer.step(ROW, ROW, [torch.ones(1, 1)] * 2),
    ),
    "PPOTrainer.step: fewer masks": (
        ValueError,
        lambda p: p.trainer.step(ROW, ROW, SCORES, [torch.ones(2).long()]),
    ),
    "PPOTrainer.log_stats: a column that is not there": (ValueError, log_to_wandb),
    "SFTTrainer: keywords of a model that is loaded": (
        ValueError,
        lambda p: p.sft(model_init_kwargs={"dtype": "float32"}),
    ),
    "SFTTrainer: no PEFT config": (ValueError, lambda p: p.sft(peft_config="lora")),
    "SFTTrainer: packing with completions only": (
        ValueError,
        lambda p: p.sft(packing=True, data_collator=response_only(p)),
    ),
    "SFTTrainer: no dataset": (ValueError, lambda p: p.sft(train_dataset=None)),
    "DPOTrainer: keywords of a model that is loaded": (
        ValueError,
        lambda p: p.dpo(model_init_kwargs={"dtype": "float32"}),
    ),
    "DPOTrainer: prompts that are no texts": (
        ValueError,
        lambda p: p.dpo(train_dataset=Dataset.from_list([{**PAIRS[0], "prompt": 3}])),
    ),
    "DPOTrainer: an unknown loss": (ValueError, lambda p: p.dpo(loss_type="sigmoidal")),
    "DPOTrainer: an unknown truncation": (ValueError, lambda p: p.dpo(truncation_mode="middle")),
    "RewardTrainer: no PEFT config": (ValueError, lambda p: p.reward(peft_config="lora")),
    "RewardTrainer: rows of other columns": (
        ValueError,
        lambda p: p.reward(train_dataset=Dataset.from_list([{"input_ids_chosen": [2]}])),
    ),
    "RewardDataCollatorWithPadding: rows of other columns": (
        ValueError,
        lambda p: RewardDataCollatorWithPadding(p.tokenizer)([{"input_ids_chosen": [2]}]),
    ),
    "DPODataCollatorWithPadding: no padding token": (
        ValueError,
        lambda p: DPODataCollatorWithPadding(None)([{"prompt_input_ids": [2]}]),
    ),
    "DPODataCollatorWithPadding: another column": (
        ValueError,
        lambda p: DPODataCollatorWithPadding(0, is_encoder_decoder=True)([{"x_input_ids": [2]}]),
    ),
    "IterativeSFTTrainer: no tokenizer": (ValueError, lambda p: p.iterative(tokenizer="gpt2")),
    "IterativeSFTTrainer: no model": (ValueError, lambda p: p.iterative(model=nn.Linear(2, 2))),
    "IterativeSFTTrainer: no length": (ValueError, lambda p: p.iterative(args=p.args())),
    "IterativeSFTTrainer.step: nothing": (ValueError, lambda p: p.iterative().step()),
    "ModelConfig: two precisions": (
        ValueError,
        lambda p: fastrl.ModelConfig("m", load_in_8bit=True, load_in_4bit=True),
    ),
    "value head: no model": (ValueError, lambda p: VH.from_pretrained(3)),
    "value head: no language-model head": (
        ValueError,
        lambda p: VH.from_pretrained(GPT2Model(p.config)),
    ),
    "value head: no PEFT config": (
        ValueError,
        lambda p: VH.from_pretrained(p.language(), peft_config="lora"),
    ),
    "value head: soft prompts": (
        ValueError,
        lambda p: VH.from_pretrained(p.language(), peft_config=soft_prompts()),
    ),
    "value head: a reward adapter without PEFT": (
        ValueError,
        lambda p: VH.from_pretrained(p.language(), reward_adapter=p.folder),
    ),
    "value head: a reward adapter that is no name": (
        ValueError,
        lambda p: VH.from_pretrained(p.language(), peft_config=p.lora(), reward_adapter=3),
    ),
    "value head: rewards without an adapter": (
        ValueError,
        lambda p: p.wrapped.compute_reward_score(ROW[0][None]),
    ),
    "create_reference_model: no such layer": (
        ValueError,
        lambda p: fastrl.create_reference_model(p.wrapped, num_shared_layers=9),
    ),
    "setup_chat_format: another format": (
        ValueError,
        lambda p: setup_chat_format(p.language(), p.tokenizer, "alpaca"),
    ),
    "core.flatten_dict: a separator in a key": (ValueError, lambda p: flatten_dict({"a/b": 1})),
    "core.masked_var: an empty mask": (
        ValueError,
        lambda p: masked_var(torch.ones(2), torch.zeros(2)),
    ),
    "core.randn_tensor: as many generators as rows": (
        ValueError,
        lambda p: randn_tensor((3,), [torch.Generator()] * 2),
    ),
    "trainer.utils.exact_div: a rest": (ValueError, lambda p: exact_div(3, 2, "a", "b")),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_trl_keep_their_type(parts, name):
    check(parts, *ERRORS[name])


def test_a_tracker_that_is_absent_is_an_import_error(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else real(name, *a)
    )
    with pytest.raises(ImportError, match="wandb"):
        fastrl.PPOConfig(log_with="wandb")


@pytest.mark.parametrize("scores", [[1.0, 2.0], np.ones(2)])
def test_scores_are_tensors_in_a_list(parts, scores):
    with pytest.raises(ValueError, match="scores"):
        parts.trainer.step(ROW, ROW, scores)
