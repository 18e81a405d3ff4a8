"""Asynchronous reward functions, together on one event loop that lives as long as its owner.

The loop runs on a thread of its own: a notebook's main thread has a running one already, and
clients that the functions keep (sessions, connections) belong to the loop they were made on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any

from fastrl.rewards.outcome import TIMEOUT

_GRACE = 5.0  # seconds beyond the limit for the loop to say which are late
_PARTING = 2.0  # seconds for what is cancelled to tidy up


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=_PARTING))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if thread.is_alive():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PARTING)


async def _together(calls: Sequence[Awaitable[Any]], limit: float | None) -> list[Any]:
    """What each returned; `TIMEOUT` for those not done after `limit` seconds."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_EXCEPTION)
        return [task.result() if task in done else TIMEOUT for task in tasks]
    finally:
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=_PARTING)


class EventLoop:
    """An event loop on a daemon thread, begun at first use.

    What it runs sees the context variables of the thread that started it, as they were then.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: weakref.finalize | None = None

    def start(
        self, calls: Sequence[Awaitable[Any]], limit: float | None
    ) -> concurrent.futures.Future[list[Any]]:
        """Run the calls together; cancelling the future cancels them.

        Args:
            calls: at least one.
            limit: seconds after which those not done are cancelled.
        """
        if self._loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=_run, args=(loop,), name="fastrl-async-rewards", daemon=True
            )
            thread.start()
            self._loop = loop
            self._end = weakref.finalize(self, _stop, loop, thread)
        return asyncio.run_coroutine_threadsafe(_together(calls, limit), self._loop)

    def wait(
        self, running: concurrent.futures.Future[list[Any]], limit: float | None
    ) -> list[Any] | None:
        """What the calls returned, in their order, `TIMEOUT` for late ones.

        None: the loop did not keep the limit, as one of them blocks it. It is left to itself then.
        """
        try:
            return running.result(None if limit is None else limit + _PARTING + _GRACE)
        except concurrent.futures.TimeoutError:
            if running.done():  # raised by one of the calls
                raise
            running.cancel()
            self.close()
            return None

    def close(self) -> None:
        """End the loop and what runs on it; the next start begins another."""
        if self._end is not None:
            self._end()
        self._loop = self._end = None
