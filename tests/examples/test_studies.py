"""The studies' parts: three families of one size, models kept between runs, the runner around."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples" / "scripts"
WORDS = {"pos": "warm funny moving", "neg": "dull flat boring"}
SENTENCES = {
    suffix: [f"the film is {w} for {n} minutes" for n in range(60) for w in words.split()]
    for suffix, words in WORDS.items()
}


@pytest.fixture
def offline(monkeypatch):
    """sentiment_offline."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import sentiment_offline

    return sentiment_offline


def test_three_families_of_one_size(offline):
    from transformers import AutoModelForCausalLM

    common = {"vocab_size": 4096, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    with torch.device("meta"):
        models = {
            name: AutoModelForCausalLM.from_config(make(common))
            for name, make in offline.FAMILIES.items()
        }
    kinds = {name: type(model).__name__ for name, model in models.items()}
    assert kinds == {
        "gpt2": "GPT2LMHeadModel",
        "falcon": "FalconForCausalLM",
        "llama": "LlamaForCausalLM",
    }
    assert models["falcon"].config.alibi
    assert not any("position" in name for name, _ in models["falcon"].named_parameters())
    # Embedding, and in each of four layers 12 matrices of width × width.
    counted = 4096 * 128 + 4 * 12 * 128 * 128
    for name, model in models.items():
        size = sum(p.numel() for p in model.parameters())
        assert counted <= size <= 1.02 * counted, name


@pytest.mark.parametrize("family", ["gpt2", "falcon", "llama"])
def test_a_kept_model_and_the_draws_after_it_are_those_of_a_new_one(
    offline, monkeypatch, tmp_path, family
):
    for name, value in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2}.items():
        monkeypatch.setattr(offline, name, value)
    tokenizer = offline.train_tokenizer(SENTENCES["pos"], 300)
    texts = SENTENCES["pos"][:96]
    new = offline.train_language_model(tokenizer, texts, 5, 1, family)
    drawn = torch.rand(3)

    def kept(seed: int = 5):
        torch.manual_seed(0)
        model = offline.kept_language_model(tmp_path, tokenizer, texts, seed, 1, family)
        return model, torch.rand(3)

    first = kept()
    trained = offline.train_language_model
    monkeypatch.setattr(offline, "train_language_model", None)  # the second is read
    for model, after in (first, kept()):
        assert not model.training
        assert torch.equal(after, drawn)
        for name, weight in new.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), name
    monkeypatch.setattr(offline, "train_language_model", trained)
    other, _ = kept(seed=6)  # made anew
    assert not torch.equal(other.get_input_embeddings().weight, new.get_input_embeddings().weight)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("flag", ["--family falcon", "--cache_dir x", "--model_seed 0"])
def test_options_of_the_offline_task_are_refused_with_a_hub(offline, flag):
    import ppo

    with pytest.raises(SystemExit, match=f"{flag.split()[0]} is of the offline task"):
        ppo.main(flag.split())


@pytest.mark.slow
def test_a_study_runs_through_the_runner(tmp_path):
    reviews = tmp_path / "reviews"
    reviews.mkdir()
    for suffix, lines in SENTENCES.items():
        (reviews / f"reviews.{suffix}").write_text("\n".join(lines))
    command = f"{sys.executable} {SCRIPTS / 'ppo.py'} --dataset {reviews} --smoke --family falcon"
    command += " --batch_size 16 --mini_batch_size 4 --gradient_accumulation_steps 2"
    command += " --model_seed 0 --cache_dir kept --output_dir study/falcon-{seed}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    python = [sys.executable, str(ROOT / "benchmark" / "benchmark.py")]
    line = [*python, "--command", command, "--num-seeds", "2", "--workers", "2"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"study/falcon-{n}/summary.json").read_text()) for n in (1, 2)]
    assert found[0]["before"] == found[1]["before"]  # the same language model and prompts
    assert found[0]["after"] != found[1]["after"]  # other draws
    python[1] = str(ROOT / "benchmark" / "table.py")
    keys = ["--keys", "after/reward (logit)"]
    shown = subprocess.run(
        [*python, "study/falcon-*", *keys], cwd=tmp_path, capture_output=True, text=True
    )
    rewards = [one["after"]["reward (logit)"] for one in found]
    assert f"| falcon | {sum(rewards) / 2:.3f} ± " in shown.stdout, shown.stderr
