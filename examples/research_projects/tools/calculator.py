"""PPO teaches a model to ask a calculator in place of guessing.

    python examples/research_projects/tools/calculator.py --log_with wandb
    python examples/research_projects/tools/calculator.py --smoke

An episode is worth 1 if it ends in the right `Result=…<submit>`, else 0.
"""

from __future__ import annotations

import ast
import operator
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
import smoke
from tool_training import SMOKE, Tasks, ToolArguments, run, tiny_model

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
SIGNS = "+-*"
PROMPT = """\
What is 17-9?

<request><SimpleCalculatorTool>17-9<call>8.0<response>

Result=8<submit>

What is 6*4?

<request><SimpleCalculatorTool>6*4<call>24.0<response>

Result=24<submit>

"""


@dataclass
class ScriptArguments(ToolArguments):
    """GPT-2 in full, and larger batches."""

    model_name: str = field(default="gpt2", metadata={"help": "Hub name or folder."})
    learning_rate: float = field(default=1.41e-5, metadata={"help": "Of Adam."})
    mini_batch_size: int = field(default=64, metadata={"help": "Rows of a backward pass."})
    batch_size: int = field(default=256, metadata={"help": "Episodes of a PPO step."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Backward passes of an optimizer step."}
    )
    max_new_tokens: int = field(default=32, metadata={"help": "Most tokens of a turn."})
    ppo_epochs: int = field(default=4, metadata={"help": "Passes over the episodes of a step."})
    iterations: int = field(default=100, metadata={"help": "PPO steps."})
    largest: int = field(default=50, metadata={"help": "Numbers are below this."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter."})
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Keep the base model in 8 bits; needs bitsandbytes."}
    )


def calculate(text: str) -> float:
    """The value of an expression of numbers, + - * / and brackets.

    Raises:
        ValueError: it holds anything else.
    """

    def value(node: Any) -> float:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return float(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        raise ValueError(f"{text!r} is more than arithmetic")

    return value(ast.parse(text.strip(), mode="eval").body)


def exact_match(answers: list[str], targets: list[int]) -> list[torch.Tensor]:
    """1 where the number that is submitted is right."""
    rewards = []
    for answer, target in zip(answers, targets, strict=True):
        found = re.search(r"Result\s*=\s*(-?\d+(?:\.\d+)?)\s*<submit>", answer)
        rewards.append(torch.tensor(float(found is not None and float(found[1]) == target)))
    return rewards


def sums(batch_size: int, largest: int, seed: int) -> Tasks:
    rng = random.Random(seed)
    while True:
        asked = [
            f"{rng.randrange(largest)}{rng.choice(SIGNS)}{rng.randrange(largest)}"
            for _ in range(batch_size)
        ]
        yield [f"What is {a}?\n\n" for a in asked], [int(calculate(a)) for a in asked]


def transcript(rng: random.Random) -> str:
    """Half of the time the tool is asked, else a number is guessed."""
    asked = f"{rng.randrange(10)}{rng.choice(SIGNS)}{rng.randrange(10)}"
    if rng.random() < 0.5:
        return f"What is {asked}?\n\nResult={rng.randrange(-9, 82)}<submit>"
    found = calculate(asked)
    call = f"<request><SimpleCalculatorTool>{asked}<call>{found}<response>"
    return f"What is {asked}?\n\n{call}\n\nResult={int(found)}<submit>"


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train and save; the mean reward of each step."""
    own = {"output_dir": "runs/calculator", "largest": 10}
    offline, args = smoke.parse((ScriptArguments,), {**SMOKE, **own}, __doc__, argv)
    prompt = PROMPT
    if offline.smoke is not None:
        args.model_name = tiny_model(offline.smoke, "SimpleCalculatorTool", transcript)
        prompt = ""  # it has read how
    tools = {"SimpleCalculatorTool": calculate}
    tasks = sums(args.batch_size, args.largest, args.seed)
    return run(args, tools, exact_match, prompt, tasks, offline.smoke is not None, max_turns=2)


if __name__ == "__main__":
    main()
