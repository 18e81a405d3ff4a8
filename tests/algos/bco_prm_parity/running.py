"""One training run of BCO or PRM, with `trl` 0.28 or with `fastrl`: what it logs at each step.

Nothing here imports `trl` or `fastrl`.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

from tests.algos.offline_parity import making
from tests.algos.offline_parity.running import BASE, numbers


@dataclass(frozen=True)
class Case:
    """A trainer, what differs from the base configuration, and its data."""

    name: str
    trainer: str  # BCO | PRM
    config: dict[str, Any] = field(default_factory=dict)
    rows: str = "unpaired"  # see `making.rows`; unpaired_chat
    model: str = "qwen2"
    lora: bool = False
    evaluate: bool = False
    reference: bool = False  # an explicit reference model with other weights
    bos: bool = False  # the tokenizer has a token that begins rows
    matched: bool = False  # prompts are embedded
    steps: int = 10
    uncompared: tuple[str, ...] = ()  # what TRL computes otherwise, as the case says


def stepwise(count: int, seed: int = 0) -> Dataset:
    """Prompts, one to four steps each, and whether each is right."""
    random = np.random.RandomState(seed)
    rows = []
    for _ in range(count):
        steps = [making.text(random, 3, 16) for _ in range(random.randint(1, 5))]
        labels = [bool(random.randint(3)) for _ in steps]
        rows.append({"prompt": making.text(random, 8, 30), "completions": steps, "labels": labels})
    return Dataset.from_list(rows)


def rows(case: Case, count: int, seed: int = 0) -> Dataset:
    """The case's rows."""
    if case.trainer == "PRM":
        return stepwise(count, seed)
    if case.rows != "unpaired_chat":
        return making.rows(case.rows, count, seed)
    plain = making.rows("unpaired", count, seed)
    return Dataset.from_list(
        [
            {
                "prompt": [making.turn("user", row["prompt"])],
                "completion": [making.turn("assistant", row["completion"])],
                "label": row["label"],
            }
            for row in plain
        ]
    )


def model(case: Case) -> transformers.PreTrainedModel:
    """A language model for BCO, a classifier of tokens with two labels for PRM."""
    return making.model(case.model, "tokens" if case.trainer == "PRM" else "lm")


TABLE = 0.7 * np.random.RandomState(3).standard_normal((80, 6)).astype(np.float32)


def embed(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, 6) sums of fixed vectors of the tokens, over the root of their number."""
    mask = attention_mask[..., None]
    total = (torch.from_numpy(TABLE)[input_ids] * mask).sum(1)
    return total / mask.sum(1).clamp(min=1).sqrt()


def tokenizer(case: Case) -> transformers.PreTrainedTokenizerFast:
    """One token per character."""
    made = making.tokenizer()
    if case.bos:
        made.bos_token = "<unk>"
    return made


def trainer_of(case: Case, library: Any, folder: str, **more: Any) -> Any:
    """The case's trainer, ready to train."""
    torch.manual_seed(0)
    arguments = {**BASE, "max_steps": case.steps, **case.config}
    arguments.update(more.pop("config", {}))
    given: dict[str, Any] = {"model": model(case), "train_dataset": rows(case, 48)}
    if case.reference:
        given["ref_model"] = model(case)
        for parameter in given["ref_model"].parameters():
            parameter.data.mul_(0.9)
    if case.lora:
        from peft import LoraConfig

        kind = "CAUSAL_LM" if case.trainer == "BCO" else "TOKEN_CLS"
        keywords = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        given["peft_config"] = LoraConfig(**keywords, lora_dropout=0.0, task_type=kind)
    if case.evaluate:
        given["eval_dataset"] = rows(case, 10, seed=1)
    if case.matched:
        given |= {"embedding_func": embed, "embedding_tokenizer": making.tokenizer()}
    made = getattr(library, f"{case.trainer}Trainer")(
        args=getattr(library, f"{case.trainer}Config")(folder, **arguments),
        processing_class=tokenizer(case),
        **given,
        **more,
    )
    for name, parameter in made.model.named_parameters():
        if "lora_A" in name or (case.lora and "modules_to_save" in name):
            drawn = np.random.RandomState(len(name)).standard_normal(tuple(parameter.shape))
            parameter.data.copy_(torch.from_numpy(0.08 * drawn))
    return made


def run(case: Case, library: Any) -> list[dict[str, float]]:
    """Train; one dict of numbers for each log."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_of(case, library, folder)
        trainer.train()
        return numbers(trainer.state.log_history)
