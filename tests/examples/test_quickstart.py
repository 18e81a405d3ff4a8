"""examples/quickstart.py: its task is honest, and PPO lifts the reward for every seed."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quickstart(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import quickstart

    return quickstart


def test_only_the_right_number_is_rewarded(quickstart):
    task = quickstart.Sum(37, 45)
    assert task.prompt == "37+45="
    assert task.reward("82") == 1.0
    for reply in ("72", "8", "820", "82+", "082", "=82", ""):
        assert task.reward(reply) == 0.0


def test_homework_forgets_three_carries_in_four(quickstart):
    rng = random.Random(0)
    answers = [quickstart.Sum(37, 45).homework(rng) for _ in range(4000)]
    assert set(answers) == {"72", "82"}
    assert abs(answers.count("82") / 4000 - 0.25) < 0.03


def test_unseen_sums_are_fixed_and_apart(quickstart):
    training, unseen = quickstart.split_sums()
    assert (len(training), len(unseen)) == (3445, 200)
    assert not set(training) & set(unseen)
    assert all(task.left % 10 + task.right % 10 >= 10 for task in training + unseen)
    assert quickstart.split_sums() == (training, unseen)


def test_the_tokenizer_returns_what_it_was_given(quickstart):
    tokenizer = quickstart.build_tokenizer(quickstart.CHARACTERS)
    batch = tokenizer(["37+45=82<eos>", "1+9="], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert [len(row) for row in batch["input_ids"]] == [9, 9]
    assert sum(batch["attention_mask"][1]) == 4
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == [
        "37+45=82",
        "1+9=",
    ]


@pytest.mark.parametrize(
    ("written", "read"), [("82<eos><pad>", "82"), ("8<pad>2<eos>", "8<pad>2"), ("82=", "82=")]
)
def test_a_reply_ends_at_the_end_mark_only(quickstart, written, read):
    tokenizer = quickstart.build_tokenizer(quickstart.CHARACTERS)
    ids = tokenizer(written, return_tensors="pt").input_ids[0]
    assert quickstart.read_reply(tokenizer, ids) == read


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reward_at_least_doubles(seed, tmp_path, quickstart):
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    command += ["--act", "ppo", "--seed", str(seed), "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]

    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    before, after = (row["eval/reward"] for row in rows if row["stage"] == "eval")
    assert 0.1 <= before <= 0.4
    assert 2 * before <= after <= 1.0
    assert f"eval/reward before PPO: {before:.3f}" in done.stdout
    assert f"eval/reward after PPO: {after:.3f}" in done.stdout

    steps = [row for row in rows if row["stage"] == "ppo"]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    for row in steps:
        assert 0.0 <= row["reward"] <= 1.0
        for key in ("objective/kl", "objective/entropy", "ppo/loss/value"):
            assert math.isfinite(row[key])
    assert abs(steps[0]["objective/kl"]) < 1e-3  # the reference is the model PPO starts from
    assert steps[-1]["objective/kl"] > 0.1

    picture = (tmp_path / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    assert reloaded_score(quickstart, tmp_path) == pytest.approx(after, abs=0.02)


def reloaded_score(quickstart, folder: Path) -> float:
    """The score of the checkpoint, measured anew on the same prompts with the same noise."""
    from transformers import AutoTokenizer

    from fastrl import AutoModelForCausalLMWithValueHead

    model = AutoModelForCausalLMWithValueHead.from_pretrained(folder / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    _, unseen = quickstart.split_sums()
    replies = quickstart.answer(model.pretrained_model, tokenizer, unseen)
    return sum(map(quickstart.Sum.reward, unseen, replies)) / len(unseen)
