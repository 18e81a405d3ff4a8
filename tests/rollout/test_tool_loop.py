"""Answers in rounds: equal to TRL's on recorded cases, and what TRL leaves to chance."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from chat_cases import TEMPLATES, make_tokenizer
from tool_cases import (
    END,
    ENVIRONMENT_SCRIPTS,
    FORMAT,
    GOALS,
    LENGTH,
    ROUNDS,
    SCRIPTS,
    TEMPLATE,
    TOOLS,
    Counter,
    Writer,
    add,
    call,
    chat_tokenizer,
    fail,
    fetch,
    hashed,
    repeat,
    user,
)

from fastrl.rollout import Completion
from fastrl.rollout.environments import Environments
from fastrl.rollout.tool_loop import Episode, ToolLoop

RECORDED = json.loads(Path(__file__).with_name("tool_peer").joinpath("recorded.json").read_text())


class Generator:
    """Completes by a script; keeps what it was asked for."""

    def __init__(self, tokenizer: Any, scripts: dict[str, list[str]], logp: bool = True) -> None:
        self.write = Writer(tokenizer, scripts)
        self.logp = logp
        self.asked: list[tuple[list[tuple[int, ...]], list[int]]] = []

    def __call__(self, prompts: list[tuple[int, ...]], limits: list[int]) -> list[Completion]:
        self.asked.append((prompts, limits))
        completions = []
        for prompt, limit in zip(prompts, limits, strict=True):
            ids = tuple(self.write(prompt, limit))
            logp = tuple(-0.5 - i for i in range(len(ids))) if self.logp else None
            completions.append(Completion(ids, None, logp, "eos"))
        return completions


def loop_of(
    scripts: dict[str, list[str]], tools: Any = TOOLS, tokenizer: Any = None, **more: Any
) -> tuple[ToolLoop, Generator]:
    tokenizer = tokenizer or chat_tokenizer()
    generate = Generator(tokenizer, scripts)
    options = {"max_iterations": None, "max_completion_length": LENGTH, **more}
    options.setdefault("chat_template_kwargs", {})
    return ToolLoop(tokenizer, tools, generate=generate, **options), generate


def run_one(*written: str, tools: Any = TOOLS, **more: Any) -> Episode:
    loop, _ = loop_of({"ask": list(written)}, tools, **more)
    return loop.run([user("ask")])[0]


def texts(episode: Episode, tokenizer: Any) -> list[tuple[bool, str]]:
    """Runs of tokens that the model wrote, or did not."""
    runs: list[tuple[bool, list[int]]] = []
    for token, written in zip(episode.completion_ids, episode.written, strict=True):
        if not runs or runs[-1][0] != written:
            runs.append((written, []))
        runs[-1][1].append(token)
    return [(written, tokenizer.decode(ids)) for written, ids in runs]


def check_equal(part: str, scripts: dict[str, list[str]], episodes: list[Episode]) -> None:
    """The same tokens, masks, messages and frequencies as TRL's."""
    recorded = RECORDED[part]
    for name, episode in zip(scripts, episodes, strict=True):
        row = recorded["rows"][name]
        assert hashed(episode.prompt_ids) == row["prompt"], name
        assert list(episode.completion_ids) == row["completion"], name
        assert [int(x) for x in episode.written] == row["mask"], name
        assert episode.messages == row["messages"], name
    calls = sum(e.calls for e in episodes)
    failures = sum(e.failures for e in episodes)
    assert calls / len(episodes) == pytest.approx(recorded["call_frequency"])
    assert failures / calls == pytest.approx(recorded["failure_frequency"])


def test_tools_as_in_trl():
    loop, _ = loop_of(SCRIPTS, max_iterations=ROUNDS)
    check_equal("tools", SCRIPTS, loop.run([user(name) for name in SCRIPTS]))


def test_environments_as_in_trl():
    environments = Environments(Counter, [add])
    rows = [{"prompt": user(name), "goal": GOALS[name]} for name in ENVIRONMENT_SCRIPTS]
    opened, conversations = environments.open(rows)
    loop, _ = loop_of(ENVIRONMENT_SCRIPTS, [add], max_iterations=ROUNDS)
    episodes = loop.run(conversations, opened)
    check_equal("environments", ENVIRONMENT_SCRIPTS, episodes)
    assert rows[0]["prompt"] == user("counts")  # as it was
    assert conversations == [user("counts Goal: 5."), user("adds too")]


def test_what_the_model_wrote_and_what_tools_said():
    first, last = "So:" + call("add", a=1, b=2) + END, "3!" + END
    episode = run_one(first, last)
    # By hand: the template's own text between two turns.
    between = (
        "\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert texts(episode, chat_tokenizer()) == [(True, first), (False, between), (True, last)]
    assert episode.logp is not None
    assert len(episode.logp) == len(episode.completion_ids)
    drawn = [p for p, written in zip(episode.logp, episode.written, strict=True) if written]
    wrote = [len(chat_tokenizer()(t)["input_ids"]) for t in (first, last)]
    assert drawn == [-0.5 - i for n in wrote for i in range(n)]
    assert all(math.isnan(p) for p, w in zip(episode.logp, episode.written, strict=True) if not w)


def test_rounds_draw_for_open_rows_at_once_within_what_is_left():
    scripts = {
        "short": ["No." + END],
        "once": [call("add", a=1, b=2) + END, "3" + END],
        "twice": [call("add", a=k, b=2) + END for k in (1, 2)] + ["4" + END],
    }
    loop, generate = loop_of(scripts)
    episodes = loop.run([user(name) for name in scripts])
    assert [len(prompts) for prompts, _ in generate.asked] == [3, 2, 1]
    assert generate.asked[0][1] == [LENGTH] * 3
    for prompts, limits in generate.asked[1:]:
        for prompt, limit in zip(prompts, limits, strict=True):
            (episode,) = [
                e for e in episodes if (*e.prompt_ids, *e.completion_ids)[: len(prompt)] == prompt
            ]
            assert len(prompt) - len(episode.prompt_ids) + limit == LENGTH


def test_no_such_tool_is_a_failure_the_model_reads():
    episode = run_one(call("nothing", x=1) + END, "Oh." + END)
    assert (episode.calls, episode.failures) == (1, 1)
    told = episode.messages[1]
    assert (told["role"], told["name"]) == ("tool", "nothing")
    assert "'error'" in told["content"]
    assert "add" in told["content"]  # says what there is


def test_results_stand_in_the_order_of_the_calls():
    written = call("fetch", key="k") + call("fail", why="bad") + call("add", a=1, b=1)
    episode = run_one(written + END, "." + END)
    results = [m["content"] for m in episode.messages if m["role"] == "tool"]
    assert results == ["<k>", "{'error': 'bad'}", "2"]
    assert (episode.calls, episode.failures) == (3, 1)


def test_coroutines_of_a_round_run_together_on_one_loop_even_within_another():
    loops = []
    meeting: list[Any] = []

    async def meet(key: str) -> str:
        """Waits for the others.

        Args:
            key: Its name.
        """
        loops.append(asyncio.get_running_loop())
        if not meeting:
            meeting.append(asyncio.Barrier(2))
        await asyncio.wait_for(meeting[0].wait(), 5)
        if key == "b":
            raise KeyError(key)
        return key

    scripts = {"x": [call("meet", key="a") + END, "." + END]}
    scripts["y"] = [call("meet", key="b") + END, "." + END]
    loop, _ = loop_of(scripts, [meet])

    async def notebook() -> list[Episode]:
        return loop.run([user("x"), user("y")])

    x, y = asyncio.run(notebook())
    assert (x.messages[1]["content"], y.messages[1]["content"]) == ("a", "{'error': \"'b'\"}")
    assert (x.failures, y.failures) == (0, 1)
    assert len(set(loops)) == 1


def test_logp_that_is_not_known_is_none():
    loop, generate = loop_of({"ask": [call("add", a=1, b=2) + END, "3" + END]})
    generate.logp = False
    (episode,) = loop.run([user("ask")])
    assert episode.logp is None
    assert len(episode.written) == len(episode.completion_ids)


def test_results_leave_room_in_the_context():
    written = [call("add", a=1, b=2) + END, "3" + END]
    whole = run_one(*written)
    length = len(whole.prompt_ids) + len(whole.completion_ids)
    answer = len(chat_tokenizer()(written[1])["input_ids"])
    fits = run_one(*written, max_completion_length=None, max_model_length=length - answer + 1)
    assert [m["role"] for m in fits.messages] == ["assistant", "tool", "assistant"]
    assert fits.completion_ids == whole.completion_ids[: len(whole.completion_ids) - answer + 1]
    short = run_one(*written, max_completion_length=None, max_model_length=length - answer)
    assert [m["role"] for m in short.messages] == ["assistant"]
    assert all(short.written)
    assert short.calls == 1
    with pytest.raises(ValueError, match=r"conversations\[0\] has \d+ tokens"):
        run_one(*written, max_model_length=len(whole.prompt_ids))


def test_no_round_answers_no_call():
    episode = run_one(call("add", a=1, b=2) + END, max_iterations=0)
    assert (episode.calls, len(episode.messages), all(episode.written)) == (0, 1, True)


def test_processes_in_step_draw_equally_often():
    agreed: list[bool] = []

    def anyone(here: bool) -> bool:
        agreed.append(here)
        return len(agreed) <= 4  # another process has two rounds

    loop, generate = loop_of({"ask": ["Hi." + END]}, anyone=anyone)
    loop.run([user("ask")])
    assert agreed == [False] * 5
    assert [len(prompts) for prompts, _ in generate.asked] == [1, 0, 0]


def test_a_stop_before_the_end_of_turn_is_closed_by_the_template():
    tokenizer = make_tokenizer(TEMPLATE, ("<|endoftext|>", "<|im_start|>", END, "</tool_call>"))
    tokenizer.eos_token = END
    tokenizer.response_template = FORMAT
    loop, _ = loop_of({"ask": [call("add", a=1, b=2), "3" + END]}, tokenizer=tokenizer)
    (episode,) = loop.run([user("ask")])
    assert texts(episode, tokenizer)[1][1].startswith(END + "\n<|im_start|>user")


def test_the_end_of_turn_that_was_written_need_not_be_the_tokenizers():
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    loop, _ = loop_of({"ask": [call("add", a=1, b=2) + END, "3" + END]}, tokenizer=tokenizer)
    (episode,) = loop.run([user("ask")])
    assert texts(episode, tokenizer)[1][1].startswith("\n<|im_start|>user")


# As Qwen3's: an empty block of reasoning in the last turn alone.
FORGETFUL = TEMPLATES["qwen"][0].replace(
    "loop.last or loop.index0 > seen.query", "loop.index0 > seen.query and (loop.last or thought)"
)
COUNTING = TEMPLATE.replace(
    "message.role + '\n' + message.content", "message.role ~ messages | length ~ message.content"
)


def test_a_template_that_changes_earlier_turns_is_replaced():
    assert TEMPLATES["qwen"][0] != FORGETFUL
    tokenizer = chat_tokenizer(template=FORGETFUL)
    loop, _ = loop_of({"ask": [call("add", a=1, b=2) + END, "3" + END]}, tokenizer=tokenizer)
    assert loop.chat_template is not None
    (episode,) = loop.run([user("ask")])
    assert texts(episode, tokenizer)[1][1] == (
        "\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.chat_template == FORGETFUL


def test_a_template_that_nothing_mends_is_refused():
    assert COUNTING != TEMPLATE
    with pytest.raises(ValueError, match="template"):
        loop_of({}, tokenizer=chat_tokenizer(template=COUNTING))


def test_a_turn_that_changes_when_its_result_comes_is_shown():
    moody = TEMPLATE.replace(
        "message.role + '\n' + message.content",
        "message.role + ('!' if messages[-1].content == '3' else '') + '\n' + message.content",
    )
    assert moody != TEMPLATE
    written = [call("add", a=1, b=k) + END for k in (1, 2)]
    loop, generate = loop_of({"ask": written}, tokenizer=chat_tokenizer(template=moody))
    with pytest.raises(ValueError, match=r"(?s)<\|im_start\|>assistant\n.*With:.*assistant!\n"):
        loop.run([user("ask")])
    assert len(generate.asked) == 2  # the first result, 2, was well


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (make_tokenizer(TEMPLATES["chatml"][0]), r"does not print calls.*tokenizer\.chat_template"),
        (make_tokenizer(None), r"tokenizer\.chat_template"),
        (
            chat_tokenizer(
                None, TEMPLATE.replace("<tool_call>", "<<").replace("</tool_call>", ">>")
            ),
            r"tokenizer\.response_template = ",
        ),
    ],
)
def test_what_cannot_be_rendered_or_read_is_refused(tokenizer, said):
    with pytest.raises(ValueError, match=said):
        loop_of({}, tokenizer=tokenizer)


def test_transformers_format_is_found_by_reading_a_call_back():
    tokenizer = chat_tokenizer(None)
    loop, _ = loop_of({"ask": [call("add", a=1, b=2) + END, "3" + END]}, tokenizer=tokenizer)
    (episode,) = loop.run([user("ask")])
    assert episode.messages[1]["content"] == "3"
    assert tokenizer.response_template is None  # the user's tokenizer stays as it is


def test_a_format_that_reads_no_call_is_said():
    form = {**FORMAT, "fields": {"content": FORMAT["fields"]["content"]}}
    with pytest.warns(UserWarning, match="response_template"):
        loop_of({}, tokenizer=chat_tokenizer(form))


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"max_iterations": -1}, "max_iterations is -1"),
        ({"max_completion_length": 0}, "max_completion_length is 0"),
        ({"max_completion_length": None}, "max_model_length"),
    ],
)
def test_bounds(bounds, said):
    with pytest.raises(ValueError, match=said):
        loop_of({}, **bounds)


def test_prompts_that_are_no_conversations():
    loop, generate = loop_of({})
    for prompt in ("text", [], ["text"]):
        with pytest.raises(TypeError, match=r"conversations\[0\]"):
            loop.run([prompt])
    with pytest.raises(ValueError, match="0 entries for 1"):
        loop.run([user("x")], [])
    assert generate.asked == []


def test_a_generator_beyond_its_limit_is_refused():
    loop, _ = loop_of({})
    loop._generate = lambda prompts, limits: [Completion((5,) * 999, None, None, "length")]
    with pytest.raises(ValueError, match="999 tokens where 400"):
        loop.run([user("x")])


def test_the_fixture_covers_the_tools():
    assert {add, repeat, fail, fetch} == set(TOOLS)
    assert set(RECORDED["tools"]["rows"]) == set(SCRIPTS)
