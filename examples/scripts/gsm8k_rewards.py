"""Verifiable rewards of solutions to GSM8K: what can be checked without a model.

A solution has calculations `<<16-3-4=9>>` and ends in a line `A: 18`. From this folder they serve
the command line too: `fastrl grpo --reward_funcs gsm8k_rewards.arithmetic`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from operator import add, mul, sub, truediv
from typing import Any

CALCULATION = re.compile(r"<<([^<>=]{1,60})=([^<>=]{1,20})>>")
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
LAST_LINE = re.compile(r"A: (-?[\d,]*\.?\d+)")
OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
    ast.Div: truediv,
}

Messages = list[dict[str, str]]


def value_of(expression: str) -> float | None:
    """The value of numbers joined by + - * / and parentheses; None for anything else."""

    def walk(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return float(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](walk(node.left), walk(node.right))
        raise ValueError(expression)

    try:
        return walk(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return None


def numbers(text: str) -> list[float]:
    """Those in a text, as they come."""
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def final(text: str) -> float | None:
    """The number of the last line `A: …`; None if that is not how the text ends."""
    found = LAST_LINE.fullmatch(text.rpartition("\n")[2].strip())
    return float(found[1].replace(",", "")) if found else None


def is_right(expression: str, result: str) -> bool:
    """Whether a calculation holds, to the hundredth."""
    left, right = value_of(expression), value_of(result)
    return left is not None and right is not None and abs(left - right) <= 0.01


def answer_line(completions: list[Messages], **columns: Any) -> list[float]:
    """1.0 for a solution with one line `A: number`, the last."""
    texts = [messages[0]["content"] for messages in completions]
    return [float(final(text) is not None and text.count("A: ") == 1) for text in texts]


def arithmetic(completions: list[Messages], **columns: Any) -> list[float]:
    """The share of a solution's different calculations that hold; 0.0 without any."""
    return [_arithmetic(messages[0]["content"]) for messages in completions]


def _arithmetic(text: str) -> float:
    found = set(CALCULATION.findall(text))
    return sum(is_right(*each) for each in found) / len(found) if found else 0.0


def grounded(completions: list[Messages], question: list[str], **columns: Any) -> list[float]:
    """The share of the numbers calculated with that the problem names, or that a calculation that
    holds gave before; 0.0 without any calculation."""
    texts = [messages[0]["content"] for messages in completions]
    return [_grounded(text, asked) for text, asked in zip(texts, question, strict=True)]


def _grounded(text: str, question: str) -> float:
    known = set(numbers(question))
    marks = []
    for expression, result in CALCULATION.findall(text):
        marks += [number in known for number in numbers(expression)]
        if is_right(expression, result):
            known.update(numbers(result))
    return sum(marks) / len(marks) if marks else 0.0


def right_number(completions: list[Messages], solution: list[float], **columns: Any) -> list[float]:
    """1.0 where the last line holds the right number."""
    texts = [messages[0]["content"] for messages in completions]
    return [
        float(given is not None and abs(given - right) <= 1e-6)
        for given, right in zip(map(final, texts), solution, strict=True)
    ]
