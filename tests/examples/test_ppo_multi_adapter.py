"""examples/scripts/ppo_multi_adapter.py: flags of both eras, and a run of all its stages."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
peft = pytest.importorskip("peft")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "scripts"))
    wandb = types.ModuleType("wandb")  # PPOConfig asks only whether it could be imported
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    import ppo_multi_adapter

    return ppo_multi_adapter


@pytest.mark.parametrize(
    ("line", "options", "config"),
    [
        (
            "",
            {"dataset_name": "Anthropic/hh-rlhf", "rm_adapter": "trl-lib/llama-7b-hh-rm-adapter"},
            {"model_name": "huggyllama/llama-7b", "batch_size": 8, "mini_batch_size": 2}
            | {"gradient_accumulation_steps": 2, "learning_rate": 1e-5, "seed": 0},
        ),
        (
            "--model_name gpt2 --dataset_name imdb --rm_adapter mine --log_with wandb --seed 3 "
            "--use_safetensors True --use_score_scaling --use_score_norm --score_clip 0.5",
            {"dataset_name": "imdb", "rm_adapter": "mine", "use_safetensors": True},
            {"model_name": "gpt2", "log_with": "wandb", "seed": 3, "score_clip": 0.5}
            | {"use_score_scaling": True, "use_score_norm": True},
        ),
        (
            "--ppo_config.model_name gpt2 --ppo_config.seed 3 --args.rm-adapter mine",
            {"rm_adapter": "mine", "load_in_4bit": True},
            {"model_name": "gpt2", "seed": 3},
        ),
    ],
)  # fmt: skip
def test_command_lines_of_both_eras(script, line, options, config):
    found = script.parse(script.Options, script.HUB_DEFAULTS, line.split(), "about")
    for part, expected in zip(found, (options, config), strict=True):
        assert {name: getattr(part, name) for name in expected} == expected


def test_a_wrong_flag_is_told(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--smoke", "--rm_adaptor", "x"])
    assert "did you mean '--rm_adapter'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no v_head weight", "ignore:no model card")
def test_reward_adapter_and_policy_adapter_on_one_base(script, tmp_path):
    words = ["--smoke", "--output_dir", str(tmp_path), "--max_steps", "3"]
    summary = script.main(words)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["objective/kl"] == 0 and rows[2]["objective/kl"] != 0
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    # What PPO was rewarded by is what the reward model says that the adapter was trained on.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    judge.config.pad_token_id = tokenizer.pad_token_id
    judge = peft.PeftModel.from_pretrained(judge, str(tmp_path / "reward")).eval()

    def reward(text):
        ids = tokenizer(text + tokenizer.eos_token, return_tensors="pt").input_ids
        with torch.no_grad():
            return judge(ids).logits[0, 0].item()

    assert reward("the film is warm and it runs for 7 minutes") > reward(
        "the film is dull and it runs for 7 minutes"
    )
    from fastrl import AutoModelForCausalLMWithValueHead

    saved = AutoModelForCausalLMWithValueHead.from_pretrained(
        str(tmp_path / "checkpoint"), reward_adapter=str(tmp_path / "checkpoint" / "reward_adapter")
    ).eval()
    text = "the film is funny"
    ids = tokenizer(text + tokenizer.eos_token, return_tensors="pt").input_ids
    found = saved.compute_reward_score(ids, torch.ones_like(ids))[0, -1, 0].item()
    assert found == pytest.approx(reward(text), rel=1e-4, abs=1e-5)
