"""Where fields are read that no tiny run would show by its numbers."""

from __future__ import annotations

import ast
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import datasets
import pytest
import torch

from fastrl.train import drawing
from tests.algos.offline_parity import making
from tests.customisation import runs

ROOT = Path(__file__).resolve().parents[2]
Look = Callable[[str], None]


@contextmanager
def built(kind: str, **settings: Any) -> Any:
    """A trainer with a folder of its own."""
    with tempfile.TemporaryDirectory() as place, runs._heard():
        yield runs.build(kind, Path(place), settings)


# --- transformers and datasets --------------------------------------------------------------------


def nan_filter(name: str) -> None:
    """A NaN that a user's own `training_step` returns is logged as it is, or as the mean before."""
    seen = []
    for given in (False, True):
        with built("sft", **{name: given}) as trainer:
            losses = iter([2.0, float("nan")])
            trainer.training_step = lambda *_, of=losses: torch.tensor(next(of))
            with runs._heard():
                trainer.train()
            seen.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert seen[0][0] == seen[1][0] == 2.0
    assert [x == x for x in (seen[0][1], seen[1][1])] == [False, True]


def _loading(kind: str, name: str) -> None:
    from fastrl.train import setup

    model, tokenizer, asked = making.model("qwen2"), making.tokenizer(), []
    load = SimpleNamespace(
        from_pretrained=lambda *_, **given: asked.append(given[name]) or tokenizer
    )
    source = str(runs.folder() / "policy")
    for given in (False, True):
        asked.clear()
        with (
            patch.object(setup, "AutoTokenizer", load),
            patch.object(
                setup,
                "create_model_from_path",
                lambda *_, **k: asked.append(k[name]) or model,
            ),
            tempfile.TemporaryDirectory() as place,
        ):
            trainer, config, more = runs.KINDS[kind]
            args = config(place, **{**runs.BASE, **more, name: given})
            rows = runs.rows(kind, 8, 0, None)
            rewards = {"reward_funcs": runs.letters} if kind in runs.DRAWING else {}
            trainer(source, args=args, train_dataset=rows, **rewards)
        assert asked and set(asked) == {given}


def loading(name: str) -> None:
    _loading("sft", name)


def loading_online(name: str) -> None:
    _loading("grpo", name)


def teacher_loading(value: Any, keyword: str, kind: str = "distillation") -> Look:
    """The teacher is loaded with the field as that keyword, and no field is for one at hand."""
    wanted = value[keyword] if isinstance(value, dict) else value

    def look(name: str) -> None:
        from fastrl.train import setup

        asked = []
        load = lambda *_, **given: asked.append(given) or runs.teacher()  # noqa: E731
        with patch.object(setup, "create_model_from_path", load):
            for given in ({}, {name: value}):
                with built(kind, teacher_model_name_or_path="somewhere", **given):
                    pass
        assert [one.get(keyword) for one in asked] == [None, wanted]
        refused = pytest.raises(ValueError, match=f"{name} is for a teacher given by name")
        with refused, built(kind, **{name: value}):
            pass

    return look


@contextmanager
def _maps() -> Any:
    """The `num_proc` that datasets are mapped with; nothing is started for it."""
    asked: list[Any] = []
    plain = datasets.Dataset.map

    def mapped(self: Any, *args: Any, **keywords: Any) -> Any:
        asked.append(keywords.pop("num_proc", None))
        return plain(self, *args, **keywords)

    with patch.object(datasets.Dataset, "map", mapped):
        yield asked


def _processes(kind: str, name: str, **more: Any) -> None:
    for given in (None, 3):
        with _maps() as asked, built(kind, **{name: given}, **more):
            assert given in asked and set(asked) <= {given, None}


def processes(name: str) -> None:
    for kind in ("sft", "dpo", "kto", "reward", "bco", "prm", "orpo"):
        _processes(kind, name)


def processes_of_prompts(name: str) -> None:
    _processes("ppo_train", name, _text=True)


def padding(name: str) -> None:
    """The id that fills short rows of a batch."""
    for given, filling in ((None, making.tokenizer().pad_token_id), (7, 7)):
        with built("cpo", **{name: given}) as trainer:
            rows = [trainer.train_dataset[row] for row in range(4)]
            batch = trainer.data_collator(rows)
        ids, mask = batch["chosen_input_ids"], batch["chosen_attention_mask"]
        assert set(ids[mask == 0].tolist()) == {filling}


def offloading(name: str) -> None:
    """Activations of the forward pass go to the host and come back."""
    saved = []
    plain = torch.autograd.graph.save_on_cpu
    watched = lambda **given: saved.append(given) or plain(**given)  # noqa: E731
    for given in (False, True):
        saved.clear()
        with (
            patch.object(torch.autograd.graph, "save_on_cpu", watched),
            built("sft", **{name: given}) as trainer,
            runs._heard(),
        ):
            trainer.train()
        assert len(saved) == (2 if given else 0)


def unprepared(name: str) -> None:
    rows = making.rows("text", 8)
    with built("sft", **{name: {"skip_prepare_dataset": True}}, _rows="text") as trainer:
        assert trainer.train_dataset.column_names == rows.column_names


def precomputing(name: str) -> None:
    from fastrl.train import precompute

    sizes: list[int] = []
    plain = precompute.DataLoader

    def loader(rows: Any, size: int, **more: Any) -> Any:
        sizes.append(size)
        return plain(rows, size, **more)

    for given, expected in ((None, 4), (3, 3)):
        sizes.clear()
        with (
            tempfile.TemporaryDirectory() as cache,
            patch.object(precompute, "DataLoader", loader),
            patch.object(
                datasets.Dataset, "_get_cache_file_path", lambda _, f, at=cache: f"{at}/{f}.arrow"
            ),
            built("dpo", **{name: given}, precompute_ref_log_probs=True),
        ):
            assert sizes and set(sizes) == {expected}


# --- online trainers ------------------------------------------------------------------------------


def slow(completions: list[Any], **_: Any) -> list[float]:
    time.sleep(3)
    return [1.0] * len(completions)


def timeout(name: str) -> None:
    """A function that takes longer has no score."""
    from fastrl.rewards.running import RewardFunctions

    seen = []
    with patch.object(RewardFunctions, "__init__", lambda _, __, **k: seen.append(k)):
        for given in (None, 2.5):
            with pytest.raises(AttributeError), built("grpo", **{name: given}):
                pass
    assert seen == [{"timeout": None}, {"timeout": 2.5}]


def tool_rounds(name: str) -> None:
    from fastrl.algos.grpo import GRPOTrainer

    def lookup(word: str) -> str:
        """Look a word up.

        Args:
            word: which.
        """
        return word

    asked = []
    loop = lambda *_, **given: asked.append(given["max_iterations"])  # noqa: E731
    with patch.object(drawing, "ToolLoop", loop), tempfile.TemporaryDirectory() as place:
        for given in (None, 3):
            args = runs.KINDS["grpo"][1](place, **{**runs.BASE, **runs.DRAWN, name: given})
            rows = runs.rows("grpo", 8, 0, "completion_chat").select_columns(["prompt"])
            GRPOTrainer(
                making.model("qwen2"), runs.letters, args, rows,
                processing_class=making.tokenizer(), tools=[lookup],
            )  # fmt: skip
    assert asked == [None, 3]


def completions_repository(name: str) -> None:
    import huggingface_hub

    asked = []
    scheduler = lambda **given: asked.append(given["repo_id"])  # noqa: E731
    with patch.object(huggingface_hub, "CommitScheduler", scheduler):
        for given in (None, "me/mine"):
            with built("grpo", log_completions=True, **{name: given}):
                pass
    assert asked == ["me/mine"]
    with pytest.raises(ValueError, match=name), built("grpo", **{name: "me/mine"}):
        pass


# --- PPO by train() -------------------------------------------------------------------------------


def kept_columns(name: str) -> None:
    """The collator is given the prompts alone, or every column."""
    seen = []
    for given in (False, True):
        with built("ppo_train", **{name: given}) as trainer:
            rows = trainer.train_dataset
            trainer.train_dataset = rows.add_column("extra", list(range(len(rows))))
            asked: list[set[str]] = []
            plain = trainer.data_collator
            trainer.data_collator = lambda b, of=plain, at=asked: at.append(set(b[0])) or of(b)
            next(iter(trainer.get_train_dataloader()))
            seen.append(asked[0])
    assert seen == [{"input_ids", "extra"}, {"input_ids"}]


def rows_decoded_together(name: str) -> None:
    from fastrl.rollout.plan import Plan

    plain, asked = Plan.answers, []

    def answers(self: Any, requests: Any, most: Any = None) -> Any:
        asked.append(most)
        return plain(self, requests, most)

    for given in (64, 1):
        asked.clear()
        with (
            patch.object(Plan, "answers", answers),
            built("ppo_train", **{name: given}, max_steps=1) as trainer,
            runs._heard(),
        ):
            trainer.train()
        assert asked and set(asked) == {given}


def read_by(script: str) -> Look:
    """A script of ours reads it as an attribute of its arguments."""

    def look(name: str) -> None:
        tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
        read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert name in read, f"{script} does not read {name}"

    return look
