"""Prompts, scripted completions and rewards that are the same for TRL and fastrl.

A completion is drawn by numpy from the optimizer step, the rank, the prompt and how often the
prompt occurred in the call, so it depends on neither library. Nothing here imports `trl`; what
fastrl needs to be fed by a script stands in `give_completions` and `claim_engine`.
"""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

from tests.algos.offline_parity.making import COMMON, _fill, model, text, tokenizer, turn

EOS = 1
LETTERS = (5, 75)
LONGEST = 12


def prompts(count: int, chat: bool, seed: int = 0) -> Dataset:
    """Ragged prompts, each with its `number` in a column of its own for the rewards."""
    random = np.random.RandomState(seed)
    texts = [f"{text(random, 4, 20)}{number}|" for number in range(count)]
    return Dataset.from_list(
        [
            {"prompt": [turn("user", words)] if chat else words, "number": number + 100 * seed}
            for number, words in enumerate(texts)
        ]
    )


def saved_model(folder: Path, kind: str) -> Path:
    """Where the tiny model lies: a trainer reads its reference from there.

    Of several ranks the first writes, so `folder` is one folder of them all.
    """
    place = folder / "tiny"
    model(kind).save_pretrained(place)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return place


def teacher(kind: str) -> transformers.PreTrainedModel:
    """A model that is surer of itself than the student; kind: wide, granite, gemma2, like.

    Its states are wider than a student's; granite scales its logits, gemma2 caps them.
    """
    sizes = {**COMMON, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}
    if kind == "granite":
        config: Any = transformers.GraniteConfig(**sizes, logits_scaling=0.25)
    elif kind == "gemma2":
        config = transformers.Gemma2Config(**sizes, head_dim=12, final_logit_softcapping=1.5)
    elif kind == "like":
        config = model("qwen2").config
    else:
        config = transformers.Qwen2Config(**sizes, tie_word_embeddings=False)
    made = transformers.AutoModelForCausalLM.from_config(config)
    _fill(made, 0.25)
    return made


def fill_adapters(policy: torch.nn.Module) -> None:
    """Weights by name for every trained adapter, second factor included: no KL starts at 0."""
    for name, parameter in policy.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            random = np.random.RandomState(zlib.crc32(name[name.index("layers.") :].encode()))
            values = random.standard_normal(tuple(parameter.shape)).astype(np.float32) * 0.1
            parameter.data.copy_(torch.from_numpy(values))


class Script:
    """Answers to prompts, and which prompts were asked for.

    Attributes:
        asked: for each call, the numbers of its prompts in order.
    """

    def __init__(self, rows: list[Dataset], options: frozenset[str]) -> None:
        self.tokenizer = tokenizer()
        self.options = options
        self.asked: list[list[int]] = []
        self._number = {
            tuple(self._encoded(row["prompt"])): row["number"] for part in rows for row in part
        }

    def _encoded(self, prompt: str | list[dict[str, str]]) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        return self.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def rollout(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`; `options` say which of its fields are given."""
        prompt_ids = [self._encoded(prompt) for prompt in prompts]
        completions, logps = self.answers(prompt_ids, trainer)
        output: dict[str, Any] = {
            "prompt_ids": prompt_ids,
            "completion_ids": completions,
            "logprobs": logps if {"logps", "holes"} & self.options else None,
        }
        if "luck" in self.options:
            output["luck"] = [(sum(ids) % 3) / 4 for ids in completions]
        if "env_mask" in self.options:
            output["env_mask"] = [
                [int(i in (0, len(ids) - 1) or token % 4 != 0) for i, token in enumerate(ids)]
                for ids in completions
            ]
        return output

    def answers(
        self, prompt_ids: list[list[int]], trainer: Any
    ) -> tuple[list[list[int]], list[list[float | None]]]:
        """Completions of 1 to `LONGEST` tokens, some ended by EOS, and log-probabilities."""
        seen: Counter[tuple[int, ...]] = Counter()
        place = (trainer.state.global_step, trainer.accelerator.process_index)
        completions, logps = [], []
        for ids in map(tuple, prompt_ids):
            seed = zlib.crc32(repr((*place, seen[ids], ids)).encode())
            seen[ids] += 1
            completion, logp = self._answer(np.random.RandomState(seed))
            completions.append(completion)
            logps.append(logp)
        self.asked.append([self._number[tuple(ids)] for ids in prompt_ids])
        return completions, logps

    def _answer(self, random: np.random.RandomState) -> tuple[list[int], list[float | None]]:
        length = random.randint(1, LONGEST + 1)
        completion = random.randint(*LETTERS, length).tolist()
        if random.rand() < 0.6:
            completion[-1] = EOS
        noise = random.standard_normal(length)
        # Near what a fresh model gives, which is nearly indifferent between its 80 tokens.
        logp = [float(x) for x in -4.4 + 0.3 * noise]
        holes = "holes" in self.options
        return completion, [None if holes and random.rand() < 0.1 else x for x in logp]


def spelling(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
    """Something of the ids and of a column; roots, so that none is the mean of some others."""
    return [
        ((31 * sum(ids) + 7 * n) % 17) ** 0.5 / 4
        for ids, n in zip(completion_ids, number, strict=True)
    ]


def brevity(
    completions: list[Any], completion_ids: list[list[int]], **_: Any
) -> list[float | None]:
    """Something of the decoded text; some rows it cannot judge: None, or NaN."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    assert all(isinstance(words, str) for words in texts)
    scores: list[float | None] = [1.0 - len(words) / LONGEST for words in texts]
    for i, ids in enumerate(completion_ids):
        if sum(ids) % 5 < 2:
            scores[i] = (None, float("nan"))[sum(ids) % 5]
    return scores


def luckiness(luck: list[float], log_metric: Any, log_extra: Any, **_: Any) -> list[float]:
    """A field that the rollout gave; reports a metric and a column of its own."""
    log_metric("luckiness/highest", max(luck))
    log_extra("luck", luck)
    return luck


async def slowness(completion_ids: list[list[int]], trainer_state: Any, **_: Any) -> list[float]:
    """Awaited; depends on the trainer's step."""
    return [(len(ids) + trainer_state.global_step) % 5 / 4 for ids in completion_ids]


def judge(folder: Path) -> transformers.PreTrainedModel:
    """A reward model, called `judge` in the logs."""
    made = model("llama", "score")
    made.save_pretrained(folder / "judge")
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(folder / "judge", dtype=torch.float32)


REWARDS = {f.__name__: f for f in (spelling, brevity, luckiness, slowness)}


def give_completions(trainer: Any, script: Script) -> None:
    """Make a trainer of fastrl's answer by `script.answers(prompt_ids, trainer)[0]`."""
    from fastrl.rollout import Completion

    def complete(prompts: list[list[int]], room: object = None) -> list[Completion]:
        answers = script.answers(prompts, trainer)[0]
        return [Completion(tuple(ids), None, None, "length") for ids in answers]

    trainer._collecting._drawing.complete = complete


def claim_engine(trainer: Any) -> None:
    """Make fastrl's GRPO trainer treat a rollout's log-probabilities as a vLLM engine's."""
    trainer._corrects = trainer.args.vllm_importance_sampling_correction
