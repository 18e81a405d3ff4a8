"""`PPOTrainer.step` of `trl` (0.7.11) or `fastrl`: the same arguments, weights and rows.

    python ppo_step.py trl|fastrl        then requests on standard input, see protocol.py

Memory: `above_bytes` is the high-water mark of resident memory during the step, less what was
resident when model, reference and trainer stood, less the bytes of the optimizer's state (which
torch allocates in the first step and keeps).
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import protocol
import torch
import transformers

BATCH = 32
PROMPT, ANSWER = (16, 64), (16, 256)  # least and most tokens, both included
COMPARED = ("ppo/loss/total", "ppo/policy/entropy", "ppo/mean_scores", "objective/entropy")
COUNTED = ("tokens/queries_len_mean", "tokens/responses_len_mean")


def tokenizer(vocab: int) -> transformers.PreTrainedTokenizerFast:
    """One word per id, made in memory; id 0 pads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"<pad>": 0, "<unk>": 1, **{f"w{i}": i for i in range(2, vocab)}}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        unk_token="<unk>",
    )


def model(library: Any, vocab: int) -> torch.nn.Module:
    """GPT-2 of 4 layers × 256 with a value head, filled from numpy by parameter name."""
    config = transformers.GPT2Config(vocab_size=vocab, n_embd=256, n_layer=4, n_head=4)
    wrapped = library.AutoModelForCausalLMWithValueHead.from_pretrained(
        transformers.GPT2LMHeadModel(config)
    )
    fill(wrapped)
    return wrapped


@torch.no_grad()
def fill(module: torch.nn.Module) -> None:
    """Matrices drawn from the hash of their names, biases 0: equal in every process."""
    for name, parameter in module.named_parameters():
        rng = np.random.default_rng(zlib.crc32(name.removeprefix("pretrained_model.").encode()))
        if parameter.dim() > 1:
            value = 0.02 * rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
            parameter.copy_(torch.from_numpy(value))
        elif name.endswith("bias"):
            parameter.zero_()


def rows(seed: int, number: int, vocab: int) -> tuple[list, list, list]:
    """Queries, responses and scores of a round: lengths uniform within their bounds."""
    rng = np.random.default_rng([seed, number])

    def ids(bounds: tuple[int, int]) -> torch.Tensor:
        length = int(rng.integers(bounds[0], bounds[1] + 1))
        return torch.from_numpy(rng.integers(2, vocab, size=length))

    queries = [ids(PROMPT) for _ in range(BATCH)]
    responses = [ids(ANSWER) for _ in range(BATCH)]
    return queries, responses, [torch.tensor(float(s)) for s in rng.normal(size=BATCH)]


def setup(request: dict[str, Any]) -> protocol.Round:
    """Build the trainer; a round is one step on rows drawn from (seed, round)."""
    library = protocol.begin(request)
    vocab = request["vocab"]
    config = library.PPOConfig(batch_size=BATCH, mini_batch_size=8, ppo_epochs=4)
    trainer = library.PPOTrainer(config, model(library, vocab), None, tokenizer(vocab))
    standing = protocol.resident_bytes()

    def run(number: int) -> dict[str, Any]:
        queries, responses, scores = rows(request["seed"], number, vocab)
        protocol.reset_peak()
        seconds, stats = protocol.timed(lambda: trainer.step(queries, responses, scores))
        peak = protocol.peak_bytes()
        state = optimizer_bytes(trainer.optimizer)
        numbers = {key: float(stats[key]) for key in COMPARED + COUNTED}
        return {
            "seconds": seconds,
            "above_bytes": peak - standing - state,
            "standing_bytes": standing + state,
            "numbers": numbers,
        }

    return run


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state tensors."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


if __name__ == "__main__":
    protocol.serve(setup)
