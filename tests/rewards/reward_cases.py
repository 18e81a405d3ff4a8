"""Cases of reward functions: name of the function or its maker, settings of that, columns."""

from __future__ import annotations

from typing import Any

THIRD = r"\frac{1}{3}"
ANSWERS = [
    r"My answer is \boxed{\frac{1}{3}}",
    r"My answer is \boxed{\frac{1}{2}}",
    r"First \boxed{2}, then \boxed{\frac{1}{3}}",
    r"so $x = \frac{2}{6}$",
    "The final answer is 1/3",
    r"\boxed{\frac{1}{3}",
    "",
    r"\boxed{0.333}",
]
MORE = [
    (r"The final answer is $\boxed{5 \text{ cm}}$", "5"),
    (r"\boxed{x^2 + 2x + 1}", "$(x+1)^2$"),
    (r"\boxed{\{1, 2, 3\}}", r"$\{3, 2, 1\}$"),
    (r"\boxed{42}", "42"),
    (r"\boxed{1,234}", "1234"),
    (r"\boxed{7}", "no number here"),
    (r"\boxed{7}", ""),
    (r"$$7$$ and $$8$$", "7"),
    (r"\boxed{\sqrt{2}}", r"$2^{0.5}$"),
]
REASONED = [
    r"<think> short </think> The final answer is \boxed{\frac{1}{3}}",
    r"<think> \boxed{\frac{1}{3}} </think> The final answer is \boxed{\frac{1}{2}}",
    r"<think> partial \boxed{\frac{1}{3}} without an end",
    r"<think> a </think> b </think> \boxed{\frac{1}{3}}",
    r"a [end] \boxed{2} </think> \boxed{\frac{1}{3}}",
    "</think>",
]
SHAPES = [
    "<think>\nreasons\n</think>\nanswer",
    "<think>reasons",
    "<think><think>a</think></think>b",
    "<think>a</think>b<think>c</think>",
    " <think>a</think>b",
    "a\n<think>b</think>c",
    "<think></think>",
    "</think><think>",
    "<think>\n\na</think>\nb\n</think>",
    "",
]
IDS = [[], [1], [1, 2], [1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2, 1, 2, 9], list(range(90))]


def messages(texts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def judged(texts: list[str], solutions: list[str]) -> dict[str, Any]:
    return {"completions": messages(texts), "solution": solutions}


def lengths(*counts: int) -> list[list[int]]:
    return [[1] * count for count in counts]


_FIRST = [text for text, _ in MORE]
_SECOND = [gold for _, gold in MORE]
_TWO = judged([ANSWERS[0], ANSWERS[1], "x"] * 4, [THIRD, THIRD, "nothing"] * 4)
CASES: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any]]] = {
    "accuracy": ("accuracy_reward", None, judged(ANSWERS, [THIRD] * len(ANSWERS))),
    "accuracy_more": ("accuracy_reward", None, judged(_FIRST, _SECOND)),
    "reasoning": ("reasoning_accuracy_reward", None, judged(REASONED, [THIRD] * len(REASONED))),
    "reasoning_delimiters": (
        "reasoning_accuracy_reward",
        None,
        {
            **judged(REASONED, [THIRD] * len(REASONED)),
            "reasoning_delimiters": ["[end]", "</think>"],
        },
    ),
    "think": ("think_format_reward", None, {"completions": messages(SHAPES)}),
    "cosine": (
        "get_cosine_scaled_reward",
        {"max_len": 100},
        {**_TWO, "completion_ids": lengths(0, 0, 0, 50, 50, 50, 100, 100, 100, 130, 130, 130)},
    ),
    "cosine_bounds": (
        "get_cosine_scaled_reward",
        {
            "max_len": 70,
            "min_value_wrong": -3.0,
            "max_value_wrong": -2.0,
            "min_value_correct": 0.25,
            "max_value_correct": 4.0,
        },
        {**_TWO, "completion_ids": lengths(0, 5, 9, 17, 30, 41, 55, 69, 70, 71, 100, 3)},
    ),
    "repetition": ("get_repetition_penalty_reward", {}, {"completion_ids": IDS}),
    "repetition_pairs": (
        "get_repetition_penalty_reward",
        {"ngram_size": 2, "max_penalty": -0.5},
        {"completion_ids": IDS},
    ),
    "overlong": (
        "get_soft_overlong_punishment",
        {"max_completion_len": 100, "soft_punish_cache": 20},
        {"completion_ids": lengths(0, 79, 80, 81, 90, 99, 100, 101, 500)},
    ),
    "overlong_cliff": (
        "get_soft_overlong_punishment",
        {"max_completion_len": 10, "soft_punish_cache": 0},
        {"completion_ids": lengths(0, 9, 10, 11)},
    ),
}


def answer(rewards: Any, name: str) -> dict[str, Any]:
    """What a module of reward functions says: name of the function, values, extra columns."""
    function, settings, columns = CASES[name]
    reward = getattr(rewards, function)
    if settings is not None:
        reward = reward(**settings)
    extra: dict[str, list[Any]] = {}
    if "accuracy" in function:
        columns = {**columns, "log_extra": extra.__setitem__}
    return {
        "name": reward.__name__,
        "values": reward(prompts=["p"], trainer_state=None, **columns),
        "extra": extra,
    }
