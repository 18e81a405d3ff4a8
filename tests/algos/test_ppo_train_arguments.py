"""PPO's `train()` form: one name for both forms, old spellings, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import fastrl
from tests.algos.offline_parity import making
from tests.algos.ppo_train_parity import running
from tests.algos.ppo_train_parity.cases import Case
from tests.algos.ppo_train_runs import CONFIG, make, quiet  # noqa: F401

# --- one name for both forms --------------------------------------------------------------------


def test_ppo_trainer_makes_either_form(tmp_path: Path, make_trainer: Any) -> None:
    trainer = make(tmp_path)
    assert type(trainer) is fastrl.PPOv2Trainer
    assert isinstance(trainer, fastrl.PPOTrainer)
    classic = make_trainer()
    assert type(classic) is fastrl.PPOTrainer
    assert not isinstance(classic, fastrl.PPOv2Trainer)
    assert not isinstance(object(), fastrl.PPOTrainer)

    class Own(fastrl.PPOTrainer):
        pass

    assert not isinstance(trainer, Own)
    assert list(inspect.signature(fastrl.PPOTrainer).parameters)[:4] == [
        "config",
        "model",
        "ref_model",
        "tokenizer",
    ]
    with pytest.raises(TypeError, match="Own subclasses the step"):
        Own(args=trainer.args)


def test_arguments_of_both_forms_are_listed(tmp_path: Path) -> None:
    args = fastrl.PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match=r"step\(\) form \(dataset\) and of its train\(\) form"):
        fastrl.PPOTrainer(args=args, dataset=[])
    with pytest.raises(TypeError, match=r"\(PPOConfig\) and of its train\(\) form \(reward_model"):
        fastrl.PPOTrainer(fastrl.PPOConfig(batch_size=4), reward_model=None)


def test_the_spellings_of_its_first_releases(tmp_path: Path) -> None:
    found = running.parts(Case("x", model="qwen2"))
    found |= {"policy": found.pop("model"), "ref_policy": found.pop("ref_model")}
    found["tokenizer"] = found.pop("processing_class")
    args = fastrl.PPOv2Config(str(tmp_path), **CONFIG)
    data = Dataset.from_dict({"input_ids": running.prompts(4)})
    with pytest.warns(FutureWarning, match="policy= is model="):
        trainer = fastrl.PPOv2Trainer(config=args, train_dataset=data, **found)
    assert trainer.model.policy is found["policy"]
    assert trainer.tokenizer is found["tokenizer"]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: {"ref_model": p["model"]}, ValueError, "ref_model is the object given as model"),
        (lambda p: {"reward_model": p["value_model"]}, ValueError, "reward_model is the object"),
        (lambda p: {"value_model": None}, TypeError, "value_model must be a model"),
        (lambda p: {"reward_model": "gpt2"}, TypeError, "reward_model must be a model, .* got str"),
        (lambda p: {"value_model": p["ref_model"]}, ValueError, "value_model must be a sequence-c"),
        (lambda p: {"model": p["ref_model"].model}, ValueError, "model must be a causal language"),
        (lambda p: {"processing_class": 3}, TypeError, "processing_class must be a tokenizer"),
        (lambda p: {"train_dataset": [1]}, TypeError, "train_dataset must be a datasets.Dataset"),
        (lambda p: {"num_train_epochs": 0.01}, ValueError, "is less than one response"),
        (
            lambda p: {"eval_dataset": Dataset.from_dict({"input_ids": []})},
            ValueError,
            "eval_dataset has no rows",
        ),
        (lambda p: {"rows": 3}, ValueError, "train_dataset has 3 rows, fewer than the 4"),
        (
            lambda p: {"train_dataset": Dataset.from_dict({"text": ["a"] * 4})},
            ValueError,
            "train_dataset has neither input_ids .* nor prompt",
        ),
        (
            lambda p: {"train_dataset": Dataset.from_dict({"input_ids": [[5], [6], [], [7]]})},
            ValueError,
            "train_dataset row 2: the prompt is empty",
        ),
        (
            lambda p: {"eval_dataset": Dataset.from_dict({"input_ids": [[5], [99]]})},
            ValueError,
            "eval_dataset row 1: input_ids holds the id 99",
        ),
        (lambda p: {"ref_adapter_name": "old"}, ValueError, "names no adapter of model"),
        (lambda p: {"peft_config": object()}, ValueError, "peft_config must be a peft"),
    ],
)
def test_refused_before_anything_is_changed(
    tmp_path: Path, change: Any, error: type[Exception], message: str
) -> None:
    given = running.parts(Case("x", model="qwen2"))
    dropout = torch.nn.Dropout(0.3)
    given["model"].extra = dropout
    with pytest.raises(error, match=message):
        make(tmp_path, **{**given, **change(given)})
    assert dropout.p == 0.3
    assert all(p.requires_grad for p in given["reward_model"].parameters())


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path) -> None:
    tokenizer = making.tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="processing_class has no padding token"):
        make(tmp_path, processing_class=tokenizer)
