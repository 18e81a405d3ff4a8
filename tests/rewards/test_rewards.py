"""Reward functions against what TRL 1.16 answered, and what it does not tell apart."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import sys
import threading
from pathlib import Path

import pytest

from fastrl import rewards

sys.path.insert(0, str(Path(__file__).parent))
import reward_cases as cases

RECORDED = json.loads((Path(__file__).parent / "trl_1_16.json").read_text())


def needs_math(name):
    if "accuracy" in name or "reasoning" in name or "cosine" in name:
        pytest.importorskip("math_verify")


@pytest.mark.parametrize("name", cases.CASES)
def test_as_trl_answers(name):
    needs_math(name)
    got, want = cases.answer(rewards, name), RECORDED[name]
    assert got["name"] == want["name"]
    assert got["values"] == pytest.approx(want["values"], abs=1e-12)
    assert got["extra"] == want["extra"]


def test_the_cases_tell_right_from_wrong():
    for name in ("accuracy", "accuracy_more", "reasoning", "think"):
        assert {0.0, 1.0} <= set(RECORDED[name]["values"]), name
    assert None in RECORDED["accuracy_more"]["values"]


def test_signatures_are_those_of_trl():
    for function, names in {
        "accuracy_reward": ["completions", "solution", "log_extra", "kwargs"],
        "reasoning_accuracy_reward": [
            "completions",
            "solution",
            "reasoning_delimiters",
            "log_extra",
            "kwargs",
        ],
        "think_format_reward": ["completions", "kwargs"],
        "get_cosine_scaled_reward": [
            "max_len",
            "min_value_wrong",
            "max_value_wrong",
            "min_value_correct",
            "max_value_correct",
        ],
        "get_repetition_penalty_reward": ["ngram_size", "max_penalty"],
        "get_soft_overlong_punishment": ["max_completion_len", "soft_punish_cache"],
    }.items():
        assert list(inspect.signature(getattr(rewards, function)).parameters) == names


@pytest.mark.parametrize("name", cases.CASES)
def test_they_can_be_sent_to_a_worker(name):
    function, settings, _ = cases.CASES[name]
    reward = getattr(rewards, function)
    reward = reward if settings is None else reward(**settings)
    assert pickle.loads(pickle.dumps(reward)) == reward


def test_a_timeout_is_neither_wrong_nor_invalid(monkeypatch):
    math_verify = pytest.importorskip("math_verify")
    from math_verify.errors import TimeoutException

    def late(*_, **__):
        raise TimeoutException

    columns = cases.judged([cases.ANSWERS[0]], [cases.THIRD])
    cosine = rewards.get_cosine_scaled_reward(10)
    for slow in ("verify", "parse"):
        with monkeypatch.context() as patch:
            patch.setattr(math_verify, slow, late)
            (verdict,) = rewards.accuracy_reward(**columns)
            assert verdict is not None and isinstance(verdict, rewards.Timeout)
            assert math.isnan(verdict)
            (scaled,) = cosine(**columns, completion_ids=[[1]])
            assert isinstance(scaled, rewards.Timeout)
    again = pickle.loads(pickle.dumps(rewards.TIMEOUT))
    assert isinstance(again, rewards.Timeout) and math.isnan(again)
    assert repr(again) == "TIMEOUT"


def test_what_cannot_be_compared_is_wrong(monkeypatch):
    math_verify = pytest.importorskip("math_verify")

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(math_verify, "verify", broken)
    assert rewards.accuracy_reward(**cases.judged([cases.ANSWERS[0]], [cases.THIRD])) == [0.0]


def test_off_the_main_thread():
    pytest.importorskip("math_verify")
    found = []

    def judge():
        found.append(rewards.accuracy_reward(**cases.judged(cases.ANSWERS[:2], [cases.THIRD] * 2)))

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    assert found == [[1.0, 0.0]]


def test_texts_are_judged_like_messages():
    assert rewards.think_format_reward(cases.SHAPES) == RECORDED["think"]["values"]


def test_what_is_refused(monkeypatch):
    for call, message in [
        (lambda: rewards.get_repetition_penalty_reward(max_penalty=0.5), "max_penalty must not be"),
        (
            lambda: rewards.get_repetition_penalty_reward(ngram_size=0),
            "ngram_size must be at",
        ),
        (lambda: rewards.get_cosine_scaled_reward(0), "max_len must be positive"),
        (lambda: rewards.get_soft_overlong_punishment(10, 11), "soft_punish_cache=11 must lie"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="a completion must be a text or a list of messages"):
        rewards.think_format_reward([[{"role": "assistant"}]])
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match="reasoning_accuracy_reward needs the package"):
        rewards.reasoning_accuracy_reward([], [])
