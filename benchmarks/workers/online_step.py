"""Optimizer steps of online trainers in `trl` or `fastrl`, or generation alone.

    python online_step.py trl|fastrl        then requests on standard input, see protocol.py

A step is 4 prompts of 8 completions, 8 rows × 4 accumulated. Where completions are given, a rollout
function hands both sides the same ones, of geometric lengths; where they are drawn, the model's
weights give the end of a sequence a chance of about 1 / `MEAN` at every token. Memory is counted as
in offline_step.py.

A step of distillation is as many answers, each to a prompt of its own, and a teacher twice as wide.
One of Nash-MD or XPO (TRL 0.28) has an answer of the policy to each prompt and one of the mixture
or the reference, judged by a reward model of the policy's size; `PAIRED` has their numbers.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import protocol
import torch
import transformers
from datasets import Dataset
from offline_step import APART, Held, model, tokenizer
from ppo_step import optimizer_bytes

ROWS, ACCUMULATION, GROUP = 8, 4, 8
PROMPTS = ROWS * ACCUMULATION // GROUP  # of a step
MEAN, MOST = 96, 256  # tokens of a completion
# Two answers to each prompt: prompts at a time, accumulated, and most tokens of an answer.
PAIRED = {"NashMD": (4, 2, 32), "XPO": (8, 2, 64)}
SHORT, LONG = (32, 128), (512, 512)  # least and most tokens of a prompt, both included

# case -> trainer, tokens of a prompt, whether completions are given
CASES: dict[str, tuple[str, tuple[int, int], bool]] = {
    "grpo_given": ("GRPO", SHORT, True),
    "grpo_given_long": ("GRPO", LONG, True),
    "grpo": ("GRPO", SHORT, False),
    "rloo": ("RLOO", SHORT, False),
    "distillation_given": ("Distillation", SHORT, True),
    "distillation": ("Distillation", SHORT, False),
    "nash_md": ("NashMD", SHORT, False),
    "xpo": ("XPO", SHORT, False),
    "generation": ("GRPO", SHORT, False),
}


def ending(policy: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model with p(end) ≈ 1 / `MEAN` at each token, whatever came before.

    Channel 0 of the residual stream is made a constant, which only the last norm and the head see:
    no layer reads or writes it. The row of the end token has more of it than the others.
    """
    backbone: Any = policy.model
    constant = 2.0
    with torch.no_grad():
        embedding = backbone.embed_tokens.weight
        embedding[:, 0] = constant
        for layer in backbone.layers:
            layer.input_layernorm.weight[0] = 0
            layer.post_attention_layernorm.weight[0] = 0
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        vocab, width = embedding.shape
        # The norm makes it almost sqrt(width), as it outweighs the other channels.
        embedding[policy.config.eos_token_id, 0] += math.log(vocab / (MEAN - 1)) / math.sqrt(width)
    return policy


def prompt_rows(bounds: tuple[int, int], count: int, seed: int, vocab: int) -> list[list[int]]:
    """`count` prompts of uniform ids; lengths uniform within their bounds."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(bounds[0], bounds[1] + 1, size=count)
    return [rng.integers(2, vocab, size=n).tolist() for n in lengths]


def text(ids: list[int]) -> str:
    """Ids as the tokenizer's words."""
    return " ".join(f"w{i}" for i in ids)


def given(words: transformers.PreTrainedTokenizerFast, seed: int) -> Callable[..., dict[str, Any]]:
    """A rollout function whose completions depend on the prompt and their number in its group."""
    vocab = len(words)

    def completion(prompt: str, number: int) -> list[int]:
        rng = np.random.default_rng([seed, zlib.crc32(prompt.encode()), number])
        length = int(rng.geometric(1 / MEAN))
        ids = rng.integers(2, vocab, size=min(length, MOST)).tolist()
        return [*ids[:-1], words.eos_token_id] if length <= MOST else ids

    def rollout(prompts: list[str], trainer: Any, **_: Any) -> dict[str, Any]:
        return {
            "prompt_ids": words(prompts)["input_ids"],
            "completion_ids": [completion(one, i % GROUP) for i, one in enumerate(prompts)],
            "logprobs": None,
        }

    return rollout


def score(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that costs nothing and differs within a group."""
    return [float(sum(ids) % 11) for ids in completion_ids]


def give(trainer: Any, answers: Callable[..., dict[str, Any]]) -> None:
    """Put given completions in the place of the engine's, in a trainer without a rollout function.

    Both sides ask by ids, each of which is a word.
    """

    def drawn(prompts: list[list[int]], *_: Any) -> list[list[int]]:
        return answers([text(ids) for ids in prompts], trainer)["completion_ids"]

    if sys.argv[1] == "trl":
        trainer._generate_single_turn = drawn
        return
    from fastrl.rollout import Completion

    trainer._collecting._drawing.complete = lambda prompts, room=None: [
        Completion(tuple(ids), None, None, "length") for ids in drawn(prompts)
    ]


def judged(
    name: str, vocab: int, folder: str, words: transformers.PreTrainedTokenizerFast
) -> dict[str, Any]:
    """What the trainer learns from."""
    if name == "Distillation":
        return {"teacher_model": model(name, vocab, f"{folder}/teacher", width=512)}
    if name in PAIRED:
        judge = {"reward_funcs": model("Reward", vocab, f"{folder}/reward")}
        if name == "NashMD" and sys.argv[1] == "trl":  # which judges by ids
            return judge
        return {**judge, "reward_processing_classes": words}
    return {"reward_funcs": score}


def sizes(name: str) -> tuple[dict[str, Any], int]:
    """What the trainer's configuration says of batches and lengths, and the prompts of a step."""
    if name in PAIRED:
        rows, accumulation, most = PAIRED[name]
        batches = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": accumulation,
        }
        return {**batches, "max_new_tokens": most}, rows * accumulation
    settings = {
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_completion_length": MOST,
    }
    if name == "Distillation":
        return settings, PROMPTS * GROUP
    return {**settings, "num_generations": GROUP}, PROMPTS


def build(library: Any, request: dict[str, Any], folder: str) -> Any:
    """The case's trainer."""
    name, bounds, is_given = CASES[request["case"]]
    vocab, steps, seed = request["vocab"], request["steps"], request["seed"]
    alone = name == "Distillation"
    settings, count = sizes(name)
    arguments = getattr(library, f"{name}Config")(
        folder,
        max_steps=steps,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    words = tokenizer(vocab)
    rows = prompt_rows(bounds, count * steps, seed, vocab)
    trainer = getattr(library, f"{name}Trainer")(
        ending(model(name, vocab, f"{folder}/model")),
        **judged(name, vocab, folder, words),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [text(ids) for ids in rows]}),
        processing_class=words,
        **({"rollout_func": given(words, seed)} if is_given and not alone else {}),
    )
    if is_given and alone:
        give(trainer, given(words, seed))
    return trainer


def completion_lengths(trainer: Any, rows: list[list[int]], number: int) -> list[int]:
    """Draw `GROUP` completions of each prompt by the library's own means; their lengths."""
    if sys.argv[1] == "fastrl":
        from fastrl.rollout import generate

        rollouts = generate(
            trainer.model,
            trainer.processing_class,
            rows,
            num_return_sequences=GROUP,
            max_new_tokens=MOST,
            seed=number,
        )
        return [len(one.token_ids) for rollout in rollouts for one in rollout.completions]
    repeated = [ids for ids in rows for _ in range(GROUP)]
    ids, _ = trainer._generate_single_turn(repeated, None, {}, GROUP)
    return [len(one) for one in ids]


def generation(trainer: Any, request: dict[str, Any]) -> Callable[[int], dict[str, Any]]:
    """A round draws the completions of `PROMPTS` prompts, without a step."""
    bounds = CASES[request["case"]][1]
    count = PROMPTS * request["steps"]
    rows = prompt_rows(bounds, count, request["seed"], request["vocab"])
    torch.manual_seed(request["seed"])

    def run(number: int) -> dict[str, Any]:
        mine = rows[number * PROMPTS : (number + 1) * PROMPTS]
        protocol.reset_peak()
        cpu = time.process_time()
        seconds, lengths = protocol.timed(lambda: completion_lengths(trainer, mine, number))
        return {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "peak_bytes": protocol.peak_bytes(),
            "numbers": {
                "completions/mean_length": sum(lengths) / len(lengths),
                "completions/max_length": float(max(lengths)),
            },
        }

    return run


def setup(request: dict[str, Any]) -> protocol.Round:
    """Build the trainer; a round is one optimizer step of its run, or one generation."""
    library = protocol.begin(request, APART.get(CASES[request["case"]][0]))
    folder = tempfile.TemporaryDirectory()
    trainer = build(library, request, folder.name)
    alone = request["case"] == "generation"
    held = None if alone else Held(trainer, request["threads"])
    draw = generation(trainer, request) if alone else None
    standing = protocol.resident_bytes()

    def run(number: int, folder: Any = folder) -> dict[str, Any]:
        measured = draw(number) if draw else held.step()
        state = 0 if draw else optimizer_bytes(trainer.optimizer)
        above = measured.pop("peak_bytes") - standing - state
        return {**measured, "above_bytes": above, "standing_bytes": standing + state}

    return run


if __name__ == "__main__":
    protocol.serve(setup)
