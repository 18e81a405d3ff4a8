"""Asynchronous reward functions: together on one loop, cancelled, timed out, closed."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from pathlib import Path

import pytest

from fastrl.rewards.running import RewardFunctions
from tests.rewards.running_calls import scoring, values  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
import worker_functions as away


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
