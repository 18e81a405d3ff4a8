"""Coroutines run to their end from code that is not one itself."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any


class Background:
    """An event loop on a thread of its own, started at first use.

    One loop for all calls, since clients of async libraries belong to the loop they first ran on;
    on a thread, since the caller's own may have a running loop already (a notebook's has).
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
        """Await all of them at once; their results in the order given.

        Raises:
            BaseException: the first that one of them raises.
        """
        if not awaitables:
            return []

        async def together() -> list[Any]:
            return list(await asyncio.gather(*awaitables))

        return asyncio.run_coroutine_threadsafe(together(), self._running()).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(
                target=self._loop.run_forever, name="fastrl-tools", daemon=True
            ).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return self._loop
