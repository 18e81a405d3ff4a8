"""Small runs of `IterativeSFTTrainer.step` that are the same with TRL 0.7.11 and with fastrl.

Models are filled by parameter name and rows drawn by seed, as for PPO (ppo_parity.running). Dropout
is off, as it would be drawn for other shapes where no padding is computed.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from ppo_parity.running import VOCAB, fill, make_tokenizer, tiny_config

CALLS = 3
ROWS = 7
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout_rate", "attention_dropout")
MODELS = {
    "gpt2": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
    "t5": transformers.T5ForConditionalGeneration,
}


@dataclass(frozen=True)
class Case:
    """One run. `args` go into TrainingArguments over the base below, `init` to the trainer."""

    name: str
    model: str = "llama"
    args: dict[str, Any] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)
    texts: bool = False
    sgd: bool = False  # SGD and ExponentialLR of the user's own


BASE = {
    "per_device_train_batch_size": 2,
    "learning_rate": 5e-3,
    "max_steps": 20,
    "logging_steps": 5,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 5,
}
CASES = [
    Case("gpt2", "gpt2"),
    Case("llama_texts_keep_end", init={"max_length": 8}, texts=True),
    Case(
        "llama_texts_keep_start",
        init={"max_length": 8, "truncation_mode": "keep_start"},
        texts=True,
    ),
    Case("accumulation", "gpt2", {"gradient_accumulation_steps": 3, "max_grad_norm": 0.5}),
    Case("warm_up_and_decay", args={"warmup_steps": 3, "weight_decay": 0.1}),
    Case("own_optimizer", args={"max_steps": -1}, sgd=True),
    Case("t5", "t5"),
]


def rows(case: Case, call: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs and labels of one call; labels are the inputs but for T5."""
    rng = np.random.default_rng([31, call])

    def ids(low: int, high: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(3, VOCAB, size=int(rng.integers(low, high))))

    inputs = [ids(3, 14) for _ in range(ROWS)]
    return inputs, [ids(2, 7) for _ in range(ROWS)] if case.model == "t5" else inputs


def run_case(case: Case, library: ModuleType) -> dict[str, Any]:
    """Losses of all batches, the log, and torch's next random number."""
    config = tiny_config(case.model)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = MODELS[case.model](config)
    fill(model, 1)
    tokenizer = make_tokenizer("right")
    losses: list[float] = []

    class Watched(library.IterativeSFTTrainer):
        def compute_loss(self, model, inputs):
            loss = super().compute_loss(model, inputs)
            losses.append(loss.item())
            return loss

    init = dict(case.init)
    if case.sgd:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        init["optimizers"] = (optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8))
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(folder, **{**BASE, **case.args})
        trainer = Watched(model=model, args=args, tokenizer=tokenizer, **init)
        for call in range(CALLS):
            inputs, labels = rows(case, call)
            if case.texts:
                trainer.step(texts=[" ".join(f"w{i}" for i in row.tolist()) for row in inputs])
            else:
                trainer.step(input_ids=inputs, labels=labels)
    keys = ("step", "loss", "learning_rate")
    log = [{key: line[key] for key in keys} for line in trainer.state.log_history]
    return {"losses": losses, "log": log, "draw": float(torch.rand(()))}
