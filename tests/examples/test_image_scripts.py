"""ddpo.py, its name in guides, and alignprop.py: smoke runs, and flags of every era."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def test_flags_of_every_era(script):
    import fastrl

    images = script("images")
    words = ["--num_epochs=200", "--train_gradient_accumulation_steps=1", "--sample_num_steps=50"]
    words += ["--sample_batch_size=6", "--train_batch_size=3", "--per_prompt_stat_tracking=True"]
    words += ["--ddpo_config.sample_num_batches_per_epoch", "4", "--log_with=tensorboard"]
    words += ["--hf_user_access_token", "token", "--use_lora", "False"]
    options, config = images.parse(fastrl.DDPOConfig, words, "About.")
    assert (options.hf_user_access_token, options.use_lora) == ("token", False)
    assert (config.num_epochs, config.sample_num_batches_per_epoch) == (200, 4)
    assert config.per_prompt_stat_tracking and config.log_with == "tensorboard"
    with pytest.raises(SystemExit):
        images.parse(fastrl.DDPOConfig, ["--reward", "taste"], "About.")
    prompt, metadata = images.prompt()
    assert prompt in images.ANIMALS and metadata == {}


@pytest.mark.slow
def test_smoke_runs_need_nothing(script, tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline

    rows = script("ddpo").main(["--smoke", "--output_dir", str(tmp_path / "ddpo")])
    assert [row["step"] for row in rows if "reward_mean" in row] == [0, 4]
    logged = (tmp_path / "ddpo" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in logged] == rows
    assert (tmp_path / "ddpo" / "checkpoints" / "checkpoint_0").is_dir()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "ddpo")
    pipeline.load_lora_weights(tmp_path / "ddpo")
    words = ["--smoke", "--use_lora", "False", "--output_dir", str(tmp_path / "align")]
    rows = script("alignprop").main(words)
    assert [row["epoch"] for row in rows] == [0, 1]
    guide = str(SCRIPTS / "stable_diffusion_tuning_example.py")
    monkeypatch.setattr(sys, "argv", [guide, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(guide, run_name="__main__")
    assert stop.value.code == 0
