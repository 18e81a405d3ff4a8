"""benchmark/: seeds run here and through a stand-in for SLURM; bands and tables over seeds."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = [
    *("--num-seeds", "5", "--start-seed", "1", "--workers", "10", "--slurm-nodes", "1"),
    *("--slurm-gpus-per-task", "1", "--slurm-ntasks", "1", "--slurm-total-cpus", "12"),
]
SCRIPT = "python examples/scripts/ppo.py"
COMMANDS = {
    "plain": f"{SCRIPT} --ppo_config.log_with wandb",
    "accumulation": f"{SCRIPT} --ppo_config.exp_name sentiment_tuning_step_grad_accu "
    "--ppo_config.mini_batch_size 1 --ppo_config.gradient_accumulation_steps 128 "
    "--ppo_config.log_with wandb",
    "gpt2": f"{SCRIPT} --ppo_config.exp_name sentiment_tuning_gpt2 --ppo_config.log_with wandb",
    "gpt2-xl": f"{SCRIPT} --ppo_config.exp_name sentiment_tuning_gpt2xl_grad_accu "
    "--ppo_config.model_name gpt2-xl --ppo_config.mini_batch_size 16 "
    "--ppo_config.gradient_accumulation_steps 8 --ppo_config.log_with wandb",
    "falcon": f"{SCRIPT} --ppo_config.exp_name sentiment_tuning_falcon_rw_1b "
    "--ppo_config.model_name tiiuae/falcon-rw-1b --ppo_config.log_with wandb",
    "peft": f"{SCRIPT} --ppo_config.exp_name sentiment_tuning_peft --use_peft "
    "--ppo_config.log_with wandb",
}
JOB = """\
#!/bin/bash
# One array task a seed; benchmark/benchmark.py fills in what is in double braces.
# Add the lines that your cluster asks for: a partition, an account, a time limit, modules.
#SBATCH --job-name=fastrl
#SBATCH --array=0-4%10
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-gpu=12
#SBATCH --output=slurm/logs/%x_%A_%a.out

set -eu
seeds=(1 2 3 4 5)
seed=${{seeds[$((SLURM_ARRAY_TASK_ID % 5))]}}
echo "task $SLURM_ARRAY_TASK_ID of job ${{SLURM_ARRAY_JOB_ID:-?}}: seed $seed"
srun {command} --seed "$seed"
"""


def load(name: str) -> ModuleType:
    """A module of benchmark/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"guide_{name}", ROOT / f"benchmark/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """benchmark.main, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_TAGS", raising=False)
    return load("benchmark").main


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Put a stand-in for a program on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return add


@pytest.mark.parametrize("study", COMMANDS)
def test_five_benchmark_commands_write_the_job_and_submit_it(runner, on_path, capsys, study):
    on_path("git", "echo v0.1.0-3-gabc")
    on_path("sbatch", 'echo "$@" > submitted; echo "$WANDB_TAGS" > tags; echo "4711;cluster"')
    template = ROOT / "benchmark" / "trl.slurm_template"
    line = ["--command", COMMANDS[study], *GUIDE, "--slurm-template-path", str(template)]
    assert runner(line) == 0
    (job,) = Path("slurm").glob("*.slurm")
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", job.stem)
    assert job.read_text() == JOB.format(command=COMMANDS[study])
    assert Path("submitted").read_text() == f"--parsable {job}\n"
    assert Path("tags").read_text() == "v0.1.0-3-gabc\n"
    assert Path("slurm/logs").is_dir()  # sbatch makes no folder for its output
    assert "squeue --job 4711\n" in capsys.readouterr().out


def test_each_task_of_the_job_runs_its_seed(runner, on_path):
    on_path("sbatch", "echo 1")
    on_path("srun", 'exec "$@"')
    on_path("show", 'printf "%s|" "$@"')
    command = "show --out 'a folder/$x-{seed}' --name 'two words'"
    template = ROOT / "benchmark" / "trl.slurm_template"
    line = ["--command", command, "--num-seeds", "3", "--start-seed", "7"]
    assert runner([*line, "--slurm-template-path", str(template)]) == 0
    (job,) = Path("slurm").glob("*.slurm")
    assert "#SBATCH --array=0-2\n\n#SBATCH --ntasks=1\n" in job.read_text()  # no limit, no nodes
    for task, seed in (("0", 7), ("2", 9)):
        done = subprocess.run(
            ["bash", str(job)],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": task},
            capture_output=True,
            text=True,
        )
        words = ["--out", f"a folder/$x-{seed}", "--name", "two words", "--seed", str(seed)]
        assert done.stdout.splitlines()[1].split("|")[:-1] == words


def test_a_template_of_ones_own(runner, on_path, tmp_path):
    on_path("sbatch", "exit 0")
    own = tmp_path / "own"
    own.write_text("{{array}} {{seeds}} {{ len_seeds }} {{command}} {{gpus_per_task}} "
                   "{{cpus_per_gpu}} {{ntasks}} {{nodes}}")  # fmt: skip
    line = ["--command", "run", "--num-seeds", "2", "--start-seed", "0", "--workers", "1"]
    line += ["--slurm-total-cpus", "30", "--slurm-gpus-per-task", "4", "--slurm-ntasks", "2"]
    assert runner([*line, "--slurm-nodes", "3", "--slurm-template-path", str(own)]) == 0
    (job,) = Path("slurm").glob("*.slurm")
    assert job.read_text() == "0-1%1 (0 1) 2 run 4 4 2 #SBATCH --nodes=3"


def test_what_slurm_lacks_is_said_before_anything_is_written(runner, on_path, tmp_path):
    own = tmp_path / "own"
    own.write_text("{{command}} {{gpus}}")
    line = ["--command", "run", "--slurm-template-path"]
    with pytest.raises(SystemExit, match="own asks for gpus; there are array, seeds"):
        runner([*line, str(own)])
    own.write_text("echo")
    with pytest.raises(SystemExit, match=r"own has no \{\{command\}\}"):
        runner([*line, str(own)])
    with pytest.raises(SystemExit, match="No such file"):
        runner([*line, "nowhere"])
    own.write_text("{{command}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(SystemExit, match="sbatch is not on PATH"):
            runner([*line, str(own), "--auto-tag", "False"])
    assert not Path("slurm").exists()
    on_path("sbatch", "echo no such partition >&2; exit 3")
    assert runner([*line, str(own)]) == 1


# The first run waits until a second has begun; each tells how many go on while it does.
PAIR = """
mkdir -p begun here; touch begun/$2 here/$2; n=1
for i in $(seq 200); do n=$(ls begun | wc -l); [ $n -ge 2 ] && break; sleep 0.02; done
sleep 0.1; ls here | wc -l > saw-$2; echo "tags $WANDB_TAGS"; rm here/$2
[ $n -ge 2 ]
"""


def test_workers_run_that_many_at_a_time(runner, on_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_TAGS", "mine")
    on_path("git", "echo v1")
    on_path("pair", PAIR)
    assert runner(["--command", "pair", "--num-seeds", "4", "--workers", "2"]) == 0
    seen = {seed: int(Path(f"saw-{seed}").read_text()) for seed in range(1, 5)}
    assert set(seen.values()) <= {1, 2}
    shown = capsys.readouterr().out
    assert all(f"pair --seed {seed}\n" in shown for seed in seen)
    assert shown.count(": done") == 4
    (log,) = Path("runs/benchmark").glob("*/seed-3.log")
    assert log.read_text() == "tags mine,v1\n"


def test_a_seed_that_fails_is_named_and_the_others_go_on(runner, on_path, capsys):
    on_path("odd", 'echo "out of luck with $1"; exit $(($3 % 2))')
    line = ["--command", "odd x{seed}", "--num-seeds", "3", "--workers", "1"]
    assert runner([*line, "--auto-tag", "False"]) == 1
    shown = capsys.readouterr()
    assert "1/3 seed 1: FAILED (1)" in shown.out
    assert "2/3 seed 2: done" in shown.out
    assert "out of luck with x3" in shown.err
    assert "x2" not in shown.err
    assert shown.err.endswith("failed: seed 1, 3\n")
    assert runner(["--command", "no-such-program", "--num-seeds", "1", "--workers", "1"]) == 1
    assert "no-such-program cannot be started" in capsys.readouterr().err


def test_a_runner_that_is_ended_ends_its_runs(tmp_path):
    endless = "sh -c 'echo $$ > pid-{seed}; exec sleep 300'"
    line = ["--command", endless, "--num-seeds", "1", "--workers", "1", "--auto-tag", "False"]
    runner = subprocess.Popen(
        [sys.executable, str(ROOT / "benchmark" / "benchmark.py"), *line], cwd=tmp_path
    )
    noted = tmp_path / "pid-1"
    until = time.monotonic() + 30
    while not (noted.exists() and noted.read_text().strip()) and time.monotonic() < until:
        time.sleep(0.02)
    runner.terminate()
    assert runner.wait(timeout=30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


def test_without_workers_the_commands_are_only_printed(runner, capsys):
    assert runner(["--command", "touch {seed}", "--num-seeds", "2", "--start-seed", "4"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["touch 4 --seed 4", "touch 5 --seed 5"]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--command", " "], "--command is empty"),
        (["--command", "run 'x"], "cannot be split into words"),
        (["--command", "run --seed 3"], "has a --seed of its own"),
        (["--command", "run", "--num-seeds", "0"], "0 is less than 1"),
        (["--command", "run", "--workers", "many"], "'many' is no whole number"),
        (["--command", "run", "--auto-tag", "maybe"], "neither True nor False"),
        (["--num-seeds", "2"], "--command"),
    ],
)
def test_a_wrong_flag_is_refused(runner, capsys, line, message):
    with pytest.raises(SystemExit):
        runner(line)
    assert message in capsys.readouterr().err


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three seeds of one study and one of another, which logged a step less."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmark"))
    rewards = {"plain-1": [0, 1, 2], "plain-2": [2, 3, 7], "plain-3": [1, 5], "lora-seed-1": [4, 4]}
    for name, values in rewards.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        rows = [{"step": n, "reward": v, "kl": 2 * v} for n, v in enumerate(values, 1)]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
        summary = {"after": {"reward": values[-1]}, "seconds": 40 + len(values), "text": "x"}
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "runs"


def test_results_figures_mean_and_spread_over_seeds(runs):
    import groups
    import plot

    found = groups.find([str(runs / "plain-*"), f"LoRA={runs}/lora-*"])
    assert {k: len(v) for k, v in found.items()} == {"plain": 3, "LoRA": 1}
    bands = plot.bands_of(found, ["reward", "kl"])
    # Step 1: 0, 2, 1; step 2: 1, 3, 5; step 3 is not in the third run.
    assert bands["reward"]["plain"] == plot.Band([1, 2], [1.0, 3.0], [1.0, 2.0])
    assert bands["kl"]["plain"] == plot.Band([1, 2], [2.0, 6.0], [2.0, 4.0])
    assert bands["reward"]["LoRA"] == plot.Band([1, 2], [4.0, 4.0], None)
    assert list(plot.bands_of(found, None)) == ["reward", "kl"]


def test_the_figure_has_a_band_a_group_in_each_panel(runs, monkeypatch, capsys):
    import plot
    from matplotlib.figure import Figure

    drawn, save = [], plot.save_panels
    monkeypatch.setattr(plot, "save_panels", lambda *given: (drawn.append(given), save(*given)))
    out = runs / "figures" / "study.png"
    line = [str(folder) for folder in sorted(runs.glob("*-*"))] + ["--out", str(out)]
    assert plot.main([*line, "--keys", "reward", "kl", "--titles", "reward", "KL"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes()[:4] == b"\x89PNG"
    ((_, _, panels, note),) = drawn
    assert list(panels) == ["reward", "KL"]
    assert note == "Seeds: lora 1, plain 3"
    axis = Figure().subplots()
    panels["KL"](axis, "")
    assert [line.get_label() for line in axis.lines] == ["lora", "plain"]
    assert list(axis.lines[1].get_ydata()) == [2.0, 6.0]
    (around,) = axis.collections  # one seed has no band
    edges = around.get_paths()[0].vertices
    assert {(1.0, 0.0), (1.0, 4.0), (2.0, 2.0), (2.0, 10.0)} <= {tuple(e) for e in edges}


def test_the_table_has_mean_and_deviation_over_seeds(runs, capsys):
    import table

    line = [f"baseline={runs}/plain-*", str(runs / "lora-*"), "--keys", "after/reward", "seconds"]
    assert table.main([*line, "--heads", "reward", "s"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| | reward | s | seeds |",
        "|---|---|---|---|",
        "| baseline | 4.667 ± 2.517 | 42.7 ± 0.6 | 3 |",  # 2, 7, 5 and 43, 43, 42
        "| lora | 4.000 | 42.0 | 1 |",
    ]


def test_plot_and_table_say_what_is_missing(runs):
    import plot
    import table

    plain = str(runs / "plain-*")
    for main, line, message in (
        (plot.main, ["nowhere-*", "--out", "x.png"], "nowhere-.: no folder of a run fits"),
        (plot.main, [plain, "--out", "x.png", "--keys", "rewards"], "did you mean 'reward'"),
        (table.main, [plain, "--keys", "after/rewards"], "did you mean 'after/reward'"),
        (table.main, [str(runs), "--keys", "seconds"], "has no summary.json"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(line)
    (runs / "plain-3" / "log.jsonl").write_text('{"step": 9, "reward": 1}\n')
    with pytest.raises(SystemExit, match="plain, reward: its runs have no logged step in common"):
        plot.main([plain, "--out", "x.png", "--keys", "reward"])
