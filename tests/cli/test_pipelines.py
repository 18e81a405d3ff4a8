"""`fastrl ddpo` and `fastrl alignprop`: options, what is missing, and a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fastrl
from fastrl.cli import launch
from fastrl.cli.pipelines import PipelineArguments, prompts_of
from fastrl.models import diffusion

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "scripts"
REWARD = """
def red(images, prompts, metadata):
    return images[:, 0].mean(dim=(1, 2)), {}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a reward and a file of prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "taste.py").write_text(REWARD)
    (tmp_path / "prompts.txt").write_text("a red cat\n\n a blue dog \n")
    yield tmp_path
    sys.modules.pop("taste", None)


def test_what_is_missing_is_said(here, capsys):
    for command in ("ddpo", "alignprop"):
        with pytest.raises(ValueError, match="pretrained_model is needed"):
            launch.run(command, ["--prompts", "prompts.txt"])
        with pytest.raises(ValueError, match="prompts=None: give a text file"):
            launch.run(command, ["--pretrained_model", "there"])
        with pytest.raises(ValueError, match="taste has no function 'rad'"):
            words = ["--pretrained_model", "there", "--prompts", "prompts.txt"]
            launch.run(command, [*words, "--reward_function", "taste.rad"])
        with pytest.raises(SystemExit):
            launch.run(command, ["--train_batchsize", "2"])
        assert "did you mean '--train_batch_size'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="reward_function='taste' is neither aesthetic nor"):
        PipelineArguments(reward_function="taste")
    (here / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no line"):
        prompts_of("empty.txt")


def test_prompts_are_drawn_from_the_lines(here):
    draw = prompts_of("prompts.txt")
    assert {draw()[0] for _ in range(40)} == {"a red cat", "a blue dog"}
    assert draw()[1] == {}


@pytest.mark.parametrize(("words", "place"), [([], "out"), (["--logdir", "mine"], "mine")])
def test_checkpoints_go_where_they_are_sent(here, monkeypatch, words, place):
    made = []

    class Seen(fastrl.DDPOTrainer):
        def __init__(self, config, *_):
            made.append(config)
            raise InterruptedError

    monkeypatch.setattr(fastrl, "DDPOTrainer", Seen)
    monkeypatch.setattr(diffusion, "DefaultDDPOStableDiffusionPipeline", lambda *_, **__: None)
    given = ["--pretrained_model", "start", "--prompts", "prompts.txt", "--output_dir", "out"]
    with pytest.raises(InterruptedError):
        launch.run("ddpo", [*given, "--reward_function", "taste.red", *words])
    (config,) = made
    assert config.project_kwargs.get("project_dir", config.logdir) == place


@pytest.mark.slow
def test_a_run_of_each(here, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import tiny_pipeline
    from diffusers import StableDiffusionPipeline

    tiny_pipeline.save(here / "start")
    for command, more in (("ddpo", ["--sample_batch_size", "2"]), ("alignprop", [])):
        words = ["--pretrained_model", "start", "--prompts", "prompts.txt", "--use_lora", "False"]
        words += ["--reward_function", "taste.red", "--output_dir", command, "--num_epochs", "2"]
        words += ["--sample_num_steps", "2", "--mixed_precision", "no", *more]
        words += ["--accelerator_kwargs", '{"cpu": true}']
        assert launch.run(command, words) == 0
        StableDiffusionPipeline.from_pretrained(here / command)
        assert (here / command / "checkpoints" / "checkpoint_0" / "unet").is_dir()
