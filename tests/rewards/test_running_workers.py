"""Reward functions in worker processes: what can go there, hangs, deaths, the main script."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from fastrl.rewards.running import RewardFunctions
from tests.rewards.running_calls import ROWS, UNSCORED, scoring, values  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
import worker_functions as away


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
