"""A `data_collator` that cannot be called is named before any model is loaded."""

from __future__ import annotations

import inspect

import pytest
from datasets import Dataset

import fastrl
from fastrl.algos.iterative_sft import IterativeSFTConfig, IterativeSFTTrainer
from fastrl.algos.ppo_train import PPOTrainConfig
from tests.legacy.error_parts import Parts

ROWS = Dataset.from_list([{"prompt": "the"}] * 2)
OFFLINE = ("SFT", "DPO", "KTO", "Reward", "CPO", "ORPO", "BCO", "PRM", "GKD")
NOT_TAKEN = {"OnlineDPOTrainer", "NashMDTrainer", "XPOTrainer"}  # rows stay as they are


def offline(name, folder, given):
    config = getattr(fastrl, f"{name}Config")(folder, use_cpu=True, bf16=False, report_to="none")
    teacher = {"teacher_model": "nowhere/at-all-2"} if name == "GKD" else {}
    trainer = getattr(fastrl, f"{name}Trainer")
    trainer("nowhere/at-all", args=config, train_dataset=ROWS, data_collator=given, **teacher)


@pytest.mark.parametrize("given", ["text", ""])
@pytest.mark.parametrize("name", OFFLINE)
def test_trainers_on_fixed_datasets(tmp_path, name, given):
    with pytest.raises(TypeError, match=f"data_collator must be a function .* got '{given}'"):
        offline(name, str(tmp_path), given)


def test_the_others(tmp_path):
    text = {"data_collator": "text"}
    args = IterativeSFTConfig(str(tmp_path), use_cpu=True, max_steps=2, report_to="none")
    with pytest.raises(TypeError, match="data_collator must be a function"):
        IterativeSFTTrainer("nowhere/at-all", args, **text)
    args = PPOTrainConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(TypeError, match="data_collator must be a function"):
        fastrl.PPOv2Trainer(args, None, None, None, None, ROWS, None, **text)
    parts = Parts(tmp_path)
    for name in ("data_collator", "training_data_collator"):
        with pytest.raises(TypeError, match=f"^{name} must be a function"):
            parts.ppo(**{name: "text"})
    with pytest.raises(TypeError, match="data_collator must be a function"):
        parts.trainer.prepare_dataloader(ROWS, "text")


def test_no_trainer_is_forgotten():
    classes = {n: getattr(fastrl, n) for n in dir(fastrl) if n.endswith("Trainer")}
    taking = {n for n, c in classes.items() if "data_collator" in inspect.signature(c).parameters}
    seen = {f"{name}Trainer" for name in OFFLINE} | {"IterativeSFTTrainer", "PPOTrainer"}
    assert taking - NOT_TAKEN == seen | {"PPOv2Trainer"}
