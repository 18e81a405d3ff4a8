"""WinRateCallback: who is compared with whom, what is logged, and that training is as before."""

from __future__ import annotations

import importlib.machinery
import json
import random
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig, Trainer, TrainingArguments

from fastrl import DPOConfig, DPOTrainer
from fastrl.rewards.judges import BasePairwiseJudge, RandomPairwiseJudge
from fastrl.train.callbacks import WinRateCallback
from tests import two_ranks
from tests.algos.offline_parity.making import model, tokenizer
from tests.train.win_rate_two_ranks import worker

PROMPTS = ["abc", "hello", "9 + 3 is", "xy", "so"]
GREEDY = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)


class Judge(BasePairwiseJudge):
    """Says what it is told to; keeps what it was asked."""

    def __init__(self, *verdicts):
        self.verdicts = verdicts
        self.asked = []

    def judge(self, prompts, completions, shuffle_order=True, return_scores=False):
        self.asked.append((list(prompts), list(completions), shuffle_order, return_scores))
        random.random()
        np.random.random()
        return list(self.verdicts)


def arguments(folder, kind=TrainingArguments, **given):
    settings = {
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 0.05,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    return kind(str(folder), **settings | given)


def plain_trainer(folder, **given):
    torch.manual_seed(0)
    words = tokenizer()
    ids = words("what is learnt here")["input_ids"]
    rows = [{"input_ids": ids, "labels": ids}] * 8
    held_out = [{"prompt": prompt, **rows[0]} for prompt in PROMPTS]
    return Trainer(
        model(),
        arguments(folder, **given),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=words,
    )


def watched(trainer, judge, **given):
    callback = WinRateCallback(judge, trainer, **{"generation_config": GREEDY, **given})
    trainer.add_callback(callback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return callback


def column(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


def answers_of(trainer, prompts=PROMPTS):
    """By the model's own generate, one prompt at a time."""
    found = []
    trainer.model.eval()
    for prompt in prompts:
        ids = trainer.processing_class(prompt, return_tensors="pt").input_ids
        made = trainer.model.generate(ids, generation_config=GREEDY)[0, ids.shape[1] :]
        found.append(trainer.processing_class.decode(made, skip_special_tokens=True))
    return found


def test_the_trained_model_is_compared_with_its_start(tmp_path):
    trainer = plain_trainer(tmp_path)
    before = answers_of(trainer)
    judge = Judge(1, 0, 1, 1, 0)
    watched(trainer, judge)
    after = answers_of(trainer)
    assert before != after
    # At the start against itself, then at two evaluations, the last of them of the final weights.
    (first, second, third) = judge.asked
    assert first == (PROMPTS, list(zip(before, before, strict=True)), True, False)
    assert [pair[0] for pair in second[1]] == before
    assert third[1] == list(zip(before, after, strict=True))
    assert column(trainer, "eval_win_rate") == [0.6, 0.6, 0.6]
    steps = [row["step"] for row in trainer.state.log_history if "eval_win_rate" in row]
    assert steps == [0, 2, 4]
    lines = [
        json.loads(line)
        for line in (tmp_path / "win_rate_completions.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 15
    assert lines[-1] == {
        "step": 4,
        "prompt": "so",
        "reference_model": before[-1],
        "policy": after[-1],
        "winner_index": 0,
    }


def test_rows_the_judge_fails_on_count_neither_way(tmp_path):
    trainer = plain_trainer(tmp_path, max_steps=2)
    watched(trainer, Judge(1, -1, -1, 0, 1))
    assert column(trainer, "eval_win_rate") == pytest.approx([2 / 3] * 2)
    trainer = plain_trainer(tmp_path, max_steps=2)
    watched(trainer, Judge(*[-1] * 5))
    assert all(rate != rate for rate in column(trainer, "eval_win_rate"))


def test_a_soft_judge_gives_odds_of_the_reference(tmp_path):
    trainer = plain_trainer(tmp_path, max_steps=2)
    judge = Judge(0.25, 0.5, 0.1, 1.0, -1)
    watched(trainer, judge, use_soft_judge=True, shuffle_order=False)
    assert [asked[2:] for asked in judge.asked] == [(False, True)] * 2
    # The trained model wins where the reference's odds are no more than even: 3 of 4.
    assert column(trainer, "eval_win_rate") == [0.75, 0.75]
    assert column(trainer, "eval_avg_win_prob") == [pytest.approx(2.15 / 4)] * 2


def test_some_prompts_are_enough(tmp_path):
    trainer = plain_trainer(tmp_path, max_steps=2)
    judge = Judge(1, 1)
    watched(trainer, judge, num_prompts=2)
    assert judge.asked[0][0] == PROMPTS[:2]


def test_training_is_unchanged_by_it(tmp_path):
    with_it = plain_trainer(tmp_path)
    watched(with_it, RandomPairwiseJudge())
    after = random.random(), np.random.random(), torch.rand(())
    without = plain_trainer(tmp_path)
    without.train()
    assert after == (random.random(), np.random.random(), torch.rand(()))
    assert column(with_it, "loss") == column(without, "loss")
    for ours, theirs in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_reference_model_answers_where_there_is_one(tmp_path):
    rows = [{"prompt": p, "chosen": " yes", "rejected": " no, never"} for p in PROMPTS]
    reference = model()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.3)
    trainer = DPOTrainer(
        model(),
        reference,
        args=arguments(tmp_path, DPOConfig, max_steps=2, learning_rate=1e-3, max_length=32),
        train_dataset=Dataset.from_list(rows * 2),
        eval_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    judge = Judge(1, 0, 1, 1, 0)
    watched(trainer, judge)
    own = Trainer(reference, arguments(tmp_path, eval_strategy="no"), processing_class=tokenizer())
    words = tokenizer()  # the prepared rows hold ids
    texts = [words.decode(words(p).input_ids, skip_special_tokens=True) for p in PROMPTS]
    assert judge.asked[0][0] == texts
    assert [pair[0] for pair in judge.asked[-1][1]] == answers_of(own)
    assert column(trainer, "eval_win_rate") == [0.6, 0.6]


def test_an_evaluation_before_training_is_judged_too(tmp_path):
    trainer = plain_trainer(tmp_path)
    judge = Judge(1, 0, 1, 1, 0)
    trainer.add_callback(WinRateCallback(judge, trainer, GREEDY))
    trainer.evaluate()
    assert column(trainer, "eval_win_rate") == [0.6]
    assert all(one == other for one, other in judge.asked[0][1])


def test_answers_go_to_wandb_as_a_table(tmp_path, monkeypatch):
    logged = []
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.run = object()
    wandb.Table = lambda columns, data: (columns, data)
    wandb.log = logged.append
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trainer = plain_trainer(tmp_path)
    callback = WinRateCallback(Judge(1, 0, 1, 1, 0), trainer, GREEDY)
    trainer.add_callback(callback)
    trainer.args.report_to = ["wandb"]
    trainer.evaluate()
    ((name, (columns, rows)),) = logged[0].items()
    assert name == "win_rate_completions" and len(rows) == 5
    assert columns == ["step", "prompt", "reference_model", "policy", "winner_index"]


@pytest.mark.parametrize(
    ("verdicts", "soft", "message"),
    [
        ((1, 0), False, r"must give 0, 1 or -1 for 5 pairs, got \[1, 0\]"),
        ((1, 0, 2, 1, 1), False, "must give 0, 1 or -1"),
        ((0.5, 0.5, 1.5, 0.1, 0.1), True, "must give probabilities for 5 pairs"),
    ],
)
def test_verdicts_that_are_refused(tmp_path, verdicts, soft, message):
    trainer = plain_trainer(tmp_path)
    with pytest.raises(ValueError, match=message):
        watched(trainer, Judge(*verdicts), use_soft_judge=soft)


def test_arguments_that_are_refused(tmp_path):
    trainer = plain_trainer(tmp_path)
    with pytest.raises(TypeError, match="judge must be a pairwise judge, got object"):
        WinRateCallback(object(), trainer)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="WinRateCallback needs the trainer to have one"):
        WinRateCallback(Judge(), trainer)


@pytest.mark.slow
def test_two_ranks_share_the_answers_and_one_is_judged(tmp_path):
    said = two_ranks.start(worker.__file__, tmp_path, timeout=200)
    assert (tmp_path / "rank1.json").exists(), said
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert second == {"asked": [], "rates": first["rates"]}
    alone = worker.run(tmp_path / "one", 1)
    assert first == json.loads(json.dumps(alone))
    assert len(first["rates"]) == 3 and first["asked"][0][0] == worker.PROMPTS
