"""TrlParser: the command line over the file over the defaults, and what it refuses."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass, field

import pytest
from transformers import TrainingArguments

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.sft import SFT_FIELDS
from fastrl.train.model_config import ModelConfig
from fastrl.train.parser import TrlParser, init_zero_verbose
from fastrl.train.script_arguments import DatasetConfig, DatasetMixtureConfig, ScriptArguments


@dataclass
class First:
    count: int
    name: str = "alpha"
    rate: float = 0.5
    flag: bool = False
    words: list[str] | None = None
    options: dict | None = None


@dataclass
class Second:
    other: int = 7


@accepts_legacy_fields(SFT_FIELDS)
@dataclass
class Training(TrainingArguments):
    max_length: int | None = field(default=1024)


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_command_line_over_file_over_defaults(config):
    path = config("count: 3\nname: beta\nrate: 1e-3\nwords: [a, b]\noptions: {k: 1}\nother: 9\n")
    first, second = TrlParser([First, Second]).parse_args_and_config(
        ["--config", path, "--name", "gamma", "--flag"]
    )
    assert first == First(3, "gamma", 1e-3, True, ["a", "b"], {"k": 1})
    assert second == Second(9)
    (alone,) = TrlParser(First).parse_args_and_config(
        [f"--config={path}", "--count", "4"], False, False
    )
    assert (alone.count, alone.name) == (4, "beta")


def test_what_has_no_default_is_required_unless_the_file_has_it(capsys):
    with pytest.raises(SystemExit):
        TrlParser([First]).parse_args_and_config([])
    assert "--count" in capsys.readouterr().err


def test_the_block_env_sets_the_environment(config, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    path = config("env:\n  FASTRL_TEST_ONE: 1\n  FASTRL_TEST_TWO: b\ncount: 1\n")
    TrlParser([First]).parse_args_and_config(["--config", path])
    assert (os.environ["FASTRL_TEST_ONE"], os.environ["FASTRL_TEST_TWO"]) == ("1", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: 1\nnaem: x\n", r"config.yaml: unknown --naem; did you mean '--name'"),
        ("- 1\n", "must map names to values"),
        ("env: 3\ncount: 1\n", "`env` must map"),
    ],
)
def test_files_that_are_refused(config, text, message):
    with pytest.raises(ValueError, match=message):
        TrlParser([First]).parse_args_and_config(["--config", config(text)])


def test_command_lines_that_are_refused(tmp_path):
    parser = TrlParser([First])
    with pytest.raises(ValueError, match="unknown --raet; did you mean '--rate'"):
        parser.parse_args_and_config(["--count", "1", "--raet=2"])
    with pytest.raises(ValueError, match="'stray' belongs to no argument"):
        parser.parse_args_and_config(["stray", "--count", "1"])
    with pytest.raises(ValueError, match="needs the path"):
        parser.parse_args_and_config(["--config"])
    with pytest.raises(ValueError, match="no such file"):
        parser.parse_args_and_config(["--config", str(tmp_path / "none.yaml")])


def test_unknown_strings_can_be_returned(config):
    path = config("count: 1\nnum_processes: 2\n")
    words = ["--config", path, "--more", "5"]
    parsed = TrlParser([First]).parse_args_and_config(words, return_remaining_strings=True)
    assert parsed[1:] == (["--num_processes", "2", "--more", "5"],)
    parsed = TrlParser([First]).parse_args_and_config(
        words, return_remaining_strings=True, separate_remaining_strings=True
    )
    assert parsed[1:] == (["--num_processes", "2"], ["--more", "5"])
    with pytest.raises(ValueError, match="num_processes"):
        TrlParser([First]).parse_args_and_config(words[:2])
    (first,) = TrlParser([First]).parse_args_and_config(words[:2], fail_with_unknown_args=False)
    assert first.count == 1


def test_a_field_named_config_is_refused():
    @dataclass
    class Bad:
        config: str = ""

    with pytest.raises(ValueError, match="Bad has a field 'config'"):
        TrlParser(Bad)


def test_sub_parsers_take_the_file_too(config):
    parser = TrlParser(prog="x")
    commands = parser.add_subparsers(dest="command", parser_class=TrlParser)
    commands.add_parser("go", dataclass_types=[First])
    path = config("count: 5\n")
    (parsed,) = parser.parse_args_and_config(["go", "--config", path])
    assert (parsed.command, parsed.count, parsed.name) == ("go", 5, "alpha")


def test_old_flags_are_translated_with_one_warning():
    words = ["--output_dir", "o", "--use_cpu", "--evaluation_strategy", "steps", "--eval_steps=3"]
    words += ["--max-seq-length=9", "--overwrite_output_dir", "--warmup_ratio", "0.25"]
    words += ["--group_by_length", "True", "--torch_dtype", "bfloat16"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training, model = TrlParser([Training, ModelConfig]).parse_args_and_config(words)
    assert (training.eval_strategy, training.eval_steps, training.max_length) == ("steps", 3, 9)
    assert (training.warmup_steps, training.train_sampling_strategy) == (0.25, "group_by_length")
    assert model.dtype == "bfloat16"
    (told,) = [str(w.message) for w in caught if "old spellings" in str(w.message)]
    for name in ("evaluation_strategy", "max_seq_length", "overwrite_output_dir", "warmup_ratio"):
        assert name in told


def test_old_keys_of_a_file_too(config):
    path = config("output_dir: o\nuse_cpu: true\nmax_seq_length: 8\nlogging_dir: x\n")
    with pytest.warns(FutureWarning, match="max_seq_length= is max_length="):
        (training,) = TrlParser([Training]).parse_args_and_config(["--config", path])
    assert training.max_length == 8
    with pytest.raises(ValueError, match="no longer takes past_index=2"):
        TrlParser([Training]).parse_args_and_config(["--output_dir", "o", "--past_index", "2"])


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        ({"warmup_steps": 100, "warmup_ratio": 0.1}, 100),
        ({"warmup_ratio": 0.1, "warmup_steps": 100}, 100),
        ({"warmup_steps": 0, "warmup_ratio": 0.1}, 0.1),
        ({"warmup_ratio": 0.1, "warmup_steps": 0}, 0.1),
        ({"warmup_ratio": 0.0, "warmup_steps": 100}, 100),
    ],
)
@pytest.mark.filterwarnings("ignore:old spellings:FutureWarning")
def test_an_old_flag_that_yields_does_so_in_any_order(config, given, holds):
    parse = TrlParser([Training]).parse_args_and_config
    out = ["--output_dir", "o", "--use_cpu", "True"]
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    joined = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    file = config("".join(f"{name}: {value}\n" for name, value in given.items()))
    for words in (flags, joined, ["--config", file]):
        (training,) = parse([*out, *words])
        assert training.warmup_steps == holds
    (training,) = TrlParser([Training]).parse_args_into_dataclasses([*out, *flags])
    assert training.warmup_steps == holds


@pytest.mark.filterwarnings("ignore:old spellings:FutureWarning")
def test_an_old_flag_yields_to_a_key_of_the_file_and_wins_over_other_keys(config):
    out = ["--output_dir", "o", "--use_cpu", "True", "--config"]
    file = config("warmup_steps: 100\neval_strategy: no\n")
    words = ["--warmup_ratio", "0.1", "--evaluation_strategy", "steps"]
    (training,) = TrlParser([Training]).parse_args_and_config([*out, file, *words])
    assert training.warmup_steps == 100  # as while both were fields
    assert training.eval_strategy == "steps"


@pytest.mark.parametrize(
    "given",
    [
        {"eval_strategy": "steps", "evaluation_strategy": "epoch"},
        {"group_by_length": True, "train_sampling_strategy": "random"},
    ],
)
def test_an_old_and_its_new_spelling_are_refused_together(config, given):
    out = ["--output_dir", "o", "--use_cpu", "True"]
    with pytest.raises(TypeError, match="both by that name"):
        Training("o", use_cpu=True, **given)
    for pairs in (list(given.items()), list(given.items())[::-1]):
        flags = [word for name, value in pairs for word in (f"--{name}", str(value))]
        file = config("".join(f"{name}: {value}\n" for name, value in pairs))
        for words in (flags, ["--config", file]):
            with pytest.raises(ValueError, match="both by that name"):
                TrlParser([Training]).parse_args_and_config([*out, *words])
    short = ["--eval_strat", "steps", "--evaluation_strategy", "epoch"]
    with pytest.raises(ValueError, match="--eval_strategy is given both"):
        TrlParser([Training]).parse_args_and_config([*out, *short])


def test_optional_flags_stand_alone_and_can_be_unset():
    @dataclass
    class Optional:
        fast: bool | None = None
        slow: bool | None = None
        most: int | None = 5
        share: float | None = 0.5
        word: str | None = "x"

    def read(*words):
        return TrlParser(Optional).parse_args_and_config(words)[0]

    assert read("--fast", "--slow", "false") == Optional(fast=True, slow=False)
    assert read("--most", "none", "--share", "Null", "--word", "none") == Optional(
        most=None, share=None, word="none"
    )
    assert read("--fast", "none", "--most", "7").most == 7


def test_a_wrong_number_is_named(capsys):
    with pytest.raises(SystemExit):
        TrlParser([Training]).parse_args_and_config(["--output_dir", "o", "--max_length", "many"])
    assert "--max_length/--max-length: invalid int value: 'many'" in capsys.readouterr().err


def test_mixtures_come_from_a_file(config):
    path = config("datasets:\n- path: one\n  split: validation\n- path: two\n  fraction: 0.5\n")
    _, mixture = TrlParser([ScriptArguments, DatasetMixtureConfig]).parse_args_and_config(
        ["--config", path]
    )
    assert mixture.datasets == [
        DatasetConfig("one", split="validation"),
        DatasetConfig("two", fraction=0.5),
    ]


def test_switches_of_two_dataclasses_are_no_strangers(config):
    parser = TrlParser((ScriptArguments, Training))
    flag = "--gradient_checkpointing_use_reentrant"
    for words in ([flag, "True", "--more", "5"], [f"{flag}=True", "--more", "5"]):
        assert parser.unknown_strings(words) == ([], ["--more", "5"])
    file = config("gradient_checkpointing_use_reentrant: true\nbeyond: 1\n")
    assert parser.unknown_strings(["--config", file]) == (["--beyond", "1"], [])
    for read in (parser.unknown_strings, parser.parse_args_and_config):
        with pytest.raises(ValueError, match=f"{flag}: .*maybe"):
            read([flag, "maybe"])


def test_zero_verbose_turns_warnings_into_log_lines(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        root.handlers = []
        init_zero_verbose()
        assert root.level == logging.ERROR and len(root.handlers) == 1
        seen = []
        monkeypatch.setattr(logging, "warning", seen.append)
        warnings.showwarning("words", UserWarning, "file.py", 3)
        assert seen == ["file.py:3: UserWarning: words"]
    finally:
        root.handlers, root.level = handlers, level
