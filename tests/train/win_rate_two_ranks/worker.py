"""One rank of a run with WinRateCallback: torchrun … worker.py FOLDER; each rank writes its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, Trainer, TrainingArguments

from fastrl.rewards.judges import BasePairwiseJudge
from fastrl.train.callbacks import WinRateCallback
from tests.algos.offline_parity.making import model, tokenizer
from tests.two_ranks import leave

PROMPTS = ["abc", "hello", "9 is", "xy", "so"]


class Later(BasePairwiseJudge):
    """Prefers the later text in the alphabet; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def judge(self, prompts: Any, completions: Any, shuffle_order: bool = True) -> list[int]:
        self.asked.append([list(prompts), [list(pair) for pair in completions]])
        return [int(other > one) for one, other in completions]


def run(folder: Path, world: int) -> dict[str, Any]:
    """Two steps on batches of 4 over all ranks; what was asked and logged."""
    torch.manual_seed(0)
    words = tokenizer()
    ids = words("what is learnt here")["input_ids"]
    rows = [{"input_ids": ids, "labels": ids}] * 16
    trainer = Trainer(
        model(),
        TrainingArguments(
            str(folder / "out"),
            max_steps=2,
            eval_strategy="steps",
            eval_steps=1,
            per_device_train_batch_size=4 // world,
            per_device_eval_batch_size=2,
            learning_rate=0.05,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list([{"prompt": prompt, **rows[0]} for prompt in PROMPTS]),
        processing_class=words,
    )
    assert trainer.accelerator.num_processes == world
    judge = Later()
    how = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    trainer.add_callback(WinRateCallback(judge, trainer, how))
    trainer.train()
    rates = [r["eval_win_rate"] for r in trainer.state.log_history if "eval_win_rate" in r]
    return {"asked": judge.asked, "rates": rates}


def main() -> None:
    """Run as this rank."""
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    found = run(folder, int(os.environ["WORLD_SIZE"]))
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
