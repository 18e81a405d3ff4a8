"""What TRL 0.11.4 raised beyond 0.7.11, and users' code catches, is raised here with the same type.

Each row is a call and the type that TRL raised, read in its sources. Where TRL failed by accident,
or what it refused has since become possible (an OnlineDPOTrainer with a judge, a KTOTrainer with
plain TrainingArguments, a reference beside an adapter, prompts that the answer's rendering does not
begin with), there is no row. Nor is there one of arguments that no longer exist: a TypeError says
what to write in their place.
"""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch
from datasets import Dataset

import fastrl
from fastrl.data.chat import apply_chat_template
from fastrl.data.collate_chatml import DataCollatorForChatML
from fastrl.data.padding import pad
from fastrl.models.wrapper import PreTrainedModelWrapper
from fastrl.train.on_policy import exact_div
from tests.legacy.error_parts import TEXTS, TOKENISED, Parts, check

pytestmark = pytest.mark.filterwarnings("ignore")
ROW = [torch.tensor([2, 3])] * 2


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("errors"))


def of(module, name):
    """A name where TRL 0.11.4 had it."""
    return getattr(importlib.import_module(f"fastrl.{module}"), name)


def same_model(parts, make, *names):
    """A trainer whose policy and reference are one object."""
    return make(**dict.fromkeys(names, parts.language()))


def saved(parts):
    parts.tokenizer.save_pretrained(parts.folder)
    return parts.folder


def without_padding(parts):
    tokenizer = type(parts.tokenizer).from_pretrained(saved(parts))
    tokenizer.pad_token = None
    return tokenizer


def offloaded(parts):
    model = parts.language()
    model.hf_device_map = {"transformer": 0, "lm_head": "disk"}
    return fastrl.AutoModelForCausalLMWithValueHead.from_pretrained(model)


def best_of_n(parts, **more):
    given = {"model": parts.wrapped, "tokenizer": parts.tokenizer, "queries_to_scores": len}
    return fastrl.BestOfNSampler(
        **{**given, "length_sampler": fastrl.core.LengthSampler(2, 3), **more}
    )


class Ranks(fastrl.BaseRankJudge):
    def judge(self, prompts, completions, shuffle_order=True):
        return super().judge(prompts, completions, shuffle_order)


class Pairwise(fastrl.BasePairwiseJudge):
    def judge(self, prompts, completions, shuffle_order=True):
        return super().judge(prompts, completions, shuffle_order)


def step(parts, **rows):
    return parts.iterative().step(**rows)


ERRORS = {
    "PPOConfig: both names of one option": (
        ValueError,
        lambda p: fastrl.PPOConfig(optimize_cuda_cache=False, optimize_device_cache=True),
    ),
    "PPOConfig: an unknown penalty": (AssertionError, lambda p: fastrl.PPOConfig(kl_penalty="l")),
    "PPOv2Trainer: the policy as its reference": (
        ValueError,
        lambda p: same_model(p, p.ppo_v2, "policy", "ref_policy"),
    ),
    "PPOv2Trainer: a batch that does not divide": (
        ValueError,
        lambda p: p.ppo_v2(config=p.ppo_v2_args(num_mini_batches=3)),
    ),
    "PPOv2Trainer: whitening few rows": (
        AssertionError,
        lambda p: p.ppo_v2(config=p.ppo_v2_args(whiten_rewards=True)),
    ),
    "OnlineDPOTrainer: the policy as its reference": (
        ValueError,
        lambda p: same_model(p, p.online, "model", "ref_model"),
    ),
    "OnlineDPOTrainer: nobody judges": (ValueError, lambda p: p.online(reward_model=None)),
    "OnlineDPOTrainer: an unknown loss": (
        NotImplementedError,
        lambda p: p.online(args=p.online_args(loss_type="hinge")).train(),
    ),
    "OnlineDPOTrainer: trains on nothing": (
        ValueError,
        lambda p: p.online(train_dataset=None).train(),
    ),
    "OnlineDPOTrainer: evaluates on nothing": (ValueError, lambda p: p.online().evaluate()),
    "DPOTrainer: the policy as its reference": (
        ValueError,
        lambda p: same_model(p, p.dpo, "model", "ref_model"),
    ),
    "DPOTrainer: a dtype that is none": (
        ValueError,
        lambda p: p.dpo(model="there", args=p.dpo_args(model_init_kwargs={"torch_dtype": 3})),
    ),
    "DPOTrainer: KTO's loss": (ValueError, lambda p: p.dpo(args=p.dpo_args(loss_type="kto_pair"))),
    "DPOTrainer: a reference that follows an adapter": (
        ValueError,
        lambda p: p.dpo(args=p.dpo_args(sync_ref_model=True), peft_config=p.lora()),
    ),
    "DPOTrainer: a reference that follows, computed before": (
        ValueError,
        lambda p: p.dpo(
            args=p.dpo_args(sync_ref_model=True, precompute_ref_log_probs=True),
            ref_model=p.language(),
        ),
    ),
    "DPOTrainer: evaluates on nothing": (ValueError, lambda p: p.dpo().evaluate()),
    "KTOTrainer: the policy as its reference": (
        ValueError,
        lambda p: same_model(p, p.kto, "model", "ref_model"),
    ),
    "KTOTrainer: keywords of a model that is loaded": (
        ValueError,
        lambda p: p.kto(args=p.kto_args(model_init_kwargs={"dtype": "float32"})),
    ),
    "KTOTrainer: a dtype that is none": (
        ValueError,
        lambda p: p.kto(model="there", args=p.kto_args(model_init_kwargs={"torch_dtype": 3})),
    ),
    "KTOTrainer: one row a step": (
        ValueError,
        lambda p: p.kto(args=p.kto_args(per_device_train_batch_size=1)),
    ),
    "KTOTrainer: prompts that are no texts": (
        ValueError,
        lambda p: p.kto(
            train_dataset=Dataset.from_list([{"prompt": 3, "completion": "a", "label": True}] * 4)
        ),
    ),
    "KTOTrainer: completions that are no texts": (
        ValueError,
        lambda p: p.kto(
            train_dataset=Dataset.from_list([{"prompt": "a", "completion": 3, "label": True}] * 4)
        ),
    ),
    "KTOTrainer: evaluates on nothing": (ValueError, lambda p: p.kto().evaluate()),
    "SFTTrainer: a dtype that is none": (
        ValueError,
        lambda p: p.sft(model="there", args=p.sft_args(model_init_kwargs={"torch_dtype": 3})),
    ),
    "SFTTrainer: rows of other columns": (
        ValueError,
        lambda p: p.sft(
            train_dataset=TEXTS.rename_column("text", "words"), dataset_text_field=None
        ),
    ),
    "RewardTrainer: two lengths": (
        ValueError,
        lambda p: p.reward(args=p.reward_args(max_length=8), max_length=9),
    ),
    "RewardTrainer: no reward in the rows": (
        ValueError,
        lambda p: p.reward(train_dataset=TOKENISED.remove_columns("input_ids_rejected")),
    ),
    "IterativeSFTTrainer: an unknown truncation": (
        ValueError,
        lambda p: p.iterative(truncation_mode="middle", max_length=1).step(
            input_ids=ROW, attention_mask=[torch.ones(2).long()] * 2
        ),
    ),
    "IterativeSFTTrainer.step: ids in one tensor": (
        ValueError,
        lambda p: step(p, input_ids=torch.ones(2, 2).long()),
    ),
    "IterativeSFTTrainer.step: ids that are no tensors": (
        ValueError,
        lambda p: step(p, input_ids=[[2], [3]]),
    ),
    "IterativeSFTTrainer.step: labels in one tensor": (
        ValueError,
        lambda p: step(p, input_ids=ROW, labels=torch.ones(2, 2).long()),
    ),
    "IterativeSFTTrainer.step: labels that are no tensors": (
        ValueError,
        lambda p: step(p, input_ids=ROW, labels=[[2], [3]]),
    ),
    "IterativeSFTTrainer.step: one text": (ValueError, lambda p: step(p, texts="the cat")),
    "IterativeSFTTrainer.step: texts that are none": (ValueError, lambda p: step(p, texts=[3])),
    "IterativeSFTTrainer.step: one label": (
        ValueError,
        lambda p: step(p, texts=["the"], texts_labels="cat"),
    ),
    "IterativeSFTTrainer.step: labels that are no texts": (
        ValueError,
        lambda p: step(p, texts=["the"], texts_labels=[3]),
    ),
    "BestOfNSampler: no tokenizer": (ValueError, lambda p: best_of_n(p, tokenizer="gpt2")),
    "BestOfNSampler: no model": (ValueError, lambda p: best_of_n(p, model=3)),
    "TextHistory: nothing to append": (
        ValueError,
        lambda p: fastrl.TextHistory("the", torch.tensor([2])).append_segment(
            "", torch.tensor([2])
        ),
    ),
    "WinRateCallback: no rows": (
        ValueError,
        lambda p: fastrl.WinRateCallback(Pairwise(), p.dpo()),
    ),
    "LogCompletionsCallback: no rows": (
        ValueError,
        lambda p: fastrl.LogCompletionsCallback(p.dpo()),
    ),
    "judges: a method that is not written, of ranks": (
        NotImplementedError,
        lambda p: Ranks().judge(["a"], [["b", "c"]]),
    ),
    "judges: a method that is not written, of pairs": (
        NotImplementedError,
        lambda p: Pairwise().judge(["a"], [["b", "c"]]),
    ),
    "value head: a wrapper's own forward": (
        NotImplementedError,
        lambda p: PreTrainedModelWrapper(p.language()).forward(),
    ),
    "value head: layers on disk": (ValueError, offloaded),
    "DataCollatorForChatML: no padding token": (
        ValueError,
        lambda p: DataCollatorForChatML(without_padding(p)),
    ),
    "trainer.utils.pad: on no side": (
        ValueError,
        lambda p: pad([torch.ones(1), torch.ones(2)], padding_side="top"),
    ),
    "trainer.utils.exact_div: a rest": (ValueError, lambda p: exact_div(3, 2, "a message")),
    "data_utils.apply_chat_template: unknown columns": (
        KeyError,
        lambda p: apply_chat_template({"question": "the"}, p.tokenizer),
    ),
    "env_utils.strtobool: neither": (ValueError, lambda p: of("env_utils", "strtobool")("maybe")),
    "import_utils: a name that is not there": (AttributeError, lambda p: fastrl.PPOTrainner),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_trl_keep_their_type(parts, name):
    check(parts, *ERRORS[name])
