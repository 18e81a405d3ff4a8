"""Tiny runs of every trainer, and what is to be seen of one."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from torch import nn

import fastrl
from tests.algos.bco_prm_parity.regression import regression
from tests.algos.bco_prm_parity.running import embed
from tests.algos.offline_parity import making

BASE: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "max_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
DRAWN = {"num_generations": 4, "max_completion_length": 6, "steps_per_generation": 1}
# Kind of trainer -> its trainer, its config, settings beside BASE.
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (fastrl.SFTTrainer, fastrl.SFTConfig, {}),
    "dpo": (fastrl.DPOTrainer, fastrl.DPOConfig, {}),
    "kto": (fastrl.KTOTrainer, fastrl.KTOConfig, {}),
    "reward": (fastrl.RewardTrainer, fastrl.RewardConfig, {}),
    "gkd": (fastrl.GKDTrainer, fastrl.GKDConfig, {"lmbda": 0.0, "max_new_tokens": 6}),
    "orpo": (fastrl.ORPOTrainer, fastrl.ORPOConfig, {}),
    "cpo": (fastrl.CPOTrainer, fastrl.CPOConfig, {}),
    "bco": (fastrl.BCOTrainer, fastrl.BCOConfig, {}),
    "prm": (fastrl.PRMTrainer, fastrl.PRMConfig, {}),
    "grpo": (fastrl.GRPOTrainer, fastrl.GRPOConfig, DRAWN),
    "rloo": (fastrl.RLOOTrainer, fastrl.RLOOConfig, DRAWN),
    "online_dpo": (fastrl.OnlineDPOTrainer, fastrl.OnlineDPOConfig, {"max_new_tokens": 6}),
    "nash_md": (fastrl.NashMDTrainer, fastrl.NashMDConfig, {"max_new_tokens": 6}),
    "xpo": (fastrl.XPOTrainer, fastrl.XPOConfig, {"max_new_tokens": 6}),
    "distillation": (
        fastrl.DistillationTrainer,
        fastrl.DistillationConfig,
        {"max_completion_length": 6},
    ),
    "ppo_train": (
        fastrl.PPOv2Trainer,
        fastrl.PPOTrainConfig,
        {"response_length": 6, "num_ppo_epochs": 2, "num_sample_generations": 0},
    ),
}
DRAWING = ("grpo", "rloo", "online_dpo", "nash_md", "xpo", "distillation")
_ROWS = {"sft": "completion", "dpo": "preference", "kto": "unpaired", "reward": "preference"}
_ROWS |= {"orpo": "preference", "cpo": "preference", "bco": "unpaired", "prm": "stepwise"}
_ROWS |= {"gkd": "messages"}
_ARCHITECTURES = {"reward": "score", "prm": "tokens"}
_CLOCK = ("runtime", "per_second", "step_time", "preparation_time", "eps")


def vowels(completions: list[Any], **_: Any) -> list[float]:
    """The share of vowels, from 0 to 1."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(letter in "aeiouAEIOU" for letter in text) / max(len(text), 1) for text in texts]


def letters(completions: list[Any], **columns: Any) -> list[float]:
    """Small letters, and one more where the dataset's column is given."""
    return [sum(map(str.islower, str(c))) + ("extra" in columns) for c in completions]


def nothing(completions: list[Any], **_: Any) -> list[float]:
    """The same for all answers."""
    return [0.0] * len(completions)


def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Answers of tokens that the prompt decides, as if another engine had drawn them."""
    tokenizer = trainer.processing_class
    ids = [
        [5 + (7 * i + len(p) + 11 * j) % 60 for i in range(j % 4 + 2)]
        for j, p in enumerate(prompts)
    ]
    logprobs = [[-4.0 + 0.3 * ((t % 7) - 3) for t in own] for own in ids]
    return {
        "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": ids,
        "logprobs": logprobs,
    }


def _model(kind: str, name: str, dropout: float, dtype: str | None) -> nn.Module:
    model = making.model(name, _ARCHITECTURES.get(kind, "lm"))
    if dropout:
        model.extra = nn.Dropout(dropout)
    return model if dtype is None else model.to(getattr(torch, dtype))


@cache
def rows(kind: str, count: int, seed: int, of: str | None) -> Dataset:
    """Training rows of the kind, or of another kind of dataset."""
    if kind in DRAWING and of is None:
        made = making.rows("completion", count, seed).select_columns(["prompt"])
        return made.add_column("extra", list(range(count)))
    return making.rows(of or _ROWS[kind], count, seed)


@cache
def folder() -> Path:
    """Models and templates on disk, made once."""
    place = Path(tempfile.mkdtemp())
    for name, architecture in (("policy", "lm"), ("judge", "score")):
        making.model("qwen2", architecture).save_pretrained(place / name)
        making.tokenizer().save_pretrained(place / name)
    (place / "other.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return place


def build(kind: str, output_dir: Path, settings: dict[str, Any]) -> Any:
    """A trainer. Settings that begin with `_` are no fields but say what it is made of.

    `_model` its family, `_dropout` a dropout in it, `_dtype` of its weights, `_by_name` the folder
    to load, `_template` of chats, `_rows` another kind of dataset, `_text` prompts as texts,
    `_rewards` "several" functions or a "dull" one, `_drawn` answers from outside, `_engine` taken
    for another engine's, `_apart` a reference of other weights, `_matched` prompts that
    are embedded.
    """
    own = {name: settings[name] for name in settings if name.startswith("_")}
    fields = {name: value for name, value in settings.items() if name not in own}
    trainer, config, more = KINDS[kind]
    args = config(str(output_dir), **{**BASE, **more, **fields})
    if kind == "ppo_train":
        return _ppo_train(args, own)
    parts: dict[str, Any] = {
        "train_dataset": rows(kind, 16, 0, own.get("_rows")),
        "eval_dataset": rows(kind, 2 if kind in DRAWING else 4, 1, own.get("_rows")),
        "processing_class": making.tokenizer(own.get("_template", making.CHATML)),
    }
    if kind in ("distillation", "gkd"):
        parts["teacher_model"] = None if "teacher_model_name_or_path" in fields else teacher()
    elif kind in DRAWING:
        parts["reward_funcs"] = {"several": [vowels, letters], "dull": nothing}.get(
            own.get("_rewards", ""), letters
        )
        if own.get("_drawn"):
            parts["rollout_func"] = rollout
    if kind == "online_dpo" and "reward_model_path" in fields:
        del parts["reward_funcs"]
    if own.get("_apart"):
        parts["ref_model"] = _scaled(making.model("qwen2"), 1.3)
    family, dropout = own.get("_model", "qwen2"), own.get("_dropout", 0.0)
    model = own.get("_by_name") or _model(kind, family, dropout, own.get("_dtype"))
    if own.get("_matched"):
        parts |= {"embedding_func": embed, "embedding_tokenizer": making.tokenizer()}
    with regression():
        made = trainer(model, args=args, **parts)
    if own.get("_engine"):
        made._corrects = args.vllm_importance_sampling_correction
    return made


def teacher() -> nn.Module:
    """One that is surer of itself than the student."""
    return _scaled(making.model("qwen2"), 1.5)


def _scaled(model: nn.Module, factor: float) -> nn.Module:
    for parameter in model.parameters():
        parameter.data.mul_(factor)
    return model


def _ppo_train(args: Any, own: dict[str, Any]) -> Any:
    random = torch.Generator().manual_seed(5)
    ids = [torch.randint(5, 75, (3 + i % 5,), generator=random).tolist() for i in range(24)]
    name = "prompt" if own.get("_text") else "input_ids"
    prompts = making.tokenizer().batch_decode(ids) if own.get("_text") else ids
    data = Dataset.from_dict({name: prompts})
    return fastrl.PPOTrainer(
        args=args,
        processing_class=making.tokenizer(),
        model=making.model("qwen2"),
        ref_model=_scaled(making.model("qwen2"), 1.1),
        reward_model=_scaled(making.model("qwen2", "score"), 1.5),
        value_model=making.model("qwen2", "score"),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
    )


@dataclass(frozen=True)
class Outcome:
    """What a user can see of a run."""

    log: list[dict[str, Any]]
    weights: list[float]
    batch: dict[str, Any]  # shapes of the first batch
    said: str  # printed, warned or logged
    files: list[str]
    facts: dict[str, Any]  # of tokenizer and model


def _watched(trainer: Any, shapes: dict[str, Any]) -> None:
    plain = trainer.training_step

    def step(model: Any, inputs: Any, *rest: Any, **keywords: Any) -> Any:
        if not shapes:
            shapes.update({n: tuple(v.shape) for n, v in inputs.items() if hasattr(v, "shape")})
        return plain(model, inputs, *rest, **keywords)

    trainer.training_step = step


def _facts(trainer: Any) -> dict[str, Any]:
    tokenizer = trainer.processing_class
    return {
        "pad": tokenizer.pad_token,
        "eos": tokenizer.eos_token,
        "template": tokenizer.chat_template,
        "dtype": str(next(trainer.model.parameters()).dtype),
        "columns": list(trainer.train_dataset.column_names or []),
        "rows": len(trainer.train_dataset),
        "checkpoints": any(
            getattr(module, name, False)
            for module in trainer.model.modules()
            for name in ("gradient_checkpointing", "activation_checkpointing")
        ),
        "dropout": [m.p for m in trainer.model.modules() if isinstance(m, nn.Dropout)],
        "run_name": trainer.args.run_name,
    }


@contextlib.contextmanager
def _heard() -> Any:
    """What fastrl prints, warns and logs inside."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("fastrl")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    fastrl.legacy._said.clear()
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(stream):
            warnings.simplefilter("always")
            yield stream
        stream.write("\n".join(str(one.message) for one in caught))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def uncollected() -> Any:
    """Inside, a trainer that begins to train does not collect the process's garbage: a second."""
    return patch("accelerate.utils.memory.gc", SimpleNamespace(collect=lambda: None))


def run(kind: str, settings: dict[str, Any]) -> Outcome:
    """Construct, train, evaluate."""
    shapes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, _heard() as heard, uncollected():
        trainer = build(kind, Path(place) / "out", settings)
        _watched(trainer, shapes)
        trainer.train()
        trainer.evaluate()
        files = sorted(str(p.relative_to(place)) for p in Path(place).rglob("*") if p.is_file())
    log = [
        {name: value for name, value in entry.items() if not name.endswith(_CLOCK)}
        for entry in trainer.state.log_history
    ]
    weights = [p.detach().double().abs().sum().item() for p in trainer.model.parameters()]
    return Outcome(log, weights, shapes, heard.getvalue(), files, _facts(trainer))


_known: dict[str, Outcome] = {}


def outcome(kind: str, settings: dict[str, Any]) -> Outcome:
    """As `run`, kept for the next that asks the same."""
    key = kind + json.dumps(settings, sort_keys=True, default=str)
    if key not in _known:
        _known[key] = run(kind, settings)
    return _known[key]
