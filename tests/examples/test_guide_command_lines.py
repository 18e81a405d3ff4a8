"""Command lines of the guides, run: one step each, beside a hub of tiny models in a folder.

What they are read as stands in test_ppo_script.py; here each option must also do its part.
"""

from __future__ import annotations

import importlib
import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import FalconConfig, FalconForCausalLM

from tests.customisation.trackers import stand_in
from tests.examples.test_benchmark_runner import COMMANDS, SCRIPT

ROOT = Path(__file__).resolve().parents[2]
# Line -> optimizer steps in two epochs over a batch of 128, and what the tracker is told.
OF_BENCHMARKS = {
    "plain": (2, {}),
    "accumulation": (2, {"mini_batch_size": 1, "exp_name": "sentiment_tuning_step_grad_accu"}),
    "gpt2": (2, {"exp_name": "sentiment_tuning_gpt2", "mini_batch_size": 128}),
    "gpt2-xl": (2, {"model_name": "gpt2-xl", "mini_batch_size": 16}),
    "falcon": (2, {"model_name": "tiiuae/falcon-rw-1b"}),
    "peft": (2, {"exp_name": "sentiment_tuning_peft"}),
}
LINES = {COMMANDS[name].removeprefix(SCRIPT): told for name, told in OF_BENCHMARKS.items()} | {
    "--log_with wandb --use_score_scaling --use_score_norm --score_clip 0.5": (
        2,
        {"use_score_scaling": True, "use_score_norm": True, "score_clip": 0.5},
    ),
    "--ppo_config.log_with wandb --ppo_config.mini_batch_size 1 "
    "--ppo_config.gradient_accumulation_steps 16": (16, {"gradient_accumulation_steps": 16}),
}


@pytest.fixture
def hub(local_hub_directory):
    """That folder, with the other models of the guide and reviews for more than one batch."""
    shutil.copytree("gpt2", "gpt2-xl")
    shutil.copytree("gpt2", "tiiuae/falcon-rw-1b")
    sizes = json.loads(Path("gpt2", "config.json").read_text())
    same = {name: sizes[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True}
    torch.manual_seed(0)
    FalconForCausalLM(FalconConfig(**same, **shape)).save_pretrained("tiiuae/falcon-rw-1b")
    reviews = Path("imdb", "train.jsonl")
    text = reviews.read_text()
    reviews.unlink()  # a link, whose file others read
    reviews.write_text(text * 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("line", "told"), LINES.items(), ids=range(len(LINES)))
def test_the_ppo_lines_run(hub, monkeypatch, line, told):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "scripts"))
    kind = stand_in(monkeypatch, "wandb")
    made, init = [], kind.__init__
    monkeypatch.setattr(
        kind, "__init__", lambda self, *a, **k: made.append(self) or init(self, *a, **k)
    )
    updates = []
    counting = register_optimizer_step_post_hook(
        lambda optimizer, *_: updates.append(optimizer.param_groups[0]["lr"])
    )
    words = [*shlex.split(line), "--seed", "3", "--max_steps", "1"]
    words += ["--ppo_epochs", "2", "--output_dir", "out"]
    try:
        summary = importlib.import_module("ppo").main(words)
    finally:
        counting.remove()
    steps, expected = told
    assert updates == [1.41e-5] * steps

    (tracker,) = made
    config = tracker.config["trl_ppo_trainer_config"]
    expected = {"batch_size": 128, "seed": 3, "target_kl": 6.0, "log_with": "wandb"} | expected
    assert {name: config[name] for name in expected} == expected
    ((values, _),) = tracker.logged
    columns, rows = values["game_log"]
    assert columns == ["query", "response", "ref_response", "ref_rewards", "reward"]
    assert len(rows) == 128

    row = json.loads(Path("out", "log.jsonl").read_text())
    assert row["reward"] == pytest.approx(values["env/reward_mean"], rel=1e-5)
    assert math.isfinite(row["ppo/loss/total"]) and abs(row["objective/kl"]) < 1e-4
    mean = row["ppo/mean_scores"]
    if "score" in line:  # scaled to deviation 1, cut at 0.5
        assert abs(mean) <= 0.5 and mean != pytest.approx(row["reward"], rel=0.05)
    else:
        assert mean == pytest.approx(row["reward"], rel=1e-5)

    saved = Path("out", "checkpoint")
    assert (saved / "adapter_config.json").exists() == ("--use_peft" in line)
    if "falcon" in line:
        assert json.loads((saved / "config.json").read_text())["model_type"] == "falcon"
    assert summary["before"].keys() == summary["after"].keys()
