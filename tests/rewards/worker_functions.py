"""Reward functions that a worker process can import. Nothing here needs torch."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time

CALLS = []


def lengths(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def whereabouts(completions, **kwargs):
    return [os.getpid()] * len(completions)


def count_calls(completions, **kwargs):
    CALLS.append(1)
    return [len(CALLS)] * len(completions)


def hang_if_asked(completions, hang, **kwargs):
    if hang[0]:
        time.sleep(60)
    return [1.0] * len(completions)


def hang_with_child(completions, path, **kwargs):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(path[0], "w") as file:
        file.write(str(child.pid))
    time.sleep(60)


def late(completions, **kwargs):
    time.sleep(0.4)
    return [1.0] * len(completions)


def leave(completions, **kwargs):
    os._exit(7)


def crash(completions, **kwargs):
    os.kill(os.getpid(), signal.SIGSEGV)


def divide(completions, **kwargs):
    return [1 / 0 for _ in completions]


class Picky(Exception):
    """Cannot be made again from its pickle."""

    def __init__(self, one, two):
        super().__init__("picky")


def raise_picky(completions, **kwargs):
    raise Picky(1, 2)


def log_and_change(completions, trainer_state, log_extra, log_metric, **kwargs):
    trainer_state["step"] += 1
    log_extra("seen", [trainer_state["step"]] * len(completions))
    log_metric(name="m", value=0.5)
    return [None, float("nan"), 2][: len(completions)]


class Counter:
    """A function with a state, and no name of its own."""

    def __init__(self, start):
        self.start = start

    def __call__(self, completions, **kwargs):
        self.start += 1
        return [self.start] * len(completions)


class AsyncCounter:
    async def __call__(self, completions, **kwargs):
        await asyncio.sleep(0)
        return [3.0] * len(completions)


def scaled(completions, scale, **kwargs):
    return [scale * len(completion) for completion in completions]


twice = functools.partial(scaled, scale=2.0)
