"""Training commands: whose words are whose, and when a launcher is needed."""

from __future__ import annotations

import importlib
import subprocess

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from fastrl.cli import launch, sft
from fastrl.cli.main import TRAINING, main

NAMED = ["fsdp1", "fsdp2", "multi_gpu", "single_gpu", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def parser_of_sft():
    return sft.make_parser(prog="fastrl sft")


@pytest.fixture
def parser(parser_of_sft):
    """The parser, its defaults restored afterwards."""
    defaults = {action: (action.default, action.required) for action in parser_of_sft._actions}
    yield parser_of_sft
    for action, (default, required) in defaults.items():
        action.default, action.required = default, required


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(gpus): no launcher's variables, no default config, so many GPUs."""

    def be(gpus, default=False):
        for variable in (*launch.LAUNCHED, "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
        monkeypatch.setattr(launch, "_default_config", lambda: default)

    return be


# --- configurations ------------------------------------------------------------------------------
def test_the_seven_configurations_are_there_and_load():
    assert launch.named_configs() == NAMED
    kinds = {}
    for name in NAMED:
        config = load_config_from_file(str(launch.config_file(name)))
        kinds[name] = config.distributed_type.value
        assert config.mixed_precision == "no"  # left to bf16 and fp16 of the training arguments
        stage = (config.deepspeed_config or {}).get("zero_stage")
        assert stage == (int(name[-1]) if name.startswith("zero") else None)
        version = (config.fsdp_config or {}).get("fsdp_version")
        assert version == (int(name[-1]) if name.startswith("fsdp") else None)
    assert kinds == {
        "fsdp1": "FSDP",
        "fsdp2": "FSDP",
        "multi_gpu": "MULTI_GPU",
        "single_gpu": "NO",
        "zero1": "DEEPSPEED",
        "zero2": "DEEPSPEED",
        "zero3": "DEEPSPEED",
    }


def test_a_configuration_may_be_a_file(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("compute_environment: LOCAL_MACHINE\n")
    assert launch.config_file(str(own)) == own
    with pytest.raises(ValueError, match=r"zero4: neither a file nor one of .* you mean 'zero"):
        launch.config_file("zero4")


# --- whose words ---------------------------------------------------------------------------------
def test_words_are_told_apart(parser):
    words = ["--max_steps", "2", "--num_processes", "2", "--output_dir=o", "--gpu_ids=0,1"]
    words += ["--accelerate_config", "zero2", "--packing", "--main_process_port", "2"]
    own, given, named = launch.separate(parser, words)
    assert own == ["--max_steps", "2", "--output_dir=o", "--packing"]
    assert given == ["--num_processes", "2", "--gpu_ids=0,1", "--main_process_port", "2"]
    assert named == "zero2"


def test_the_file_may_hold_words_of_all_three(parser, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("accelerate_config: zero3\nnum_processes: 4\nmax_length: 77\n")
    own, given, named = launch.separate(parser, ["--config", str(path), "--max_steps", "1"])
    assert own == ["--config", str(path), "--max_steps", "1"]
    assert (given, named) == (["--num_processes", "4"], "zero3")
    assert parser.get_default("max_length") == 77
    named = launch.separate(parser, ["--config", str(path), "--accelerate_config", "zero1"])[2]
    assert named == "zero1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_lenght", "3"], "unknown --max_lenght; did you mean '--max_length'"),
        (["--num_proceses", "3"], "unknown --num_proceses; did you mean '--num_processes'"),
        (["--accelerate_cnfig", "3"], "did you mean '--accelerate_config'"),
        (["stray"], "'stray' belongs to no argument"),
        (["--accelerate_config"], "needs a value"),
    ],
)
def test_words_of_neither_are_refused(parser, words, message):
    with pytest.raises(ValueError, match=message):
        launch.separate(parser, words)


def test_keys_of_neither_are_refused(parser, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("num_processes: 2\npakcing: true\n")
    with pytest.raises(ValueError, match="--config file: unknown --pakcing; did you mean '--pack"):
        launch.separate(parser, ["--config", str(path)])


# --- when a launcher is needed -------------------------------------------------------------------
def test_one_process_needs_no_launcher(machine):
    for gpus in (0, 1):
        machine(gpus)
        assert launch.launcher_words(None, []) is None
        assert launch.launcher_words("single_gpu", []) is None
    machine(1, default=True)  # `accelerate config` was answered: its answers hold
    assert launch.launcher_words(None, []) == []
    assert launch.launcher_words("single_gpu", []) is None


def test_all_visible_gpus_are_used(machine, monkeypatch):
    machine(3)
    file = str(launch.config_file("zero3"))
    assert launch.launcher_words("zero3", []) == ["--config_file", file, "--num_processes", "3"]
    assert launch.launcher_words("zero3", ["--num_processes", "2"])[-2:] == ["--num_processes", "2"]
    assert launch.launcher_words(None, []) == []  # accelerate counts them itself
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert launch.launcher_words("single_gpu", [])[-2:] == ["--gpu_ids", "5"]
    machine(0)
    with pytest.raises(ValueError, match="multi_gpu needs GPUs"):
        launch.launcher_words("multi_gpu", [])
    assert launch.launcher_words(None, ["--cpu"]) == ["--cpu"]


def test_accelerate_takes_what_we_hand_it(machine):
    machine(2)
    for name in NAMED:
        words = launch.launcher_words(name, [])
        parsed = launch_command_parser().parse_args([*words, "--module", "m", "--max_steps", "2"])
        assert (parsed.module, parsed.training_script) == (True, "m")
        assert parsed.training_script_args == ["--max_steps", "2"]


# --- the whole command ---------------------------------------------------------------------------
@pytest.fixture
def stubs(monkeypatch):
    """What `main` of sft and accelerate got."""
    got = {}
    monkeypatch.setattr(sft, "main", lambda *options: got.update(here=options))
    monkeypatch.setattr(
        "accelerate.commands.launch.launch_command", lambda args: got.update(launched=args)
    )
    return got


WORDS = ["sft", "--output_dir", "o", "--use_cpu", "--max_length", "9", "--model_name_or_path", "m"]


def test_one_process_runs_here(machine, stubs):
    machine(0)
    assert main(WORDS) == 0
    script, training, model, mixture = stubs["here"]
    assert (training.max_length, model.model_name_or_path) == (9, "m")
    assert (script.dataset_name, mixture.datasets) == (None, [])
    assert "launched" not in stubs


def test_several_are_launched_with_the_scripts_own_words(machine, stubs):
    machine(2)
    assert main([*WORDS, "--accelerate_config", "multi_gpu"]) == 0
    args = stubs["launched"]
    assert (args.num_processes, args.module, args.training_script) == (2, True, "fastrl.cli.sft")
    assert args.training_script_args == WORDS[1:]
    assert "here" not in stubs


def test_a_launched_process_runs_here(machine, stubs, monkeypatch, tmp_path, capsys):
    machine(2)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as accelerate does for its processes
    path = tmp_path / "c.yaml"
    path.write_text("num_processes: 2\naccelerate_config: zero3\n")
    assert main([*WORDS, "--config", str(path)]) == 0
    assert "launched" not in stubs
    with pytest.raises(SystemExit):
        main([*WORDS, "--num_processes", "2"])
    assert "--num_processes belongs to the launcher" in capsys.readouterr().err


def test_errors_are_usage_errors(machine, stubs, capsys):
    machine(0)
    for words, message in (
        (["--accelerate_config", "zero9"], "zero9: neither a file"),
        (["--accelerate_config", "zero3"], "needs GPUs"),
        (["--packking"], "did you mean '--packing'"),
        (["--logging_dir", "logs", "--past_index", "3"], "no longer takes past_index=3"),
        (["--max_seq_length", "4"], "--max_length is given both by that name"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*WORDS, *words])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert stubs == {}


def test_a_failing_child_gives_its_status(machine, monkeypatch):
    machine(2)

    def fail(args):
        raise subprocess.CalledProcessError(3, "x")

    monkeypatch.setattr("accelerate.commands.launch.launch_command", fail)
    assert main([*WORDS, "--num_processes", "2"]) == 3


@pytest.mark.parametrize("command", TRAINING)
def test_every_training_command_is_a_module(command):
    module = importlib.import_module(f"fastrl.cli.{command}")
    assert module.HELP and callable(module.make_parser) and callable(module.main)
