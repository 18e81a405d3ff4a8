"""examples/quickstart_grpo.py: its task is honest, and GRPO lifts accuracy for every seed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def act(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import quickstart_grpo

    return quickstart_grpo


def test_only_the_right_number_is_rewarded(act):
    carries, borrows = act.Problem(37, "+", 45), act.Problem(52, "-", 17)
    assert (carries.prompt, carries.answer, carries.kind) == ("37+45=", 82, "carries")
    assert (borrows.prompt, borrows.answer, borrows.kind) == ("52-17=", 35, "borrows")
    assert act.Problem(31, "+", 45).kind == act.Problem(59, "-", 17).kind == "neither"
    replies = ["82", "72", "8", "082", "82=", "", "35"]
    assert act.exact(replies, answer=[82] * 6 + [35]) == [1, 0, 0, 0, 0, 0, 1]


def test_homework_forgets_three_tens_in_four(act):
    rng = random.Random(0)
    for problem, wrong in ((act.Problem(37, "+", 45), "72"), (act.Problem(52, "-", 17), "45")):
        answers = [problem.homework(rng) for _ in range(4000)]
        assert set(answers) == {wrong, str(problem.answer)}
        assert abs(answers.count(wrong) / 4000 - 0.75) < 0.03


def test_unseen_problems_are_fixed_and_apart(act):
    training, unseen = act.split_problems()
    assert not set(training) & set(unseen)
    for problems in (training, unseen):
        kinds = [problem.kind for problem in problems]
        assert kinds.count("carries") == kinds.count("borrows") == len(kinds) / 2
        assert all(problem.answer >= 0 for problem in problems)
    assert len(unseen) == 300
    assert act.split_problems() == (training, unseen)


def test_a_few_steps_write_everything(act, tmp_path, capsys):
    before, after = act.run(tmp_path, sft_steps=2, steps=2)
    assert 0 <= before <= 1 and 0 <= after <= 1
    shown = capsys.readouterr().out
    assert f"accuracy before GRPO: {before:.3f}" in shown
    assert f"accuracy after GRPO: {after:.3f}" in shown
    assert "{'loss'" not in shown
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "reward" in row] == [1, 2]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_accuracy_passes_nine_in_ten(act, seed, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--act", "grpo"]
    command += ["--seed", str(seed), "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "grpo" / "log.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert rewards[-1] > 0.85 > 0.5 > rewards[0]
    before, after = (
        float(done.stdout.split(f"accuracy {when} GRPO: ")[1].split()[0])
        for when in ("before", "after")
    )
    assert before <= 0.5 and after > 0.9
    assert reloaded_accuracy(act, tmp_path / "grpo") == pytest.approx(after, abs=0.005)


def reloaded_accuracy(act, folder: Path) -> float:
    """That of the checkpoint, measured anew."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    _, unseen = act.split_problems()
    replies = act.answer(model, tokenizer, unseen)
    right = [reply == str(each.answer) for each, reply in zip(unseen, replies, strict=True)]
    return sum(right) / len(right)
