"""Tools, environments, and completions read as messages."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import pytest
from tool_cases import END, TEMPLATE, XML, Counter, add, chat_tokenizer, fetch, user

from fastrl.rewards.event_loop import EventLoop
from fastrl.rollout.environments import Environments, tool_methods
from fastrl.rollout.messages import MessageReader
from fastrl.rollout.tools import answer_calls, toolbox


def asks(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def answered(*calls: dict[str, Any], tools: Any = (add, fetch)) -> list[tuple[Any, bool]]:
    box = toolbox(tools)
    answers = answer_calls([(box, call) for call in calls], EventLoop())
    assert [message["role"] for message, _ in answers] == ["tool"] * len(calls)
    return [(message["content"], failed) for message, failed in answers]


def test_a_tool_is_described_by_its_hints_and_docstring():
    box = toolbox([add])
    assert box.functions == {"add": add}
    assert box.schemas[0]["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "The first."},
            "b": {"type": "integer", "description": "The second."},
        },
        "required": ["a", "b"],
    }


def test_tools_that_cannot_be():
    def bare(x):
        return x

    with pytest.raises(TypeError, match=r"tools\[1\] is \{"):
        toolbox([add, {"name": "add"}])
    with pytest.raises(ValueError, match=r"tools\[0\], 'bare', cannot be described.*docstring"):
        toolbox([bare])
    with pytest.raises(ValueError, match=r"tools\[1\] is the second tool named 'add'"):
        toolbox([add, add])


def test_calls_in_other_spellings():
    assert answered(
        asks("add", '{"a": 1, "b": 2}'),
        {"name": "add", "arguments": {"a": 2, "b": 2}},
        {"type": "function", "name": "fetch", "arguments": {"key": "x"}},
    ) == [("3", False), ("4", False), ("<x>", False)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (asks("add", "{a: 1}"), "Expecting"),
        (asks("add", [1, 2]), "mapping"),
        (asks("add", {"a": 1}), "missing"),
        (asks("add", {"a": 1, "b": "x"}), "unsupported operand"),
        (asks("fetch", {"kex": 1}), "kex"),
        (asks("sub", {}), "sub"),
        ({**asks("add", {}), "type": "retrieval"}, "retrieval"),
        ({"type": "retrieval"}, "retrieval"),
    ],
)
def test_what_goes_wrong_is_the_result(call, said):
    ((content, failed),) = answered(call)
    assert failed
    assert content.startswith("{'error': ")
    assert said in content


def test_results_are_texts_or_blocks_of_text():
    def give(what: str) -> Any:
        """Gives things.

        Args:
            what: Which.
        """
        text = {"type": "text", "text": "hi"}
        return {"list": [1, 2], "none": None, "blocks": [text], "image": [text, {"type": "image"}]}[
            what
        ]

    def given(what: str) -> Any:
        return answered(asks("give", {"what": what}), tools=[give])[0]

    assert given("list") == ("[1, 2]", False)
    assert given("none") == ("None", False)
    assert given("blocks") == ([{"type": "text", "text": "hi"}], False)
    with pytest.raises(ValueError, match="'give' gave content of type image"):
        given("image")


def test_what_ends_the_program_is_no_result():
    def stop() -> None:
        """Stops."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answered(asks("stop", {}), tools=[stop])


def test_methods_of_an_environment():
    counter = Counter()
    assert [method.__name__ for method in tool_methods(counter)] == ["count"]
    environments = Environments(Counter, [add])
    assert [tool.__name__ for tool in environments.tools] == ["add", "count"]


def test_rows_never_share_an_environment_and_episodes_begin_anew():
    made = []

    def make() -> Counter:
        made.append(Counter())
        return made[-1]

    environments = Environments(make)
    rows = [{"prompt": user("x"), "goal": goal} for goal in (1, 2, 3)]
    first, _ = environments.open(rows)
    first[1].count(5)
    second, conversations = environments.open(rows[:2])
    assert [e.goal for e in first] == [1, 2, 3]
    assert len({id(e) for e in first}) == len(made) == 3
    assert [e is f for e, f in zip(second, first, strict=False)] == [True, True]
    assert second[1].total == 0
    assert conversations == [user("x"), user("x Goal: 2.")]


class Maze:
    """Shows itself in blocks."""

    def reset(self, **row: Any) -> list[dict[str, str]]:
        self.row = row
        return [{"type": "text", "text": "map"}]

    async def get_reward(self) -> float:
        return 0.25


class Quiet:
    """Says nothing."""

    def reset(self, **row: Any) -> None:
        self.row = row


def test_environments_by_name():
    named = {"maze": Maze, "maze2": Maze, "count": Counter, "quiet": Quiet}
    environments = Environments(named)
    rows: list[dict[str, Any]] = [
        {"prompt": user("go"), "environment": "maze"},
        {"environment": "count", "goal": 2, "prompt": None},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "sum"}]}]}
        | {"environment": "count", "goal": 3},
        {"environment": "quiet", "size": 1},
    ]
    opened, conversations = environments.open(rows)
    assert [type(e) for e in opened] == [Maze, Counter, Counter, Quiet]
    assert opened[0].row == {"prompt": user("go")}
    assert opened[3].row == {"size": 1}
    blocks = [{"type": "text", "text": text} for text in ("go", "map", "sum", " Goal: 3.")]
    assert [messages[-1]["content"] for messages in conversations] == [
        blocks[:2],
        " Goal: 2.",
        blocks[2:],
        "",
    ]
    rewards = dict(environments.rewards)
    assert list(rewards) == ["Maze", "Counter"]
    assert rewards["Counter"].__name__ == "Counter"
    opened[1].count(2)
    counted = rewards["Counter"](environments=opened, prompts=[], goal=[])
    assert counted == [None, 1.0, 0.0, None]
    assert asyncio.iscoroutinefunction(rewards["Maze"])
    assert asyncio.run(rewards["Maze"](environments=opened)) == [0.25, None, None, None]
    opened[0].row = "as it was"
    with pytest.raises(ValueError, match=r"Row 1 has environment='hill'.*'maze', 'maze2', 'count'"):
        environments.open([rows[0], {"environment": "hill"}])
    with pytest.raises(TypeError, match="prompt of row 1 is 'text'"):
        environments.open([rows[0], {"environment": "maze", "prompt": "text"}])
    assert opened[0].row == "as it was"


def test_environments_that_cannot_be():
    class NoReset:
        def count(self) -> None:
            """Counts."""

    class Late(Quiet):
        async def reset(self, **row: Any) -> None: ...

    class Untold(Quiet):
        def count(self, by):
            return by

    class Odd(Quiet):
        def reset(self, **row: Any) -> int:
            return 3

    with pytest.raises(ValueError, match="gives a NoReset without"):
        Environments(NoReset)
    with pytest.raises(ValueError, match=r"environment_factory\['late'\] gives a Late without"):
        Environments({"late": Late})
    with pytest.raises(ValueError, match=r"Untold, whose public methods are tools.*underscore"):
        Environments(Untold)
    with pytest.raises(ValueError, match="second tool named 'count'"):
        Environments(Counter, [Counter().count])
    with pytest.raises(TypeError, match="environment_factory is <"):
        Environments(Quiet())
    with pytest.raises(ValueError, match="empty mapping"):
        Environments({})
    with pytest.raises(TypeError, match="reset returned 3"):
        Environments(Odd).open([{"prompt": user("x")}])


def read(tokenizer: Any, text: str, begun: str = "") -> dict[str, Any]:
    reader = MessageReader(tokenizer)
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" + begun
    ids, prefix = (tokenizer(part)["input_ids"] for part in (text, prompt))
    return reader.read(ids, prefix, toolbox([add]).schemas)


def test_arguments_written_as_tags_get_the_types_of_the_tool():
    assert XML != TEMPLATE
    written = (
        "Well.\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        "<parameter=b>\n2\n</parameter>\n</function>\n</tool_call>"
    )
    message = read(chat_tokenizer(None, XML), written + END)
    assert message == {
        "role": "assistant",
        "content": "Well.",
        "tool_calls": [asks("add", {"a": 1, "b": 2})],
    }


def test_reasoning_that_the_prompt_begins():
    message = read(chat_tokenizer(None), "hm</think>Yes." + END, begun="<think>")
    assert message == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    "broken",
    ['{"name": "add", "arguments": {"a": 1', '{"arguments": {}}', '"add"', '{"name": 3}', "[1]"],
)
def test_calls_that_are_none_are_text(broken):
    text = f"So\n<tool_call>\n{broken}\n</tool_call>"
    assert read(chat_tokenizer(), text + END) == {"role": "assistant", "content": text}


def test_arguments_left_out_are_none():
    message = read(chat_tokenizer(), '\n<tool_call>\n{"name": "add"}\n</tool_call>' + END)
    assert message["tool_calls"] == [asks("add", {})]


def test_a_completion_of_no_token():
    assert read(chat_tokenizer(), "") == {"role": "assistant", "content": ""}


def test_the_end_of_the_turn_is_no_content():
    form = {**chat_tokenizer().response_template}
    form["fields"] = {**form["fields"], "content": {"content": "text"}}
    assert read(chat_tokenizer(form), "Yes." + END)["content"] == "Yes."


def test_before_transformers_5_13():
    tokenizer = chat_tokenizer(None)
    seen = []

    def parse_response(self: Any, response: Any, schema: Any = None) -> dict[str, Any]:
        seen.append(response)
        return {"role": "assistant", "content": None, "tool_calls": [asks("add", None)]}

    tokenizer.parse_response = types.MethodType(parse_response, tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer\.response_schema = "):
        MessageReader(tokenizer)
    tokenizer.response_schema = {"type": "object"}
    message = read(tokenizer, "x" + END)
    assert message == {"role": "assistant", "content": "", "tool_calls": [asks("add", {})]}
    assert seen == [tokenizer("x" + END)["input_ids"]]
