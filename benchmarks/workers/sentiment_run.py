"""An iteration of the sentiment run in `trl` (0.7.11) or `fastrl`, in the calls of the guide.

    python sentiment_run.py trl|fastrl        then requests on standard input, see protocol.py

Prompts of a few tokens; responses of the policy and, for the table that is logged, of the
reference; a classifier's logit for each text; the PPO step; the log. Both sides have equal weights
and prompts. The first round takes the likeliest tokens, so that both must find the same; later ones
are sampled. Memory is counted as in ppo_step.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import ppo_step
import protocol
import torch
import transformers

PROMPT = (2, 7)  # least and most tokens, both included
NEW_TOKENS = 32
COMPARED = (*ppo_step.COMPARED, "objective/kl")


def tokenizer(vocab: int) -> transformers.PreTrainedTokenizerFast:
    """One word per id; the end of a sequence pads too, as GPT-2's does in the guide."""
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ppo_step.tokenizer(vocab)
    words.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    words.eos_token = words.pad_token
    words.model_input_names = ["input_ids", "attention_mask"]
    return words


def policy(library: Any, words: transformers.PreTrainedTokenizerFast) -> torch.nn.Module:
    """The model of ppo_step.py as if loaded, which ends a response once in `vocab` tokens."""
    wrapped = ppo_step.model(library, len(words))
    for config in (wrapped.pretrained_model.config, wrapped.pretrained_model.generation_config):
        config.bos_token_id = config.eos_token_id = words.eos_token_id
    return wrapped.eval()


def classifier(words: transformers.PreTrainedTokenizerFast) -> Callable[..., Any]:
    """A pipeline around a DistilBERT of 2 layers × 64 with random weights."""
    config = transformers.DistilBertConfig(
        vocab_size=len(words),
        dim=64,
        hidden_dim=128,
        n_layers=2,
        n_heads=2,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
        pad_token_id=words.pad_token_id,
    )
    model = transformers.DistilBertForSequenceClassification(config).eval()
    ppo_step.fill(model)
    return transformers.pipeline("text-classification", model=model, tokenizer=words, device="cpu")


def prompts(request: dict[str, Any], number: int) -> list[torch.Tensor]:
    """A round's prompts of uniform ids; lengths uniform within their bounds."""
    rng = np.random.default_rng([request["seed"], number])
    lengths = rng.integers(PROMPT[0], PROMPT[1] + 1, size=request["rows"])
    return [torch.from_numpy(rng.integers(2, request["vocab"], size=n)) for n in lengths]


def scores(pipe: Callable[..., Any], texts: list[str]) -> list[torch.Tensor]:
    """The classifier's logit for "positive" of each text."""
    found = pipe(texts, top_k=None, function_to_apply="none", batch_size=16)
    return [
        torch.tensor(next(one["score"] for one in labels if one["label"] == "POSITIVE"))
        for labels in found
    ]


def setup(request: dict[str, Any]) -> protocol.Round:
    """Build trainer and classifier; a round is an iteration on prompts drawn from (seed, round)."""
    library = protocol.begin(request)
    words = tokenizer(request["vocab"])
    sizes = {"batch_size": request["rows"], "mini_batch_size": request["rows"]}
    config = library.PPOConfig(**sizes, learning_rate=1.41e-5, target_kl=6.0)
    trainer = library.PPOTrainer(config, policy(library, words), None, words)
    pipe = classifier(words)
    generation = {
        "min_length": -1,
        "top_k": 0.0,
        "top_p": 1.0,
        "do_sample": True,
        "pad_token_id": words.eos_token_id,
        "max_new_tokens": NEW_TOKENS,
    }
    if request.get("at_a_time"):
        generation["batch_size"] = request["at_a_time"]
    standing = protocol.resident_bytes()

    def iteration(queries: list[torch.Tensor], sampled: bool) -> tuple[dict[str, Any], list]:
        batch: dict[str, Any] = {"query": words.batch_decode(queries)}
        given = generation | {"do_sample": sampled}
        responses, from_reference = trainer.generate(
            queries, return_prompt=False, generate_ref_response=True, **given
        )
        rewards = {}
        for key, rows in (("response", responses), ("ref_response", from_reference)):
            batch[key] = words.batch_decode(rows)
            texts = [f"{q} {r}" for q, r in zip(batch["query"], batch[key])]  # noqa: B905
            rewards[key] = scores(pipe, texts)
        batch["ref_rewards"] = rewards["ref_response"]
        stats = trainer.step(queries, responses, rewards["response"])
        columns = ["query", "response", "ref_response", "ref_rewards"]
        trainer.log_stats(stats, batch, rewards["response"], columns_to_log=columns)
        return stats, responses

    def run(number: int) -> dict[str, Any]:
        queries = prompts(request, number)
        protocol.reset_peak()
        seconds, (stats, responses) = protocol.timed(lambda: iteration(queries, number > 0))
        peak = protocol.peak_bytes()
        state = ppo_step.optimizer_bytes(trainer.optimizer)
        return {
            "seconds": seconds,
            "above_bytes": peak - standing - state,
            "standing_bytes": standing + state,
            "numbers": {key: float(stats[key]) for key in COMPARED + ppo_step.COUNTED},
            "responses": [row.tolist() for row in responses] if number == 0 else [],
        }

    return run


if __name__ == "__main__":
    protocol.serve(setup)
