"""PPO teaches a model to solve school problems by writing and running a Python program.

    accelerate launch examples/research_projects/tools/python_interpreter.py --log_with wandb
    python examples/research_projects/tools/python_interpreter.py --smoke

An episode is worth 1 if it ends in the right `Result=…<submit>`, else 0. The program runs in a
process of its own for a few seconds at most. That is no sandbox: it may do what you may, so train
where nothing can be lost.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import smoke
from calculator import SIGNS, calculate, exact_match, sums
from tool_training import SMOKE, ToolArguments, run, shuffled, tiny_model

from fastrl.train.script_arguments import load

SECONDS = 5  # a program may take
PROMPT = """\
Solve each problem with a short Python program that prints the answer.

Nora has 24 stamps. She gives a third of them away and buys 5. How many has she?

<request><PythonInterpreter>stamps = 24
stamps -= stamps // 3
stamps += 5
print(stamps)<call>21<response>

Result=21<submit>

A shop sells pens at 3 dollars and books at 12. What do 4 pens and 2 books cost?

<request><PythonInterpreter>print(4 * 3 + 2 * 12)<call>36<response>

Result=36<submit>

"""


@dataclass
class ScriptArguments(ToolArguments):
    """The model, the problems and PPO's settings."""

    dataset_name: str = field(
        default="openai/gsm8k",
        metadata={"help": "Hub name, or a .jsonl file with `question` and `answer`."},
    )
    n_epochs: int = field(default=32, metadata={"help": "Passes over the problems, at most."})


def interpret(program: str) -> str:
    """What a program prints, or the last line of its error.

    Raises:
        TimeoutError: it takes too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-S", "-c", program]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, cwd=folder, env={}
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not done after {SECONDS} s") from None
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output"
    return done.stdout.strip()


def problems(name: str) -> list[tuple[str, float]]:
    """(problem, the number behind `####`) of each row of GSM8K."""
    config = None if Path(name).exists() else "main"
    rows = load(name, config, split="train")
    numbers = [float(answer.split("####")[1].replace(",", "")) for answer in rows["answer"]]
    questions = [f"{question}\n\n" for question in rows["question"]]
    return list(zip(questions, numbers, strict=True))


def transcript(rng: random.Random) -> str:
    """Half of the time a program is run, else a number is guessed."""
    asked = f"{rng.randrange(10)}{rng.choice(SIGNS)}{rng.randrange(10)}"
    if rng.random() < 0.5:
        return f"What is {asked}?\n\nResult={rng.randrange(-9, 82)}<submit>"
    found = int(calculate(asked))
    call = f"<request><PythonInterpreter>print({asked})<call>{found}<response>"
    return f"What is {asked}?\n\n{call}\n\nResult={found}<submit>"


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train and save; the mean reward of each step."""
    own = {"output_dir": "runs/python_interpreter", "iterations": 8}
    offline, args = smoke.parse((ScriptArguments,), {**SMOKE, **own}, __doc__, argv)
    tools = {"PythonInterpreter": interpret}
    if offline.smoke is not None:
        args.model_name = tiny_model(offline.smoke, "PythonInterpreter", transcript)
        tasks = sums(args.batch_size, 10, args.seed)
        return run(args, tools, exact_match, "", tasks, True, max_turns=2)
    rows = problems(args.dataset_name)
    args.iterations = min(args.iterations, args.n_epochs * len(rows) // args.batch_size)
    tasks = shuffled(rows, args.batch_size, args.seed)
    return run(args, tools, exact_match, PROMPT, tasks, False, max_turns=2)


if __name__ == "__main__":
    main()
