"""Reward functions: what they are called with, what they may return, no score, and their logs."""

from __future__ import annotations

import asyncio
import decimal
import fractions
import functools
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrl.rewards import TIMEOUT
from fastrl.rewards.answers import outcomes
from fastrl.rewards.running import RewardFunctions, is_async, name_of
from tests.rewards.running_calls import ROWS, UNSCORED, scoring  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
import worker_functions as away


def ones(completions, **kwargs):
    return [1.0] * len(completions)


# --- what they are called with, and their names ---------------------------------------------------


def test_they_are_given_what_trl_gives(run):
    seen = []

    def look(**keywords):
        seen.append(keywords)
        return [0.0, 1.0, 2.0]

    state, environments = object(), [object()] * 3
    run([look], trainer_state=state, solution=["x", "y", "z"], completion=[0] * 3)
    run([look], trainer_state=state, environments=environments)
    ours = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
    assert set(seen[0]) == ours | {"solution"}
    assert set(seen[1]) == ours | {"environments"}
    assert seen[0]["solution"] == ["x", "y", "z"]
    assert seen[0]["completions"] is ROWS
    assert seen[0]["trainer_state"] is state
    assert seen[1]["environments"] is environments


def test_scores_stand_in_the_order_of_the_functions(run):
    async def second(completions, **kwargs):
        await asyncio.sleep(0.01)
        return [4, 5, 6]

    found = run([away.lengths, second, ones])
    assert found.values.dtype == torch.float32
    assert found.values.tolist() == [[1, 4, 1], [2, 5, 1], [3, 6, 1]]


def test_names_are_those_of_trl():
    async def coroutine(**kwargs):
        return []

    functions = [
        ones,
        functools.partial(functools.partial(ones), a=1),
        away.Counter(0),
        coroutine,
        away.AsyncCounter(),
        lambda **kwargs: [],
    ]
    with pytest.warns(UserWarning, match="several reward functions are called ones"):
        names = RewardFunctions(functions).names
    assert names == ["ones", "ones", "Counter", "coroutine", "AsyncCounter", "<lambda>"]
    assert [is_async(f) for f in functions] == [False, False, False, True, True, False]
    assert is_async(functools.partial(coroutine, a=1))
    assert name_of(functools.partial(away.Counter(0), a=1)) == "Counter"


def test_it_is_said_which_argument_a_function_cannot_take(run):
    with pytest.raises(TypeError, match=r"'narrow'.*unexpected keyword.*\*\*kwargs"):
        run([narrow])
    with pytest.raises(TypeError, match=r"'wants'.*missing a required argument: 'solution'.*gold"):
        run([wants], gold=[1, 2, 3])


def narrow(completions):
    return [1.0] * len(completions)


def wants(completions, solution, **kwargs):
    return [1.0] * len(completions)


@pytest.mark.parametrize("name", ["prompts", "trainer_state", "log_extra", "environments"])
def test_columns_with_the_names_of_arguments_are_refused(run, name):
    functions = RewardFunctions([ones])
    with pytest.raises(ValueError, match=f"column '{name}'.*rename_column"):
        functions.score(
            prompts=ROWS, completions=ROWS, completion_ids=ROWS, trainer_state=None,
            columns={name: ROWS}, log_extra=print, log_metric=print,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"columns\['x'\] has 2 entries for 3"):
        run([ones], x=[1, 2])


@pytest.mark.parametrize(
    ("functions", "timeout", "error", "message"),
    [
        ([], None, ValueError, "at least one"),
        ([ones, "name"], None, TypeError, r"functions\[1\].*got str"),
        ([torch.nn.Linear(1, 1)], None, TypeError, r"functions\[0\].*got Linear"),
        ([ones], 0, ValueError, "timeout must be a positive number of seconds, got 0"),
        ([ones], math.nan, ValueError, "got nan"),
        ([ones], math.inf, ValueError, "got inf"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(functions, timeout, error, message):
    with pytest.raises(error, match=message):
        RewardFunctions(functions, timeout)


# --- what they return -----------------------------------------------------------------------------


@pytest.mark.filterwarnings(UNSCORED)
@pytest.mark.parametrize(
    ("returned", "want"),
    [
        ([1, True, 2.5], [1.0, 1.0, 2.5]),
        ((1, 2, 3), [1.0, 2.0, 3.0]),
        (np.array([1.0, 2.0, np.nan]), [1.0, 2.0, None]),
        (torch.tensor([1.0, 2.0, 3.0], requires_grad=True), [1.0, 2.0, 3.0]),
        (torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.bfloat16), [1.0, 2.0, 3.0]),
        ([torch.tensor(1.0), torch.tensor([2.0]), np.float32(3)], [1.0, 2.0, 3.0]),
        ([np.int64(1), np.bool_(True), fractions.Fraction(1, 4)], [1.0, 1.0, 0.25]),
        pytest.param((x for x in [1, 2, 3]), [1.0, 2.0, 3.0], id="generator"),
        ([None, math.nan, 3], [None, None, 3.0]),
    ],
    ids=str,
)
def test_numbers_of_every_kind_are_read(run, returned, want):
    found = run([lambda **kwargs: returned])
    got = [None if math.isnan(value) else value for value in found.values[:, 0].tolist()]
    assert got == want
    assert (found.invalid, found.timeouts) == ([want.count(None)], [0])


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([1.0, 2.0], ValueError, "2 rewards for 3 completions"),
        ([1.0] * 4, ValueError, "4 rewards for 3 completions"),
        ("abc", TypeError, "'abc'.*str"),
        (None, TypeError, "return statement missing"),
        (1.0, TypeError, r"1\.0 \(float\), not a list"),
        (torch.tensor(1.0), TypeError, "Tensor"),
        ({"a": 1, "b": 2, "c": 3}, TypeError, "dict"),
        ({1, 2, 3}, TypeError, "set"),
        ([1.0, "2", 3.0], TypeError, r"'2' \(str\) for completion 1"),
        ([1.0, 2.0, 1j], TypeError, "complex.*completion 2"),
        ([[1.0, 2.0], 2.0, 3.0], TypeError, r"list\) for completion 0"),
        ([torch.ones(2), 1.0, 1.0], TypeError, "Tensor.*completion 0"),
        (torch.ones(3, 2), TypeError, "completion 0"),
        ([1.0, decimal.Decimal(1), 1.0], TypeError, "Decimal.*completion 1"),
        ([1.0, math.inf, 3.0], ValueError, "inf for completion 1.*infinite"),
        ([1.0, 1e39, 3.0], ValueError, "1e.39 for completion 1.*infinite"),
    ],
    ids=str,
)
def test_anything_else_is_an_error_that_names_the_function(run, returned, error, message):
    def mine(**kwargs):
        return returned

    async def theirs(**kwargs):
        return returned

    with pytest.raises(error, match=f"'mine'.*{message}"):
        run([ones, mine])
    with pytest.raises(error, match=f"'theirs'.*{message}"):
        run([ones, theirs])


def test_a_coroutine_nobody_declared_is_an_error(run):
    async def inner(completions):
        return [1.0] * len(completions)

    with pytest.raises(TypeError, match=r"'<lambda>'.*async def"):
        run([lambda completions, **kwargs: inner(completions)])


def test_the_largest_float32_passes():
    largest = float(np.finfo(np.float32).max)
    assert outcomes("f", [largest, -largest], 2) == [largest, -largest]
    with pytest.raises(ValueError, match="infinite"):
        outcomes("f", [np.nextafter(largest, math.inf)], 1)


# --- no score -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(UNSCORED, "ignore:several reward functions")
def test_timeouts_and_invalid_rows_are_told_apart(run):
    found = run([lambda **kwargs: [TIMEOUT, None, 1.0], lambda **kwargs: [1.0, TIMEOUT, TIMEOUT]])
    assert (found.timeouts, found.invalid) == ([1, 2], [1, 0])
    assert found.values.isnan().tolist() == [[True, False], [True, True], [False, True]]


def test_a_first_batch_without_any_score_is_an_error(run):
    logged = []
    with pytest.raises(ValueError, match=r"first 3 completions \(f: 2 None or NaN, 1 timeouts\)"):
        run([_named("f", [None, math.nan, TIMEOUT])], log_metric=lambda *_: logged.append(1))
    assert logged == []


def _named(name, *batches):
    left = list(batches)

    def function(log_metric, **kwargs):
        log_metric("m", 1.0)
        return left.pop(0)

    function.__name__ = name
    return function


def test_later_batches_without_a_score_are_warned_of_once(run):
    none = [None] * 3
    functions = RewardFunctions([_named("f", [1.0, 2.0, 3.0], none, none)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(functions)
    with pytest.warns(UserWarning, match=r"3 of 3 completions have no score.*'p0'"):
        run(functions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(functions).invalid == [3]


def test_one_function_without_a_score_is_no_reason_to_stop(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run([_named("f", [None] * 3), ones]).invalid == [3, 0]


# --- logs -----------------------------------------------------------------------------------------


def test_logs_arrive_in_the_order_of_the_functions(run):
    async def first(log_extra, log_metric, **kwargs):
        await asyncio.sleep(0.05)
        log_extra("column", ["x", "y", "z"])
        return [1, 1, 1]

    def second(log_extra, log_metric, **kwargs):
        log_metric("number", 2.0)
        log_extra(column="other", values=[1, 2, 3])
        return [1, 1, 1]

    logged = []
    record = lambda name, given: logged.append((name, given))  # noqa: E731
    run([first, second], log_extra=record, log_metric=record)
    assert logged == [("column", ["x", "y", "z"]), ("number", 2.0), ("other", [1, 2, 3])]
