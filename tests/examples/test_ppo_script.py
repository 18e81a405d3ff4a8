"""examples/scripts/ppo.py: every command line of the guides parses; the offline task runs."""

import importlib.machinery
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples" / "scripts"


@pytest.fixture
def parse(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import command_line
    import ppo

    wandb = types.ModuleType("wandb")  # PPOConfig asks only whether it could be imported
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    return lambda line: command_line.parse(ppo.Options, ppo.HUB_DEFAULTS, line.split(), "about")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "--log_with wandb --use_score_scaling --use_score_norm --score_clip 0.5",
            {"log_with": "wandb", "use_score_scaling": True, "use_score_norm": True}
            | {"score_clip": 0.5, "model_name": "lvwerra/gpt2-imdb"},
        ),
        (
            "--ppo_config.exp_name sentiment --ppo_config.log_with wandb "
            "--ppo_config.mini_batch_size 1 --ppo_config.gradient_accumulation_steps 16",
            {"exp_name": "sentiment", "mini_batch_size": 1, "gradient_accumulation_steps": 16},
        ),
        (
            "--ppo_config.model_name tiiuae/falcon-rw-1b --ppo_config.seed 3",
            {"model_name": "tiiuae/falcon-rw-1b", "seed": 3},
        ),
        ("--seed 7 --ppo-config.mini-batch-size 64", {"seed": 7, "mini_batch_size": 64}),
        ('--tracker_kwargs {"wandb":{"name":"x"}}', {"tracker_kwargs": {"wandb": {"name": "x"}}}),
        ("--adap_kl_ctrl False --score_clip None", {"adap_kl_ctrl": False, "score_clip": None}),
    ],
)  # fmt: skip
def test_command_lines_of_the_guides(parse, line, expected):
    _, config = parse(line)
    assert {name: getattr(config, name) for name in expected} == expected


def test_options_of_the_script(parse):
    options, _ = parse("--use_peft --lora_r 8 --use_seq2seq --dataset folder --max_steps 3")
    assert (options.use_peft, options.lora_r, options.use_seq2seq) == (True, 8, True)
    assert (options.dataset, options.max_steps) == ("folder", 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--mini_bach_size 1", "did you mean '--mini_batch_size'"),
        ("--ppo_config.sead 1", "did you mean '--ppo_config.seed'"),
        ("--kl_penalty kll", "invalid choice"),
        ("--use_peft maybe", "neither True nor False"),
        ("--tracker_kwargs {", "no JSON object"),
        ("--batch_size many", "invalid int value"),
    ],
)
def test_a_bad_flag_says_what_is_wrong(parse, capsys, line, message):
    with pytest.raises(SystemExit):
        parse(line)
    assert message in capsys.readouterr().err


@pytest.fixture
def reviews(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    for suffix, words in (("pos", "warm funny moving"), ("neg", "dull flat boring")):
        lines = [
            f"the film is {w} and it runs for {n} minutes"
            for n in range(100)
            for w in words.split()
        ]
        (folder / f"reviews.{suffix}").write_text("\n".join(lines))
    return folder  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--use_peft", "--use_score_scaling"]], ids=["full", "lora"])
def test_the_offline_task_runs(reviews, tmp_path, extra):
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPTS / "ppo.py"), "--dataset", str(reviews), "--smoke"]
    command += ["--output_dir", str(out), "--batch_size", "16", "--mini_batch_size", "8", *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert (out / "curves.png").stat().st_size > 10_000
    assert "judge P(positive)" in (out / "report.md").read_text()
    assert any((out / "checkpoint").glob("*.safetensors"))


@pytest.mark.slow
def test_help_and_a_folder_without_reviews(tmp_path):
    script = str(SCRIPTS / "ppo.py")
    shown = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert "--use_score_scaling" in shown.stdout
    assert "--ppo_config.mini_batch_size" in shown.stdout
    command = [
        sys.executable,
        script,
        "--dataset",
        str(tmp_path),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "holds no *.pos and *.neg files" in refused.stderr
