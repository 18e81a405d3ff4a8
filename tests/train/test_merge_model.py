"""Merged checkpoints: their weights by hand, when they are written, where mergekit is needed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from fastrl.train import merging
from fastrl.train.callbacks import MergeModelCallback
from fastrl.train.callbacks.merge_model import MergeConfig
from tests.algos.offline_parity.making import model, tokenizer


def trained(folder, callback, start=None, **given):
    """Two steps from a start, with the callback."""
    torch.manual_seed(0)
    words = tokenizer()
    ids = words("what is learnt here")["input_ids"]
    settings = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 0.05,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(start) if start else model(),
        TrainingArguments(str(folder / "out"), **settings | given),
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids}] * 8),
        processing_class=words,
        callbacks=[callback],
    )
    trainer.train()
    return trainer


@pytest.fixture
def start(tmp_path):
    model().save_pretrained(tmp_path / "start")
    return str(tmp_path / "start")


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


# --- weights -------------------------------------------------------------------------------------


def test_a_mean_by_hand():
    config = MergeConfig()
    config.policy_model_weight, config.target_model_weight = 3.0, 1.0
    policy = {"a": torch.tensor([4.0, 0.0]), "n": torch.tensor([7])}
    target = {"a": torch.tensor([0.0, 8.0]), "n": torch.tensor([9])}
    merged = merging.merge_states(config, policy, target)
    assert merged["a"].tolist() == [3.0, 2.0] and merged["n"].tolist() == [7]


def test_an_arc_by_hand():
    config = MergeConfig("slerp")
    config.t_values = 1 / 3
    # A right angle between vectors of lengths 2 and 1: sin 60° and sin 30° of them.
    policy, target = {"a": torch.tensor([[2.0, 0.0]])}, {"a": torch.tensor([[0.0, 1.0]])}
    merged = merging.merge_states(config, policy, target)["a"][0].tolist()
    assert merged == pytest.approx([2 * math.sin(math.pi / 3), math.sin(math.pi / 6)], rel=1e-6)
    same = merging.merge_states(config, policy, {"a": torch.tensor([[5.0, 0.0]])})["a"]
    assert same[0].tolist() == pytest.approx([3.0, 0.0])  # along a line: 2 + (5 - 2) / 3


def test_models_that_differ_are_refused():
    config, one = MergeConfig(), torch.ones(2)
    with pytest.raises(ValueError, match=r"differ in b and 0 more"):
        merging.merge_states(config, {"a": one}, {"a": one, "b": one})
    with pytest.raises(ValueError, match="differ in a"):
        merging.merge_states(config, {"a": one}, {"a": torch.ones(3)})
    config.policy_model_weight = -0.5
    with pytest.raises(ValueError, match="must sum to more than 0"):
        merging.merge_states(config, {"a": one}, {"a": one})


# --- the callback --------------------------------------------------------------------------------


def test_the_last_checkpoint_is_merged_with_the_start(tmp_path, start):
    trained(tmp_path, MergeModelCallback(), start)
    assert not (tmp_path / "out" / "checkpoint-1" / "merged").exists()
    folder = tmp_path / "out" / "checkpoint-2"
    merged, policy, begun = weights(folder / "merged"), weights(folder), weights(start)
    moved = 0.0
    for name, weight in merged.items():
        expected = ((policy[name].double() + begun[name].double()) / 2).half().float()
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-7)
        moved = max(moved, float((policy[name] - begun[name]).abs().max()))
    assert moved > 0.05
    stored = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="auto")
    assert stored.dtype == torch.float16
    assert len(AutoTokenizer.from_pretrained(folder / "merged")) == len(tokenizer())


def test_every_checkpoint_may_be_merged_with_another_model(tmp_path, start):
    config = MergeConfig()
    config.target_model_path, config.dtype = start, "float32"
    config.policy_model_weight, config.target_model_weight = 0.0, 1.0
    trained(tmp_path, MergeModelCallback(config, merge_at_every_checkpoint=True))
    for step in (1, 2):
        merged = weights(tmp_path / "out" / f"checkpoint-{step}" / "merged")
        assert all(torch.equal(merged[name], weight) for name, weight in weights(start).items())


def test_a_model_that_was_not_saved_is_saved_to_be_merged(tmp_path, start):
    trained(tmp_path, MergeModelCallback(), start, save_strategy="no")
    folder = tmp_path / "out" / "checkpoint-2"
    assert (folder / "model.safetensors").exists() and (folder / "merged" / "config.json").exists()


def test_merged_models_go_to_the_hub(tmp_path, start, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo_id, repo_type, exist_ok):
            calls.append(repo_id)
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, folder_path, repo_id, repo_type):
            calls.append((folder_path, repo_id))

    monkeypatch.setattr(merging, "HfApi", Api)
    trained(tmp_path, MergeModelCallback(push_to_hub=True), start)
    merged = str(tmp_path / "out" / "checkpoint-2" / "merged")
    assert calls == ["out_checkpoint-2_merged", (merged, "me/out_checkpoint-2_merged")]


def test_what_cannot_be_merged_is_refused_before_training(tmp_path, start):
    nowhere = model()
    nowhere.config._name_or_path = ""
    with pytest.raises(ValueError, match="target_model_path is not set"):
        MergeModelCallback().on_train_begin(None, None, None, model=nowhere)
    config = MergeConfig()
    config.target_model_path = str(tmp_path / "gone")
    with pytest.raises(OSError, match="gone"):
        MergeModelCallback(config).on_train_begin(None, None, None, model=nowhere)
    from peft import LoraConfig, get_peft_model

    lora = get_peft_model(model(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="an adapter is trained"):
        MergeModelCallback().on_train_begin(None, None, None, model=lora)
    with pytest.raises(ValueError, match="must be set to merge models"):
        merging.merge_models(MergeConfig(), str(tmp_path))


# --- mergekit ------------------------------------------------------------------------------------


def test_methods_and_their_defaults():
    assert vars(MergeConfig()) == {
        "method": "linear",
        "policy_model_path": None,
        "target_model_path": None,
        "dtype": "float16",
        "policy_model_weight": 0.5,
        "target_model_weight": 0.5,
    }
    assert MergeConfig("slerp").t_values == 0.5
    with pytest.raises(ValueError, match="method='mean' is none of linear"):
        MergeConfig("mean")


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_what_needs_mergekit_names_it(monkeypatch, method):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "mergekit" else find(name)
    )
    with pytest.raises(ImportError, match=r"MergeConfig\('.*ties'\) needs.*pip install mergekit"):
        MergeConfig(method)
    with pytest.raises(ImportError, match="pip install mergekit"):
        MergeConfig().create()


def test_mergekit_does_what_it_is_needed_for(monkeypatch, tmp_path):
    ran = []
    parts = {
        "mergekit": {},
        "mergekit.config": {"MergeConfiguration": SimpleNamespace(model_validate=dict)},
        "mergekit.merge": {
            "MergeOptions": lambda **given: given,
            "run_merge": lambda made, out_path, options: ran.append((made, out_path)),
        },
    }
    for name, held in parts.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    config = MergeConfig("ties")
    config.policy_model_path, config.target_model_path = "policy", "target"
    merging.merge_models(config, "out")
    merging.merge_models(config.create(), "out")
    assert ran[0] == ran[1]
    assert ran[0] == (
        {
            "merge_method": "ties",
            "dtype": "float16",
            "models": [
                {"model": "policy", "parameters": {"weight": 1.0, "density": [1.0, 0.7, 0.1]}},
                {"model": "target", "parameters": {"weight": 1.0, "density": [1.0]}},
            ],
            "base_model": "policy",
            "parameters": {"normalize": True},
        },
        "out",
    )
