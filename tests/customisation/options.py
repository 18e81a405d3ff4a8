"""Where the command line's options of model and dataset are read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from fastrl import (
    DatasetConfig,
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)
from fastrl.cli import training
from fastrl.train import script_arguments

Look = Callable[[str], None]


def adapter(value: Any, key: str, expected: Any = ...) -> Look:
    """`get_peft_config` gives it on under PEFT's name."""

    def look(name: str) -> None:
        before, after = (
            get_peft_config(ModelConfig(use_peft=True, **given)).to_dict()[key]
            for given in ({}, {name: value})
        )
        assert before != after == (value if expected is ... else expected)

    return look


def use_peft(name: str) -> None:
    assert get_peft_config(ModelConfig()) is None
    assert get_peft_config(ModelConfig(**{name: True})) is not None


def bits(value: Any, key: str, expected: Any = ..., **given: Any) -> Look:
    """`get_quantization_config` gives it on under bitsandbytes' name."""

    def look(name: str) -> None:
        before = get_quantization_config(ModelConfig(**given))
        after = get_quantization_config(ModelConfig(**given, **{name: value}))
        wanted = value if expected is ... else expected
        assert getattr(before, key, None) != getattr(after, key) == wanted

    return look


def _rows(folder: Path) -> str:
    file = folder / "rows.jsonl"
    lines = [json.dumps({"text": f"row {i}", "number": i}) for i in range(10)]
    file.write_text("\n".join(lines))
    return str(file)


def _asked(model: dict[str, Any] | None = None, script: dict[str, Any] | None = None) -> Any:
    """What `fastrl sft` gives its trainer, and what it loads its rows by."""
    loaded = []
    rows = {"train": "train rows", "test": "test rows", "other": "other rows"}

    def load(*args: Any, **given: Any) -> Any:
        loaded.append((args, given))
        return rows

    args = SFTConfig("out", use_cpu=True, eval_strategy="steps", eval_steps=1)
    with patch.object(training, "load", load):
        found = training.trainer_arguments(
            ScriptArguments(**{"dataset_name": "rows", **(script or {})}),
            args,
            ModelConfig(**{"model_name_or_path": "policy", **(model or {})}),
            DatasetMixtureConfig(),
        )
    return SimpleNamespace(**found, loaded=loaded, init=args.model_init_kwargs)


def of_model(value: Any, key: str) -> Look:
    def look(name: str) -> None:
        before, after = _asked(), _asked(model={name: value})
        if key == "model":
            assert before.model != after.model == value
        else:
            assert before.init[key] != after.init[key] == value

    return look


def of_script(value: Any, place: str) -> Look:
    def look(name: str) -> None:
        before, after = _asked(), _asked(script={name: value})
        assert getattr(before, place) != getattr(after, place)
        assert str(value) in str(getattr(after, place))

    return look


def bias_buffers(name: str) -> None:
    """Boolean buffers are named to DDP before training."""
    seen = []
    for given in (False, True):
        model = torch.nn.Module()
        model.register_buffer("causal", torch.ones(2, dtype=torch.bool))
        model.register_buffer("scale", torch.ones(2))
        args = SimpleNamespace(
            disable_tqdm=True, resume_from_checkpoint=None, output_dir="out", push_to_hub=False
        )
        trainer = SimpleNamespace(
            args=args,
            model=model,
            callback_handler=SimpleNamespace(callbacks=[]),
            train=lambda **_: None,
            save_model=lambda _: None,
            accelerator=SimpleNamespace(print=lambda _: None),
        )
        training.fit(trainer, ScriptArguments(**{name: given}))
        seen.append(getattr(model, "_ddp_params_and_buffers_to_ignore", []))
    assert seen == [[], ["causal"]]


def _mixed(**of_dataset: Any) -> Any:
    with tempfile.TemporaryDirectory() as place:
        file = _rows(Path(place))
        mixture = {
            k: of_dataset.pop(k) for k in ("streaming", "test_split_size") if k in of_dataset
        }
        several = [DatasetConfig(file), DatasetConfig(**{"path": file, **of_dataset})]
        found = get_dataset(DatasetMixtureConfig(several, **mixture))
        sizes = {name: len(part) for name, part in found.items() if hasattr(part, "__len__")}
        return sizes, found["train"].column_names, type(found["train"]).__name__


def of_source(value: Any, place: int | str) -> Look:
    """The field is what rows are loaded by."""

    def look(name: str) -> None:
        asked = []
        load = script_arguments.load

        def watched(*args: Any, **given: Any) -> Any:
            asked.append((args, given))
            return load(_rows(folder), None, "train")

        with tempfile.TemporaryDirectory() as there:
            folder = Path(there)
            with patch.object(script_arguments, "load", watched):
                get_dataset(DatasetMixtureConfig([DatasetConfig(**{"path": "rows", name: value})]))
        ((args, given),) = asked
        assert (args[place] if isinstance(place, int) else given[place]) == value

    return look


def columns(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        mixture = DatasetMixtureConfig([DatasetConfig(_rows(Path(place)), **{name: ["number"]})])
        assert get_dataset(mixture)["train"].column_names == ["number"]


def fraction(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be set for each"):
        _mixed(**{name: 0.5})
    with tempfile.TemporaryDirectory() as place:
        file = _rows(Path(place))
        several = [DatasetConfig(file, **{name: share}) for share in (0.75, 0.25)]
        numbers = get_dataset(DatasetMixtureConfig(several))["train"]["number"]
        assert list(numbers) == [*range(10), *range(3)]  # 3 : 1, as far as ten rows go


def streaming(name: str) -> None:
    assert [_mixed(**{name: given})[2] for given in (False, True)] == ["Dataset", "IterableDataset"]


def held_out(name: str) -> None:
    assert _mixed()[0] == {"train": 20}
    assert _mixed(**{name: 5})[0] == {"train": 15, "test": 5}


def datasets_of_a_mixture(name: str) -> None:
    with pytest.raises(ValueError, match="the mixture is empty"):
        get_dataset(DatasetMixtureConfig(**{name: []}))
    assert _mixed()[0] == {"train": 20}
