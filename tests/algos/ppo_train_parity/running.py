"""One run of a case, with `trl` or with `fastrl`: what it logs of each batch, and where it ends.

The policy's `generate` is a script: what it answers depends on the prompt and on how often that
has been asked, so both libraries learn from the same responses.
"""

from __future__ import annotations

import os
import tempfile
import warnings
import zlib
from collections import defaultdict
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from tests.algos.offline_parity import making
from tests.algos.ppo_train_parity.cases import Case

BATCHES = 5
LENGTH = 7  # response tokens at most
PAD, EOS = 0, 1

BASE: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 2,
    "num_sample_generations": 0,
    "response_length": LENGTH,
    "temperature": 0.7,
    "kl_coef": 0.2,
    "learning_rate": 1e-3,
    "optim": "adamw_torch",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 7,
}
# Wall-clock figures, and what only one side logs.
UNCOMPARED = ("eps", "epoch", "step", "loss", "grad_norm", "learning_rate", "num_tokens")


def rows_of_a_batch(case: Case) -> int:
    """Prompts that a process answers at once."""
    config = {**BASE, **case.config}
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches")
    return int(np.prod([config.get(name, 1) for name in names]))


def prompts(count: int) -> list[list[int]]:
    """Ragged prompts, no two alike, without special tokens."""
    random = np.random.RandomState(11)
    return [[*random.randint(5, 80, random.randint(3, 9)).tolist(), 5 + i] for i in range(count)]


class Script:
    """The policy's `generate`."""

    def __init__(self, case: Case, policy: Any) -> None:
        self.case = case
        self.policy = policy
        self.asked: dict[tuple[int, ...], int] = defaultdict(int)
        self.order: list[list[int]] = []

    def response(self, prompt: tuple[int, ...]) -> list[int]:
        """The next response to a prompt, up to LENGTH tokens, its ending included."""
        number, self.asked[prompt] = self.asked[prompt], self.asked[prompt] + 1
        random = np.random.RandomState(zlib.crc32(str((prompt, number)).encode()))
        ids = random.randint(5, 80, LENGTH).tolist()
        at = random.randint(1, self.case.reach)
        if self.case.ends == "never" or at >= LENGTH:
            return ids
        if self.case.ends == "eos":
            return [*ids[:at], EOS]
        ids[at] = PAD  # drawn, so that sampling goes on after it
        return ids

    def __call__(
        self, input_ids: Any, attention_mask: Any, generation_config: Any, **keywords: Any
    ) -> Any:
        asked = [
            tuple(row[mask.bool()].tolist())
            for row, mask in zip(input_ids, attention_mask, strict=True)
        ]
        self.order += map(list, asked)
        found = [self.response(prompt) for prompt in asked]
        width = max(map(len, found))
        fill = EOS if self.case.eos_pads else PAD
        table = torch.tensor([ids + [fill] * (width - len(ids)) for ids in found])
        sequences = torch.cat([input_ids, table], 1)
        if not keywords.get("return_dict_in_generate"):
            return sequences
        logits = self.logits(sequences, attention_mask, table != fill)
        scores = logits[:, -width - 1 : -1].float() / generation_config.temperature
        return SimpleNamespace(sequences=sequences, scores=tuple(scores.unbind(1)))

    @torch.no_grad()
    def logits(self, sequences: Any, prompt_mask: Any, response_mask: Any) -> Any:
        """(B, T, V) of whole rows, as generation with kept keys gives them."""
        mask = torch.cat([prompt_mask.bool(), response_mask], 1).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return self.policy(sequences, attention_mask=mask, position_ids=positions).logits


def fill_adapters(policy: torch.nn.Module) -> None:
    """The same start of the adapters on either side; B stays 0."""
    for name, parameter in policy.named_parameters():
        if "lora_A" in name:
            random = np.random.RandomState(zlib.crc32(name.encode()))
            parameter.data.copy_(torch.from_numpy(random.standard_normal(parameter.shape) * 0.2))


def movement(before: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, float]:
    """How far trained weights have gone, and how far along fixed random directions."""
    squares, along = 0.0, 0.0
    for name, parameter in sorted(model.named_parameters()):
        gone = (parameter.detach() - before[name]).double().numpy()
        random = np.random.RandomState(zlib.crc32(name.encode()))
        squares += float((gone**2).sum())
        along += float((gone * random.standard_normal(gone.shape)).sum())
    return {"distance": squares**0.5, "along": along}


def parts(case: Case) -> dict[str, Any]:
    """Tokenizer and models; the reference and both scorers have weights of their own."""
    tokenizer = making.tokenizer()
    tokenizer.padding_side = "left"
    if case.eos_pads:
        tokenizer.pad_token = tokenizer.eos_token
    found = {
        "processing_class": tokenizer,
        "model": making.model(case.model),
        "ref_model": None if case.lora else making.model(case.model),
        "reward_model": making.model(case.model, "score"),
        "value_model": making.model(case.model, "score"),
    }
    scales = {"ref_model": 0.9, "reward_model": 1.5}
    for role, scale in scales.items():
        for parameter in found[role].parameters() if found[role] is not None else ():
            parameter.data.mul_(scale)
    if case.eos_pads:
        for role in ("model", "ref_model", "reward_model", "value_model"):
            found[role].config.pad_token_id = EOS
    if case.lora:
        from peft import LoraConfig

        found["peft_config"] = LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=0.0,
            target_modules=["q_proj", "v_proj", "up_proj"],
            task_type="CAUSAL_LM",
        )
    return found


def config_of(case: Case, library: ModuleType, folder: str) -> Any:
    """The case's configuration, long enough for BATCHES batches."""
    episodes = BATCHES * rows_of_a_batch(case) * int(os.environ.get("WORLD_SIZE", "1"))
    return library.PPOConfig(output_dir=folder, total_episodes=episodes, **{**BASE, **case.config})


def run(
    case: Case, library: ModuleType, rows: list[list[int]], prepare: Any = lambda trainer: None
) -> dict[str, Any]:
    """Train on prompts; the log of each batch, the prompts in the order they were asked, the end.

    Args:
        prepare: is given the trainer before it trains.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Dataset.from_dict({"input_ids": rows})
        trainer = library.PPOTrainer(
            args=config_of(case, library, folder),
            train_dataset=data,
            eval_dataset=data,
            **parts(case),
        )
        models = trainer.accelerator.unwrap_model(trainer.model)
        policy, value_model = models.policy, models.value_model
        if case.lora:
            fill_adapters(policy)
        script = Script(case, policy)
        policy.generate = script
        prepare(trainer)
        roles = {"policy": policy, "value": value_model}
        before = {
            role: {name: p.detach().clone() for name, p in model.named_parameters()}
            for role, model in roles.items()
        }
        np.random.seed(3)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
        ends = {role: movement(before[role], model) for role, model in roles.items()}
    kept = [{k: v for k, v in entry.items() if k not in UNCOMPARED} for entry in logs]
    return {"logs": kept, "order": script.order, "ends": ends}
