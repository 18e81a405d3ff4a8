"""The fields that configs have from `transformers.TrainingArguments`: nothing here bypasses them.

transformers proves that it acts on a field where it reads it. So: a value that is given arrives or
is refused; what transformers' own trainer reads in a run, ours reads too; and a method of ours that
takes the place of one of transformers' without calling it reads what that one read.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import os
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import transformers
from accelerate import ParallelismConfig
from datasets import Dataset
from transformers import TrainingArguments

import fastrl
from tests.algos.offline_parity import making
from tests.customisation import runs

NAMES = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init}
ROOT = Path(transformers.__file__).parent

# Fields that only scripts read, transformers' and ours (`fastrl.cli.training.fit`).
FOR_SCRIPTS = {"do_train", "do_predict", "resume_from_checkpoint", "local_rank"}
# Field -> why a trainer of ours needs no look at it where transformers takes one.
NEEDLESS = {
    "use_liger_kernel": "prediction_step would drop what Liger's loss leaves out; it is not used",
}
# With transformers' losses the labels of a step divide; here only SFT's loss is so, and the others
# say that they are not: `test_a_flag_without_part_is_told`.
OF_LABELS = {"average_tokens_across_devices"}
HELD_AS = {"label_smoother": "label_smoothing_factor", "label_names": "label_names"}


# --- values arrive --------------------------------------------------------------------------------

# Where the type does not suggest another value.
VALUES: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "optim_target_modules": ["attn"],
    "activation_checkpointing_kwargs": {"use_reentrant": True},
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "liger_kernel_config": {"rope": False},
    "neftune_noise_alpha": 3.0,
    "torch_empty_cache_steps": 2,
    "logging_strategy": "epoch",
    "include_num_input_tokens_seen": "all",
    "log_level": "error",
    "log_level_replica": "error",
    "report_to": ["wandb"],
    "include_for_metrics": ["loss"],
    "save_strategy": "epoch",
    "hub_strategy": "end",
    "metric_for_best_model": "loss",
    "accelerator_config": {"split_batches": True},
    "train_sampling_strategy": "sequential",
    "debug": ["underflow_overflow"],
    "dataloader_prefetch_factor": 3,
    "dataloader_multiprocessing_context": "spawn",
    "label_names": ["mine"],
    "fsdp_config": {"version": 2},
    "eval_strategy": "steps",
    "eval_steps": 5,
    "torch_compile_backend": "eager",
    "torch_compile_mode": "max-autotune",
    "warmup_steps": 3,
    "max_grad_norm": 0.5,
}
WITH: dict[str, dict[str, Any]] = {
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1},
    "eval_strategy": {"eval_steps": 5},
    "load_best_model_at_end": {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5},
}
ELSEWHERE = {  # Field -> why no other value of it is tried here.
    "output_dir": "every run here is given another",
    "use_cpu": "every run here is with it",
    "ddp_backend": "starts a process group",
    "deepspeed": "tests/examples/test_launch_configs.py",
    "fsdp": "tests/examples/test_script_flags.py",
    "parallelism_config": "test_rows_are_not_split_along_their_length, below",
    "dataloader_pin_memory": "False without a device",
}


def another(field: Any, config: type) -> Any:
    """A value that is not the default."""
    if field.name in VALUES:
        return VALUES[field.name]
    default = config.__dataclass_fields__[field.name].default
    if isinstance(default, bool) or (default is None and "bool" in str(field.type)):
        return not default
    if isinstance(default, int | float):
        return default + 1 if default >= 0 else 7
    return 7 if "int" in str(field.type) else "given"


def plain(value: Any) -> Any:
    """An option as it was written: enums as text, an empty setting left out."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if v is not None}
    return getattr(value, "value", value)


@pytest.mark.parametrize("kind", runs.KINDS)
def test_a_given_value_arrives_or_is_refused(kind):
    _, config, _ = runs.KINDS[kind]
    lost = []
    with runs._heard():
        for name, field in NAMES.items():
            if name not in ELSEWHERE:
                lost += _lost(config, name, another(field, config))
    assert lost == []


def _lost(config: type, name: str, given: Any) -> list[str]:
    """What became of the value, if it neither arrived nor was refused by name."""
    try:
        with patch.dict(os.environ):  # where transformers keeps how to compile
            made = config("out", use_cpu=True, **{name: given}, **WITH.get(name, {}))
    except (ValueError, TypeError, ImportError) as refusal:
        return [] if name in str(refusal) else [f"{name}={given!r}: {refusal}"]
    found = getattr(made, name)
    if isinstance(given, dict) and name != "lr_scheduler_kwargs":
        found = {k: found[k] if isinstance(found, dict) else getattr(found, k) for k in given}
    return [] if plain(found) == given else [f"{name}={given!r} became {found!r}"]


# --- what a run reads -----------------------------------------------------------------------------

# Functions that copy or show a config whole.
_WHOLESALE = {"to_dict", "to_json_string", "to_sanitized_dict", "__str__", "__repr__", "of"}


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, set[tuple[str, str]]]]:
    """Field -> (file, function) of everybody who reads it inside; who copies all does not count."""
    reads: dict[str, set[tuple[str, str]]] = defaultdict(set)
    plainly = TrainingArguments.__getattribute__

    def read(self: Any, name: str) -> Any:
        code = sys._getframe(1).f_code
        if code.co_name not in _WHOLESALE and not code.co_filename.endswith("dataclasses.py"):
            reads[name].add((code.co_filename, code.co_name))
        return plainly(self, name)

    TrainingArguments.__getattribute__ = read
    try:
        yield reads
    finally:
        TrainingArguments.__getattribute__ = plainly


SETTINGS = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
SETTINGS |= {"max_steps": 1}


@functools.cache
def read_by(kind: str | None) -> dict[str, set[tuple[str, str]]]:
    """What is read in a run of the kind; None: of transformers' own trainer."""
    with tempfile.TemporaryDirectory() as place, runs._heard(), recorded() as reads:
        if kind is None:
            ids = Dataset.from_list(
                [{"input_ids": [5 + i] * 9, "labels": [5] * 9} for i in range(8)]
            )
            args = TrainingArguments(place, **{**runs.BASE, **SETTINGS})
            trainer: Any = transformers.Trainer(
                making.model(), args, train_dataset=ids, eval_dataset=ids,
                processing_class=making.tokenizer(),
            )  # fmt: skip
        else:
            trainer = runs.build(kind, Path(place), SETTINGS)
        trainer.train()
        trainer.evaluate()
    return reads


def acted_on(reads: dict[str, set[tuple[str, str]]]) -> set[str]:
    """Fields that somebody read after the config had been made."""
    return {n for n in NAMES if any(function != "__post_init__" for _, function in reads[n])}


@pytest.mark.parametrize("kind", runs.KINDS)
def test_what_transformers_reads_in_a_run_is_read_here(kind):
    _, config, _ = runs.KINDS[kind]
    unread = acted_on(read_by(None)) - acted_on(read_by(kind)) - set(config._NO_PART)
    excused = OF_LABELS if kind != "sft" else set()
    # Without it evaluation's answers are drawn; PPO's shows are as wide as it says.
    if kind == "ppo_train":
        excused = excused | {"per_device_eval_batch_size"}
    assert unread <= excused
    assert len(acted_on(read_by(None))) > 70  # the recorder works


def outside(reads: dict[str, set[tuple[str, str]]], name: str) -> bool:
    """Whether somebody of ours reads it who is no config."""
    files = {file for file, _ in reads[name]}
    return any("fastrl" in file and not file.endswith("config.py") for file in files)


def test_what_one_online_trainer_reads_all_of_them_read():
    """Evidence for a field of `OnlineConfig` is gathered on GRPO."""
    grpo = read_by("grpo")
    for kind in ("rloo", "online_dpo", "nash_md", "xpo", "distillation"):
        fields = {f.name for f in dataclasses.fields(runs.KINDS[kind][1]) if f.init}
        ours = fields - set(NAMES)
        lost = {n for n in ours if outside(grpo, n) and not outside(read_by(kind), n)}
        lost -= set(runs.KINDS[kind][1]._NO_PART)  # refused
        assert lost <= {"use_transformers_paged", "max_new_tokens"}, (kind, lost)


OFFLINE = ("dpo", "kto", "reward", "bco", "prm")


def test_what_one_offline_trainer_reads_all_of_them_read():
    """Evidence for a field of `OfflineConfig` is gathered on SFT, of `PreferenceConfig` on DPO."""
    for one, others in (("sft", OFFLINE), ("dpo", ("kto", "bco"))):
        for kind in others:
            shared = {f.name for f in dataclasses.fields(runs.KINDS[one][1])} & {
                f.name for f in dataclasses.fields(runs.KINDS[kind][1])
            }
            lost = {
                name
                for name in shared - set(NAMES)
                if outside(read_by(one), name) and not outside(read_by(kind), name)
            }
            assert lost <= {"padding_free"}, (one, kind, lost)  # of DPO, and accepted either way


# --- what no run here reads -----------------------------------------------------------------------


def attributes(tree: ast.AST, holders: set[str]) -> set[str]:
    """Fields read as attributes of these names, and of what a trainer keeps of them."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        holder = getattr(node.value, "attr", getattr(node.value, "id", ""))
        if node.attr in NAMES and holder in holders:
            found.add(node.attr)
        if node.attr in HELD_AS and holder == "self":
            found.add(HELD_AS[node.attr])
    return found


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def methods_that_read() -> dict[str, set[str]]:
    """Method of `transformers.Trainer` -> the fields it reads."""
    (trainer,) = [
        node
        for node in parsed(ROOT / "trainer.py").body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
    ]
    functions = [node for node in trainer.body if isinstance(node, ast.FunctionDef)]
    return {node.name: attributes(node, {"args"}) for node in functions}


def replaced(trainer: type) -> dict[str, list[str]]:
    """Method that takes the place of transformers' and never calls it -> its sources."""
    found = {}
    for name in methods_that_read():
        own = [vars(c)[name] for c in trainer.__mro__ if _is_ours(c) and name in vars(c)]
        functions = [f for f in own if inspect.isfunction(f)]
        sources = [inspect.getsource(inspect.unwrap(f)) for f in functions]
        if sources and not any("super()" in source for source in sources) and name != "__init__":
            found[name] = sources
    return found


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "fastrl"


@pytest.mark.parametrize("kind", runs.KINDS)
def test_no_override_bypasses_a_field(kind):
    trainer, config, _ = runs.KINDS[kind]
    refused = set(config._NO_PART) | {"train_sampling_strategy", "label_smoothing_factor"}
    for name, sources in replaced(trainer).items():
        read = {n for s in sources for n in attributes(ast.parse(textwrap.dedent(s)), {"args"})}
        lost = methods_that_read()[name] - read - set(NEEDLESS)
        if name in ("compute_loss", "_get_num_items_in_batch", "prediction_step"):
            lost -= OF_LABELS | ({"label_names"} if "label_names" in config._NO_PART else set())
            lost -= {"label_smoothing_factor"} if kind != "sft" else set()
        if kind in runs.DRAWING and name.endswith("_sampler"):
            # Their samplers give whole batches in the order of `_order_seed`.
            lost -= {"dataloader_drop_last", "length_column_name", "data_seed", "seed"}
            lost -= {"gradient_accumulation_steps"}
        if kind == "ppo_train" and name in ("_get_train_sampler", "get_total_train_batch_size"):
            lost -= {"dataloader_drop_last", "length_column_name", "gradient_accumulation_steps"}
        assert lost - refused <= {"debug", "output_dir"}, (name, lost)


def test_transformers_reads_every_field_somewhere():
    """Where no run here does: for other devices, the hub, resuming, other launchers."""
    in_runs = acted_on(read_by(None))
    holders = {"args", "self", "training_args", "trainer_args"}
    somewhere: set[str] = set()
    for path in [
        *ROOT.glob("trainer*.py"),
        *ROOT.glob("integrations/*.py"),
        ROOT / "training_args.py",
    ]:
        somewhere |= attributes(parsed(path), holders)
    older = {"gradient_checkpointing_kwargs"}  # becomes activation_checkpointing_kwargs
    assert set(NAMES) - in_runs - somewhere - FOR_SCRIPTS - older == set()
    fit = parsed(Path(inspect.getfile(runs.fastrl)).parent / "cli" / "training.py")
    assert "resume_from_checkpoint" in attributes(fit, {"args"})


# --- what is said of the rest ---------------------------------------------------------------------


REFUSED = {
    "dpo": {"label_smoothing_factor": 0.1, "label_names": ["mine"]},
    "kto": {"label_smoothing_factor": 0.1, "label_names": ["mine"]},
    "reward": {"label_smoothing_factor": 0.1, "label_names": ["mine"]},
    "orpo": {"label_smoothing_factor": 0.1, "label_names": ["mine"]},
    "bco": {"label_smoothing_factor": 0.1, "label_names": ["mine"]},
    "prm": {"label_names": ["mine"]},
    "sft": {"label_names": ["mine"]},
    "grpo": {"include_for_metrics": ["loss"], "batch_eval_metrics": True},
    "rloo": {"include_for_metrics": ["loss"], "train_sampling_strategy": "sequential"},
    "ppo_train": {"prediction_loss_only": True, "eval_accumulation_steps": 2},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_field_without_part_is_refused(kind):
    for name, value in REFUSED[kind].items():
        with pytest.raises(ValueError, match=rf"{name}="):
            runs.KINDS[kind][1]("out", use_cpu=True, **{name: value})
    runs.KINDS[kind][1]("out", use_cpu=True, label_names=["labels"])  # what scripts write


def test_a_flag_without_part_is_told():
    for kind, told in (("dpo", True), ("sft", False)):
        with tempfile.TemporaryDirectory() as place, runs._heard() as heard:
            runs.build(kind, Path(place), {"average_tokens_across_devices": False})
        assert ("average_tokens_across_devices=False changes nothing" in heard.getvalue()) == told


@pytest.mark.parametrize("kind", ["grpo", "ppo_train"])
def test_data_seed_orders_the_prompts_alone(kind):
    orders = []
    for given in ({}, {"data_seed": 5}, {"data_seed": 5, "seed": 9}, {"seed": 5}):
        with tempfile.TemporaryDirectory() as place, runs._heard():
            trainer = runs.build(kind, Path(place), given)
            batch = next(iter(trainer.get_train_dataloader()))
        rows = [row["extra"] for row in batch] if kind == "grpo" else batch["input_ids"].tolist()
        orders.append(rows)
    assert orders[0] != orders[1] == orders[2]
    if kind == "grpo":
        assert orders[3] == orders[1]


@pytest.mark.parametrize("config", [fastrl.SFTConfig, fastrl.GRPOConfig, fastrl.PPOTrainConfig])
@pytest.mark.parametrize("axis", ["cp_size", "sp_size"])
def test_rows_are_not_split_along_their_length(tmp_path, config, axis):
    plan = ParallelismConfig(**{axis: 2})
    with pytest.raises(ValueError, match=r"parallelism_config.*set cp_size=1 and sp_size=1"):
        config(str(tmp_path), use_cpu=True, bf16=False, parallelism_config=plan)
