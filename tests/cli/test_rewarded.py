"""Rewards named on the command line of `fastrl grpo` and `fastrl rloo`."""

from __future__ import annotations

import dataclasses
import sys
import warnings

import pytest

import fastrl
from fastrl.cli import grpo, rloo
from fastrl.cli.main import main
from fastrl.cli.rewarded import RewardedArguments, imported, reward_functions
from fastrl.rewards import accuracy_reward, reasoning_accuracy_reward, think_format_reward


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with modules of its own, forgotten afterwards."""
    (tmp_path / "own_rewards.py").write_text(
        "LIMIT = 3\n"
        "def brevity(completions, **kwargs):\n    return [-len(c) for c in completions]\n"
    )
    (tmp_path / "own_broken.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("own_rewards", "own_broken"):
        sys.modules.pop(name, None)


def args_of(length=2048):
    return fastrl.GRPOConfig("o", use_cpu=True, bf16=False, max_completion_length=length)


def named(*names, model=None):
    return RewardedArguments(reward_funcs=list(names), reward_model_name_or_path=model)


def test_fields_are_those_of_trl():
    own = {field.name: field.default for field in dataclasses.fields(RewardedArguments)}
    assert own["reward_funcs"] is None and own["reward_model_name_or_path"] is None
    base = {field.name for field in dataclasses.fields(fastrl.ScriptArguments)}
    assert own.keys() - base == {"reward_funcs", "reward_model_name_or_path"}


def test_the_reward_model_comes_first_then_functions_in_their_order(here):
    names = ("think_format_reward", "own_rewards.brevity", "accuracy_reward")
    functions = reward_functions(
        named(*names, "reasoning_accuracy_reward", model="judge"), args_of()
    )
    assert functions[0] == "judge"
    assert functions[1] is think_format_reward
    assert functions[2](completions=["abc"]) == [-3]
    assert functions[3:] == [accuracy_reward, reasoning_accuracy_reward]


def test_the_punishment_has_the_lengths_of_trl():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (punish,) = reward_functions(named("get_soft_overlong_punishment"), args_of())
    lengths = (1, 1024, 1152, 1280, 1281)
    # DAPO eq. 13 with L = 1280, C = 256: 0 up to L - C, then ((L - C) - n) / C, then -1
    assert punish(completion_ids=[[0] * n for n in lengths]) == [0.0, 0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize(("length", "told"), [(1024, True), (1025, False), (None, False)])
def test_a_punishment_that_no_answer_can_meet_is_told(length, told):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        reward_functions(named("get_soft_overlong_punishment"), args_of(length))
    assert any("max_completion_length=1024" in str(each.message) for each in seen) == told


def test_no_reward_is_refused():
    with pytest.raises(ValueError, match="give reward_funcs, reward_model_name_or_path or both"):
        reward_functions(RewardedArguments(), args_of())
    assert reward_functions(RewardedArguments(reward_model_name_or_path="m"), args_of()) == ["m"]


@pytest.mark.parametrize("command", ["grpo", "rloo"])
def test_an_unknown_name_ends_the_command_with_the_closest(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--reward_funcs", "acuracy_reward", "--use_cpu", "--output_dir", "o"])
    assert stop.value.code == 2
    assert "did you mean 'accuracy_reward'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module.f", "no module 'no_such_module'"),
        ("fastrl.rewords.f", "no module 'fastrl.rewords'"),
        ("own_rewards.brevty", "has no function 'brevty'; did you mean 'brevity'?"),
        ("own_rewards.LIMIT", "has no function 'LIMIT'"),
    ],
)
def test_a_path_that_leads_nowhere(here, path, message):
    with pytest.raises(ValueError, match="reward_funcs: ") as error:
        imported(path)
    assert message in str(error.value)


def test_what_a_module_lacks_itself_is_its_own_error(here):
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        imported("own_broken.f")


@pytest.mark.parametrize(
    ("module", "config", "generations"),
    [(grpo, "GRPOConfig", 8), (rloo, "RLOOConfig", 2)],
)
def test_flags_and_file_become_the_config(module, config, generations, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("reward_funcs: [think_format_reward]\nbeta: 0.25\n")
    parser = module.make_parser(prog="fastrl")
    words = ["--config", str(file), "--output_dir", "o", "--use_cpu", "--temperature", "0.5"]
    script, args, *_ = parser.parse_args_and_config(words)
    assert type(args) is getattr(fastrl, config)
    assert (args.beta, args.temperature, args.num_generations) == (0.25, 0.5, generations)
    assert script.reward_funcs == ["think_format_reward"]
