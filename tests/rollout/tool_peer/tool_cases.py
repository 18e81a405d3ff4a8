"""Conversations with tools whose answers are written beforehand, for both libraries."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))

from chat_cases import make_tokenizer

END = "<|im_end|>"
TEMPLATE = """{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
# The same with calls as tags.
XML = TEMPLATE.replace(
    """{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\n""",
    """<function=' + call.function.name + '>\n' }}
            {%- for key, value in call.function.arguments.items() %}
                {{- '<parameter=' + key + '>\n' + value | string + '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n""",
)
# How calls are written in TEMPLATE, in transformers' notation.
FORMAT = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"},
    },
}


def chat_tokenizer(form: Any = FORMAT, template: str = TEMPLATE) -> Any:
    tokenizer = make_tokenizer(template)
    tokenizer.eos_token = END
    tokenizer.response_template = form
    return tokenizer


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def repeat(word: str, times: int) -> str:
    """Says a word several times.

    Args:
        word: What to say.
        times: How often.
    """
    return " ".join([word] * times)


def fail(why: str) -> str:
    """Fails.

    Args:
        why: What it says.
    """
    raise RuntimeError(why)


async def fetch(key: str) -> str:
    """Fetches a value.

    Args:
        key: Its key.
    """
    return f"<{key}>"


class Counter:
    """Counts up to a goal."""

    def reset(self, goal: int, **row: Any) -> str | None:
        self.goal, self.total = goal, 0
        return None if goal == 1 else f" Goal: {goal}."

    def count(self, by: int) -> int:
        """Adds to the total.

        Args:
            by: How much.
        """
        self.total += by
        return self.total

    def get_reward(self) -> float:
        return float(self.total == self.goal)

    def _hidden(self) -> None:
        raise AssertionError


def call(name: str, **arguments: Any) -> str:
    made = json.dumps({"name": name, "arguments": arguments})
    return f"\n<tool_call>\n{made}\n</tool_call>"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


LENGTH, ROUNDS = 400, 2
# name -> what the model writes, round by round
SCRIPTS = {
    "no call": ["The sum is 3." + END],
    "one call": ["Let me see." + call("add", a=1, b=2) + END, "It is 3." + END],
    "several calls": [
        call("add", a=1, b=2) + call("repeat", word="ha", times=2) + END,
        call("add", a=3, b=4) + END,
        "Done." + END,
    ],
    "raises": [call("fail", why="no luck") + END, "Sorry." + END],
    "wrong arguments": [call("add", a=1, c=2) + END, "Oh." + END],
    "awaits": [call("fetch", key="k1") + call("fetch", key="k2") + END, "Both." + END],
    "no JSON": ["\n<tool_call>\n{add 1, 2}\n</tool_call>" + END],
    "result too long": ["x" + call("repeat", word="word", times=100) + END],
    # 145 tokens as in "one call", less the 9 of its last message: 136 + 264 = LENGTH.
    "result fits": ["w" * 264 + "Let me see." + call("add", a=1, b=2) + END, "No room." + END],
    "result one too long": ["w" * 265 + "Let me see." + call("add", a=1, b=2) + END],
    "answer too long": [call("add", a=5, b=6) + END, "y" * 400 + END],
    "rounds run out": [call("add", a=k, b=k) + END for k in range(4)],
    "cut while calling": ["z" * 360 + call("add", a=1, b=2) + END],
}
ENVIRONMENT_SCRIPTS = {
    "counts": [call("count", by=2) + END, call("count", by=3) + END, "Five." + END],
    "adds too": [call("count", by=1) + call("add", a=1, b=1) + END, "One." + END],
}
GOALS = {"counts": 5, "adds too": 1}


def hashed(ids: Any) -> str:
    """Stands for a prompt in the record, which would be long."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


class Writer:
    """Writes what the script of a prompt's row says next, to the limit."""

    def __init__(self, tokenizer: Any, scripts: dict[str, list[str]]) -> None:
        self.tokenizer, self.scripts = tokenizer, scripts
        self.rounds = dict.fromkeys(scripts, 0)

    def __call__(self, prompt: Any, limit: int) -> list[int]:
        text = self.tokenizer.decode(prompt)
        (name,) = [name for name in self.scripts if f"user\n{name}" in text]
        written = self.scripts[name][self.rounds[name]]
        self.rounds[name] += 1
        return self.tokenizer(written, add_special_tokens=False)["input_ids"][:limit]


TOOLS: list[Callable[..., Any]] = [add, repeat, fail, fetch]
