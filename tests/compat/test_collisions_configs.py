"""Configs whose defaults are others in another release of TRL, by the pin and on a command line."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import HfArgumentParser, TrainingArguments

import fastrl
from fastrl.compat.transformers_patch import patch_transformers, restore_transformers
from tests.compat.colliding import QUIET, TEXTS, model, no_pin, word_tokenizer  # noqa: F401

# Config -> fields that had another default in 0.11 (or in 0.7, where it was there already).
OLD = {
    "SFTConfig": {"learning_rate": 5e-5, "packing_strategy": "wrapped"},
    "DPOConfig": {
        "learning_rate": 5e-5,
        "max_length": 512,
        "truncation_mode": "keep_end",
        "f_alpha_divergence_coef": 1.0,
        "ref_model_mixup_alpha": 0.9,
        "ref_model_sync_steps": 64,
    },
    "KTOConfig": {"learning_rate": 5e-7, "max_length": 512},
    "RewardConfig": {"learning_rate": 5e-5, "max_length": None},
    "RLOOConfig": {
        "learning_rate": 5e-5,
        "max_completion_length": 53,
        "num_iterations": 4,
        "temperature": 0.7,
    },
    "OnlineDPOConfig": {"learning_rate": 5e-7},
    "PPOv2Config": {"learning_rate": 5e-5},
}
TRAINING = {"gradient_checkpointing": False, "logging_nan_inf_filter": True, "bf16": False}


@pytest.mark.parametrize("name", OLD)
def test_defaults_of_configs_by_the_pin(name):
    cls = getattr(fastrl, name)
    today = cls("out", **QUIET)
    for pin in ("0.7", "0.11"):
        fastrl.set_api(pin)
        then = cls("out", **QUIET)
        for field, value in (OLD[name] | TRAINING).items():
            assert getattr(then, field) == value, field
        assert then.logging_steps == (1 if name in ("PPOv2Config", "RLOOConfig") else 500)
        given = cls("out", learning_rate=0.5, **QUIET)  # what is given is what it is
        assert given.learning_rate == 0.5
        assert dataclasses.replace(today) == today  # nor does a copy change
    fastrl.set_api("1")
    assert cls("out", **QUIET).learning_rate == today.learning_rate


@pytest.mark.parametrize("pin", ["0.7", "0.11"])
@pytest.mark.parametrize("kind", ["file and line", "into dataclasses", "patched"])
def test_command_lines_have_the_pins_defaults(tmp_path, kind, pin):
    own = (fastrl.ScriptArguments, fastrl.DPOConfig, fastrl.ModelConfig)

    def read(parser, *words):
        words = ["--output_dir", str(tmp_path), "--use_cpu", "True", *words]
        if kind == "file and line":
            return parser.parse_args_and_config(words)
        return parser.parse_args_into_dataclasses(words)

    def defaults(config, model):
        found = (config.learning_rate, config.max_length, config.logging_steps)
        return *found, config.truncation_mode, config.gradient_checkpointing, model.dtype

    today = (1e-6, 1024, 10, "keep_start", True, "float32")
    if kind == "patched":
        patch_transformers()
    try:
        make = HfArgumentParser if kind == "patched" else fastrl.TrlParser
        parser, mine, changed = make(own), make(own), make(own)
        assert defaults(*read(make(own))[1:]) == today
        fastrl.set_api(pin)
        assert defaults(*read(parser)[1:]) == (5e-5, 512, 500, "keep_end", False, None)
        assert read(parser, "--max_length", "1024")[1].max_length == 1024
        mine.set_defaults(learning_rate=1e-6)  # today's, but chosen
        assert read(mine)[1].learning_rate == 1e-6
        changed.set_defaults(learning_rate=0.25)
        assert read(changed)[1].learning_rate == 0.25
        fastrl.set_api(None)
        assert defaults(*read(parser)[1:]) == today
    finally:
        restore_transformers()


def test_a_file_and_a_class_of_ones_own_win_over_the_pins_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nlearning_rate: 1.0e-6\n")

    @dataclasses.dataclass
    class Own(fastrl.DPOConfig):
        max_length: int | None = 77

    fastrl.set_api("0.11")
    (read,) = fastrl.TrlParser(fastrl.DPOConfig).parse_args_and_config(["--config", str(file)])
    assert (read.learning_rate, read.max_length) == (1e-6, 512)
    parser = fastrl.TrlParser(fastrl.DPOConfig)
    assert parser.set_defaults_with_config(learning_rate=1e-6) == []
    (read,) = parser.parse_args_and_config(["--output_dir", str(tmp_path), "--use_cpu", "True"])
    assert (read.learning_rate, read.max_length) == (1e-6, 512)
    (read,) = fastrl.TrlParser(Own).parse_args_and_config(["--config", str(file)])
    assert read.max_length == Own("out", use_cpu=True).max_length == 77


def test_a_trainer_without_config_takes_the_pins_defaults(tokenizer):
    def lr(pin, **given):
        fastrl.set_api(pin)
        return fastrl.SFTTrainer(
            model(), train_dataset=TEXTS, processing_class=tokenizer, **given
        ).args

    assert lr(None).learning_rate == lr("1").learning_rate == 2e-5
    assert lr("0.7").learning_rate == lr("0.11").learning_rate == 5e-5
    plain = TrainingArguments("out", learning_rate=0.25, **QUIET)
    for pin in (None, "0.7", "1"):
        assert lr(pin, args=plain).learning_rate == 0.25
    assert lr("0.7", args=plain).packing_strategy == "wrapped"
    assert lr("1", args=plain).packing_strategy == "bfd"


def test_model_config_dtype_by_name_and_pin():
    with pytest.warns(FutureWarning, match="torch_dtype= is dtype="):
        config = fastrl.ModelConfig(torch_dtype="bfloat16")
    assert config.dtype == config.torch_dtype == "bfloat16"
    assert fastrl.ModelConfig().dtype == "float32"
    fastrl.set_api("0.11")
    assert fastrl.ModelConfig().dtype is None


def test_trust_remote_code_of_the_model_or_of_the_trainer(tmp_path):
    """It was ModelConfig's to 1.15 and is the trainers' since: one flag sets what is there."""
    words = ["--trust_remote_code"]
    out = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    both = fastrl.TrlParser((fastrl.SFTConfig, fastrl.ModelConfig))
    for parse in (both.parse_args_and_config, both.parse_args_into_dataclasses):
        training, own = parse([*words, *out])
        assert training.trust_remote_code is own.trust_remote_code is True
        training, own = parse(out)
        assert training.trust_remote_code is own.trust_remote_code is False
    alone = fastrl.TrlParser((TrainingArguments, fastrl.ModelConfig))
    _, own = alone.parse_args_and_config([*words, *out])
    assert own.trust_remote_code is True
    _, own = alone.parse_args_into_dataclasses([*out, "--trust_remote_code=false"])
    assert own.trust_remote_code is False
    file = tmp_path / "run.yaml"
    file.write_text("trust_remote_code: true\n")
    _, own = alone.parse_args_and_config([*out, "--config", str(file)])
    assert own.trust_remote_code is True
    assert fastrl.ModelConfig(trust_remote_code=True).trust_remote_code is True
    assert "trust_remote_code" not in {f.name for f in dataclasses.fields(fastrl.ModelConfig)}
