"""The same command once for each seed: here, some at a time, or as an array job of SLURM.

    python benchmark/benchmark.py --command "python examples/scripts/ppo.py" --num-seeds 5 \\
        --start-seed 1 --workers 2

`--seed N` is appended to the command, and `{seed}` in it becomes N, so that each run can have a
folder of its own. Without `--slurm-template-path`, `--workers` runs go on at a time and each keeps
its output in a file; 0 workers only print the commands. With it, the filled template is written to
slurm/ and handed to `sbatch`, and `--workers` is the most tasks at a time (0: no limit).
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

SEED = "{seed}"
POLL = 0.05  # seconds between two looks at the runs that go on
TAIL = 2000  # bytes of a failed run's output that are shown


def flag(text: str) -> bool:
    """A word of the command line as a truth value."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def at_least(least: int) -> Callable[[str], int]:
    """A whole number not below `least`, for argparse."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return whole


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--command", required=True, help="what to run; it must know --seed")
    add("--num-seeds", type=at_least(1), default=3, help="default: %(default)s")
    add("--start-seed", type=at_least(0), default=1, help="default: %(default)s")
    add("--workers", type=at_least(0), default=0, help="runs at a time; 0 (default): print only")
    add("--auto-tag", type=flag, nargs="?", const=True, default=True,
        help="add `git describe` to WANDB_TAGS; default: %(default)s")  # fmt: skip
    add("--log-dir", type=Path, default=Path("runs/benchmark"),
        help="folder of the runs' output; default: %(default)s")  # fmt: skip
    slurm = parser.add_argument_group("SLURM")
    add = slurm.add_argument
    add("--slurm-template-path", type=Path, help="e.g. benchmark/trl.slurm_template")
    add("--slurm-nodes", type=at_least(1), help="nodes of a task; default: as SLURM decides")
    add("--slurm-ntasks", type=at_least(1), default=1, help="default: %(default)s")
    add("--slurm-gpus-per-task", type=at_least(1), default=1, help="default: %(default)s")
    add("--slurm-total-cpus", type=at_least(1), default=50,
        help="of all its GPUs together; default: %(default)s")  # fmt: skip
    given = parser.parse_args(argv)
    try:
        words = shlex.split(given.command)
    except ValueError as error:
        parser.error(f"--command {given.command!r} cannot be split into words: {error}")
    if not words:
        parser.error("--command is empty: give what is to be run for each seed")
    if "--seed" in words or any(word.startswith("--seed=") for word in words):
        parser.error("--command has a --seed of its own; give --start-seed and --num-seeds")
    return given


def words_of(command: str, seed: int) -> list[str]:
    """The command of one seed."""
    return [*(word.replace(SEED, str(seed)) for word in shlex.split(command)), "--seed", str(seed)]


def tagged(environment: dict[str, str]) -> dict[str, str]:
    """The environment with this checkout's `git describe` among the tags of Weights & Biases."""
    describe = ["git", "describe", "--tags", "--always", "--dirty"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode != 0:
        print("no tag: git describes nothing here (--auto-tag False leaves it out)")
        return environment
    tags = [*filter(None, environment.get("WANDB_TAGS", "").split(",")), done.stdout.strip()]
    print(f"WANDB_TAGS={','.join(tags)}")
    return environment | {"WANDB_TAGS": ",".join(tags)}


class Run:
    """One seed's process, its output in a file."""

    def __init__(self, seed: int, words: list[str], log: Path, environment: dict[str, str]) -> None:
        self.seed, self.log = seed, log
        self._start = time.perf_counter()
        self._process: subprocess.Popen[bytes] | None = None
        with log.open("wb") as file:
            try:
                self._process = subprocess.Popen(
                    words, stdout=file, stderr=subprocess.STDOUT, env=environment
                )
            except OSError as error:
                file.write(f"{words[0]} cannot be started: {error}\n".encode())

    def status(self) -> int | None:
        """The exit status, 127 if it did not start, None while it goes on."""
        return 127 if self._process is None else self._process.poll()

    def seconds(self) -> float:
        """On the wall since its start."""
        return time.perf_counter() - self._start

    def stop(self) -> None:
        """End it if it still goes on."""
        if self.status() is None:
            self._process.terminate()
            self._process.wait()


def run_here(given: argparse.Namespace, seeds: range, environment: dict[str, str]) -> int:
    """Run `--workers` commands at a time; 1 if one of them failed, else 0."""
    folder = given.log_dir / uuid.uuid4().hex[:8]
    folder.mkdir(parents=True)
    print(f"output in {folder}")
    waiting, running, failed, done = list(seeds), [], [], 0
    ended: list[int] = []  # by a signal, which does not come between a run and its place in a list
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        while (waiting or running) and not ended:
            while waiting and len(running) < given.workers:
                seed = waiting.pop(0)
                words = words_of(given.command, seed)
                running.append(Run(seed, words, folder / f"seed-{seed}.log", environment))
            for run in [run for run in running if run.status() is not None]:
                running.remove(run)
                done += 1
                verdict = "done" if run.status() == 0 else f"FAILED ({run.status()})"
                took = f"{run.seconds():.0f} s"
                print(f"{done}/{len(seeds)} seed {run.seed}: {verdict}, {took}", flush=True)
                if run.status() != 0:
                    failed.append(run)
            time.sleep(POLL)
    finally:
        signal.signal(signal.SIGTERM, before)
        for run in running:
            run.stop()
    if ended:
        print("ended before all seeds were done", file=sys.stderr)
        return 128 + ended[0]
    for run in failed:
        tail = run.log.read_bytes()[-TAIL:].decode(errors="replace")
        print(f"\nseed {run.seed} failed; the end of {run.log}:\n{tail}", file=sys.stderr)
    if failed:
        print(f"failed: seed {', '.join(str(run.seed) for run in failed)}", file=sys.stderr)
    return 1 if failed else 0


def shell_command(command: str) -> str:
    """The command for a shell script that has the seed in $seed."""
    if SEED not in command:
        return command
    words = []
    for word in shlex.split(command):
        if SEED in word:
            escaped = re.sub(r'([$`"\\])', r"\\\1", word).replace(SEED, "${seed}")
            words.append(f'"{escaped}"')
        else:
            words.append(shlex.quote(word))
    return " ".join(words)


def filled(template: str, given: argparse.Namespace, seeds: range) -> str:
    """The template with every `{{name}}` replaced.

    Raises:
        ValueError: if it asks for a name that is not known, or not for the command.
    """
    limit = f"%{given.workers}" if given.workers else ""
    gpus = given.slurm_gpus_per_task * given.slurm_ntasks
    values = {
        "array": f"0-{len(seeds) - 1}{limit}",
        "seeds": f"({' '.join(map(str, seeds))})",
        "len_seeds": str(len(seeds)),
        "command": shell_command(given.command),
        "gpus_per_task": str(given.slurm_gpus_per_task),
        "cpus_per_gpu": str(math.ceil(given.slurm_total_cpus / gpus)),
        "ntasks": str(given.slurm_ntasks),
        "nodes": f"#SBATCH --nodes={given.slurm_nodes}" if given.slurm_nodes else "",
    }
    asked = re.findall(r"\{\{\s*(\w+)\s*\}\}", template)
    unknown = sorted(set(asked) - values.keys())
    if unknown or "command" not in asked:
        wrong = f"asks for {', '.join(unknown)}" if unknown else "has no {{command}}"
        raise ValueError(f"{given.slurm_template_path} {wrong}; there are {', '.join(values)}")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: values[match.group(1)], template)


def submit(given: argparse.Namespace, seeds: range, environment: dict[str, str]) -> int:
    """Write the job to slurm/ and hand it to sbatch; the exit status."""
    try:
        text = filled(given.slurm_template_path.read_text(), given, seeds)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--slurm-template-path: {error}") from None
    if shutil.which("sbatch") is None:
        raise SystemExit("sbatch is not on PATH; without --slurm-template-path the runs go on here")
    Path("slurm/logs").mkdir(parents=True, exist_ok=True)
    job = Path("slurm") / f"{uuid.uuid4()}.slurm"
    job.write_text(text)
    print(f"written to {job}")
    command = ["sbatch", "--parsable", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        print(f"sbatch failed ({done.returncode}): {done.stderr.strip()}", file=sys.stderr)
        return 1
    number = done.stdout.strip().split(";")[0]
    print(f"job {number}; see squeue --job {number}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run, submit or print; 0 unless something failed."""
    given = parse(argv)
    seeds = range(given.start_seed, given.start_seed + given.num_seeds)
    for seed in seeds:
        print(shlex.join(words_of(given.command, seed)))
    environment = dict(os.environ)
    if given.slurm_template_path is None and given.workers == 0:
        print("nothing was run: give --workers, or a --slurm-template-path")
        return 0
    if given.auto_tag:
        environment = tagged(environment)
    if given.slurm_template_path is not None:
        return submit(given, seeds, environment)
    return run_here(given, seeds, environment)


if __name__ == "__main__":
    sys.exit(main())
