"""Reward functions run here, on an event loop and in processes; and what they may not return."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import fractions
import functools
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrl.rewards import TIMEOUT
from fastrl.rewards.answers import outcomes
from fastrl.rewards.running import RewardFunctions, is_async, name_of

sys.path.insert(0, str(Path(__file__).parent))
import worker_functions as away

ROWS = ["a", "bb", "ccc"]


UNSCORED = "ignore:.*have no score from any"


@pytest.fixture
def run():
    """run(functions, timeout, **columns) -> Scores; closes what it made."""
    made = []

    def score(functions, timeout=None, completions=ROWS, **given):
        if not isinstance(functions, RewardFunctions):
            functions = RewardFunctions(functions, timeout)
            made.append(functions)
        keywords = {
            "prompts": [f"p{i}" for i in range(len(completions))],
            "completions": completions,
            "completion_ids": [[1]] * len(completions),
            "trainer_state": None,
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
            "environments": None,
        }
        own = {name: given.pop(name) for name in list(given) if name in keywords}
        return functions.score(columns=given, **{**keywords, **own})

    yield score
    for functions in made:
        functions.close()


def ones(completions, **kwargs):
    return [1.0] * len(completions)


def values(scores):
    return scores.values.T.tolist()


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


# --- async ----------------------------------------------------------------------------------------


def test_asynchronous_functions_run_together_and_beside_the_others(run):
    """Each waits for what another does, so one after the other they would never end."""
    met, released = asyncio.Event(), threading.Event()

    async def opens(completions, **kwargs):
        met.set()
        released.set()
        return [1.0] * 3

    async def waits(completions, **kwargs):
        await met.wait()
        return [2.0] * 3

    def waits_here(completions, **kwargs):
        assert threading.current_thread() is threading.main_thread()
        assert released.wait(5)
        return [3.0] * 3

    assert values(run([waits, waits_here, opens])) == [[2.0] * 3, [3.0] * 3, [1.0] * 3]


def test_one_loop_serves_all_calls_until_it_is_closed(run):
    loops = []
    variable = contextvars.ContextVar("variable", default="unset")

    async def look(completions, **kwargs):
        loops.append((asyncio.get_running_loop(), variable.get()))
        return [1.0] * 3

    async def also(completions, **kwargs):
        return await look(completions)

    functions = RewardFunctions([look, also])
    variable.set("set")
    run(functions)
    run(functions)
    assert len({loop for loop, _ in loops}) == 1
    assert {seen for _, seen in loops} == {"set"}
    functions.close()
    assert loops[0][0].is_closed()
    functions.close()
    run(functions)  # begins another
    assert len({loop for loop, _ in loops}) == 2
    functions.close()


def test_an_error_in_one_cancels_the_others(run):
    cancelled = []

    async def fails(**kwargs):
        raise ZeroDivisionError("mine")

    async def endless(**kwargs):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="mine"):
        run([endless, fails])
    assert time.monotonic() - begun < 10
    assert cancelled == [1]


def test_an_error_here_cancels_what_runs_on_the_loop(run):
    cancelled = threading.Event()
    begun = threading.Event()

    async def endless(**kwargs):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    def interrupted(**kwargs):
        assert begun.wait(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([endless, interrupted])
    assert cancelled.wait(5)


def test_asynchronous_functions_keep_the_timeout(run):
    logged = []

    async def endless(log_metric, **kwargs):
        log_metric("m", 1.0)
        await asyncio.sleep(60)

    async def own(**kwargs):
        raise TimeoutError("of a connection")

    found = run([endless, away.AsyncCounter()], 0.1, log_metric=lambda *_: logged.append(1))
    assert values(found)[1] == [3.0] * 3
    assert (found.timeouts, found.invalid) == ([3, 0], [0, 0])
    assert logged == []
    with pytest.raises(TimeoutError, match="of a connection"):
        run([own], 5.0)


def test_a_function_that_blocks_the_loop_is_an_error(run, monkeypatch):
    module = sys.modules["fastrl.rewards.event_loop"]
    monkeypatch.setattr(module, "_GRACE", 0.1)
    monkeypatch.setattr(module, "_PARTING", 0.1)
    release = threading.Event()

    async def blocks(**kwargs):
        release.wait(20)

    functions = RewardFunctions([blocks, away.AsyncCounter()], 0.1)
    with pytest.raises(RuntimeError, match=r"\(blocks, AsyncCounter\).*timeout=0\.1"):
        run(functions)
    release.set()
    functions.close()


# --- processes ------------------------------------------------------------------------------------


def test_what_no_process_can_load_is_refused_at_construction():
    def inner(**kwargs):
        return []

    for function in (inner, lambda **kwargs: []):
        with pytest.raises(ValueError, match=f"'{function.__name__}'.*top of a module.*timeout"):
            RewardFunctions([function], 1.0)
    RewardFunctions([inner])


def test_what_stays_here_may_be_anything_and_comes_first(run):
    order = []

    class Model:
        in_process = True
        __name__ = "model"

        def __call__(self, completions, **kwargs):
            order.append(self.__name__)
            return torch.ones(3)

    def plain(completions, **kwargs):
        order.append("plain")
        return [2.0] * 3

    assert values(run([plain, Model()])) == [[2.0] * 3, [1.0] * 3]
    assert order == ["model", "plain"]
    assert run([Model()], 1.0).timeouts == [0]


def test_workers_are_other_processes_and_persist(run):
    functions = RewardFunctions(
        [away.whereabouts, away.count_calls, away.Counter(5), away.twice], timeout=30.0
    )
    first, second = values(run(functions)), values(run(functions))
    assert first[0] == second[0] != [os.getpid()] * 3
    assert (first[1], second[1]) == ([1.0] * 3, [2.0] * 3)
    assert (first[2], second[2]) == ([6.0] * 3, [7.0] * 3)
    assert first[3] == [2.0, 4.0, 6.0]
    assert away.CALLS == []
    functions.close()
    assert not alive(int(first[0][0]))


def alive(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.02)
    return True


@pytest.mark.filterwarnings(UNSCORED)
def test_a_worker_changes_a_copy_and_its_logs_are_passed_on(run):
    state, logged = {"step": 4}, []
    record = lambda name, given: logged.append((name, given))  # noqa: E731
    found = run(
        [away.log_and_change], 30.0, trainer_state=state, log_extra=record, log_metric=record
    )
    assert state == {"step": 4}
    assert logged == [("seen", [5, 5, 5]), ("m", 0.5)]
    assert (found.invalid, found.values[2, 0]) == ([2], 2.0)


def test_a_hung_worker_is_ended_and_begun_again(run):
    functions = RewardFunctions([away.hang_if_asked, away.count_calls], 0.5)
    assert run(functions, hang=[False] * 3).timeouts == [0, 0]
    begun = time.monotonic()
    found = run(functions, hang=[True] * 3)
    assert time.monotonic() - begun < 5
    assert found.timeouts == [3, 0]
    assert found.values[:, 0].isnan().all()
    again = run(functions, hang=[False] * 3)
    assert again.values.tolist() == [[1.0, 3.0]] * 3  # the other one was left alone
    functions.close()


def test_what_a_hung_function_started_ends_with_it(run, tmp_path):
    path = str(tmp_path / "pid")
    found = run([away.hang_with_child, away.lengths], 1.0, path=[path] * 3)
    assert found.timeouts == [3, 0]
    assert not alive(int(Path(path).read_text()))


def test_an_answer_that_comes_late_is_a_timeout(run):
    """The model that runs here meanwhile takes longer than both."""

    def slow(completions, **kwargs):
        time.sleep(1.0)
        return [1.0] * 3

    slow.in_process = True
    found = run([slow, away.late, away.lengths], 0.2)
    assert found.timeouts == [0, 3, 0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (away.leave, "'leave': its worker process ended with exit code 7"),
        (away.crash, "'crash': its worker process ended killed by SIGSEGV, exit code -11"),
    ],
)
def test_a_worker_that_dies_is_an_error(run, function, message):
    functions = RewardFunctions([away.whereabouts, function], 30.0)
    for _ in range(2):  # and the next call begins another
        with pytest.raises(RuntimeError, match=message):
            run(functions)
    functions.close()


def test_exceptions_come_back_with_their_traceback(run):
    with pytest.raises(ZeroDivisionError) as caught:
        run([away.divide], 30.0)
    assert "return [1 / 0 for _ in completions]" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match=r"(?s)'raise_picky'.*raise Picky\(1, 2\)"):
        run([away.raise_picky], 30.0)


def test_an_answer_nobody_took_is_not_that_of_the_next_call(run):
    def fails_once(completions, **kwargs):
        if completions is ROWS:
            raise KeyboardInterrupt
        return [0.0] * len(completions)

    fails_once.in_process = True
    functions = RewardFunctions([fails_once, away.lengths], 30.0)
    with pytest.raises(KeyboardInterrupt):
        run(functions)
    found = run(functions, completions=["dddd", "eeeee", "ffffff"])
    assert values(found)[1] == [4.0, 5.0, 6.0]
    functions.close()


def test_what_cannot_be_sent_is_named(run):
    with pytest.raises(ValueError, match=r"'handle' cannot be sent to worker processes"):
        run([away.lengths], 30.0, handle=[threading.Lock()] * 3)


@pytest.mark.slow
def test_a_first_call_is_not_charged_for_imports(run):
    """A column of tensors makes the worker import torch, which takes longer than this."""
    found = run([away.lengths], 0.3, weights=[torch.ones(1)] * 3)
    assert found.timeouts == [0]


def script(tmp_path, text, *arguments):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, *(arguments or [str(path)])],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["-m", "script"]], ids=["path", "module"])
def test_a_function_of_the_main_script(tmp_path, arguments):
    text = """
    from fastrl.rewards.workers import Worker, pack
    print("top", __name__)

    def mine(completions, **kwargs):
        return [float(len(c)) for c in completions]

    if __name__ == "__main__":
        worker = Worker("mine", mine, 30.0)
        worker.start()
        worker.call(pack({"completions": ["cc"]}))
        print(worker.answer().outcomes)
        worker.close()
    """
    done = script(tmp_path, text, *arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["[2.0]", "__main__", "__mp_main__", "top", "top"]


def test_a_main_script_that_would_start_all_over_is_refused(tmp_path, monkeypatch):
    main = types.ModuleType("__main__")
    exec("def mine(**kwargs): pass", main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(ValueError, match=r"'mine' is defined in a notebook .*into a \.py file"):
        RewardFunctions([main.mine], 1.0)
    path = tmp_path / "script.py"
    path.write_text("if 'main':\n    print(1)\n")
    main.__file__ = str(path)
    with pytest.raises(ValueError, match=r"'mine' is defined in .*script\.py.*if __name__ =="):
        RewardFunctions([main.mine], 1.0)
    path.write_text("if __name__ == '__main__':\n    print(1)\n")
    RewardFunctions([main.mine], 1.0)


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    """Killed, the parent cannot end them itself."""
    text = f"""
    import os, sys, threading, time
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import worker_functions as away
    from fastrl.rewards.running import RewardFunctions

    functions = RewardFunctions([away.hang_if_asked], timeout=60.0)
    def score(hang):
        return functions.score(
            prompts=["p"], completions=["cc"], completion_ids=[[1]], columns={{"hang": [hang]}},
            trainer_state=None, log_extra=print, log_metric=print,
        )
    score(False)
    print(functions._workers[0]._process.pid, flush=True)
    threading.Timer(0.5, os._exit, [3]).start()
    score(True)
    """
    done = script(tmp_path, text)
    assert done.returncode == 3, done.stderr
    time.sleep(1.5)
    assert not alive(int(done.stdout))


def test_a_worker_needs_no_torch():
    code = "import sys, fastrl.rewards.workers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
