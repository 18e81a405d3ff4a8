"""`torch_compile=True`: losses as without it, and batches of new lengths compile nothing new."""

from __future__ import annotations

import random

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

import fastrl
from tests.legacy.error_parts import WORDS, Parts

STEPS = 6


class Graphs(TrainerCallback):
    """How many graphs had been compiled after each step."""

    def __init__(self):
        self.counts = []

    def on_step_end(self, args, state, control, **_):
        self.counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def losses(parts, rows, **compiled):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_hidden_layers=2, **shape))
    more = {"per_device_train_batch_size": 2, "max_steps": STEPS, "logging_steps": 1}
    args = parts.dpo_args(learning_rate=1e-2, save_strategy="no", **more, **compiled)
    graphs = Graphs()
    trainer = fastrl.DPOTrainer(
        model, args=args, train_dataset=rows, processing_class=parts.tokenizer, callbacks=[graphs]
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], graphs.counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ragged_pairs(tmp_path):
    random.seed(0)
    answer = lambda: " " + " ".join(random.choices(WORDS[2:], k=random.randint(2, 40)))  # noqa: E731
    made = [{"prompt": answer(), "chosen": answer(), "rejected": answer()} for _ in range(12)]
    parts, rows = Parts(tmp_path), Dataset.from_list(made)
    plain, none = losses(parts, rows)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found, graphs = losses(parts, rows, torch_compile=True, torch_compile_backend="eager")
    assert none == [0] * STEPS and len(set(plain)) == STEPS
    assert found == pytest.approx(plain, abs=1e-4)
    assert 0 < graphs[0] < graphs[1] and graphs[2] == graphs[-1], graphs
