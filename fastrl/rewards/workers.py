"""A reward function in a process of its own, which can be ended when it hangs.

The process is a fresh interpreter. Unlike those of `multiprocessing` it runs the main script only
if the function is defined there, and both ends of the pipe are in this file. Nothing here needs
torch, so a worker starts as fast as the module of its function is imported.
"""

from __future__ import annotations

import ast
import contextlib
import json
import multiprocessing
import os
import pickle
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fastrl.rewards.answers import Log, outcomes
from fastrl.rewards.outcome import Outcome

_START_SECONDS = 600.0  # to import the function's module, or what its arguments need
_PARTING_SECONDS = 2.0  # to leave when there is no more to do
_GLANCE = 0.2  # seconds between looks at whether a worker is alive
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from fastrl.rewards.workers import serve; serve(int(sys.argv[1]))"
)


@dataclass(frozen=True)
class _Home:
    """Where a function is to be found: by its module, or in the main script."""

    name: str
    pickled: bytes
    script: str | None = None  # path of the main script
    module: str | None = None  # or its name, if it was run by `python -m`


@dataclass(frozen=True)
class _Begun:
    """The function was found, or a call of it begins."""

    at: float  # seconds of the monotonic clock, which all processes share


@dataclass(frozen=True)
class _Failure:
    """An exception, if it can be sent, and its traceback."""

    error: Exception | None
    text: str


@dataclass(frozen=True)
class Answer:
    """What a call gave."""

    outcomes: list[Outcome]
    log: Log
    seconds: float = 0.0


def _main_of(name: str) -> tuple[str | None, str | None]:
    """(path, None) or (None, module) of a main script that a worker can run again.

    Raises:
        ValueError: for a notebook or a script that would start all over.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    path = getattr(main, "__file__", None)
    if path is None or not Path(path).is_file():
        raise ValueError(
            f"reward function {name!r} is defined in a notebook or an interactive session, which a "
            "worker process cannot import; put it into a .py file and import it, or leave "
            "unset"
        )
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    guards = [node.test for node in tree.body if isinstance(node, ast.If)]
    if not any("__name__" in ast.dump(test) for test in guards):
        raise ValueError(
            f"reward function {name!r} is defined in {path}, which a worker process would run from "
            "its start; put what trains under `if __name__ == '__main__':`, or the function into "
            "a module of its own, or leave reward_timeout unset"
        )
    if spec is not None:
        return None, spec.name
    return os.path.abspath(path), None


def _home(name: str, function: Callable[..., Any]) -> _Home:
    try:
        pickled = pickle.dumps(function)
    except Exception as error:  # pickle raises whatever it stumbles on
        raise ValueError(
            f"reward function {name!r} cannot be sent to a worker process, where reward_timeout "
            f"has it run: {error}. Define it at the top of a module, not inside another function "
            "and not as a lambda, or leave reward_timeout unset"
        ) from error
    if b"__main__" not in pickled:
        return _Home(name, pickled)
    return _Home(name, pickled, *_main_of(name))


def pack(keywords: dict[str, Any]) -> bytes:
    """Keywords as they are sent to workers, which get copies.

    Raises:
        ValueError: for one that cannot be pickled, by name.
    """
    try:
        return pickle.dumps(keywords)
    except Exception:
        for name, given in keywords.items():
            try:
                pickle.dumps(given)
            except Exception as error:
                raise ValueError(
                    f"{name!r} cannot be sent to worker processes, where reward_timeout has reward "
                    f"functions run: {error}. Remove that column, or leave reward_timeout unset"
                ) from error
        raise


def _end(process: subprocess.Popen[bytes], pipe: Connection, seconds: float) -> None:
    """Let a worker leave by itself, and end it and what it started if it does not in time."""
    pipe.close()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _exit_of(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_PARTING_SECONDS)
    except subprocess.TimeoutExpired:
        return "without an exit code"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}, exit code {code}"
    return f"with exit code {code}"


class Worker:
    """One function's process: started at first use, kept until it hangs, dies or is closed.

    Args:
        name: of the function, for errors.
        function: it is pickled here, once.
        limit: seconds a call may take.

    Raises:
        ValueError: for a function that no other process can load; for a system that is not POSIX.
    """

    def __init__(self, name: str, function: Callable[..., Any], limit: float) -> None:
        if os.name != "posix":
            raise ValueError("reward_timeout needs a POSIX system, e.g. Linux; leave it unset here")
        self._name = name
        self._home = _home(name, function)
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None
        self._fresh = self._busy = False

    def start(self) -> None:
        """Start the process if there is none; it need not be ready on return."""
        if self._process is not None:
            if self._process.poll() is not None:
                self._died()
            return
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            handle = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(handle), json.dumps(sys.path)],
                pass_fds=(handle,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # it is ended with all it started
            )
        self._end = weakref.finalize(self, _end, self._process, self._pipe, _PARTING_SECONDS)
        self._send(pickle.dumps((sys.argv, self._home)))
        self._fresh = True

    def call(self, packed: bytes) -> None:
        """Begin a call with these keywords, as `pack` made them.

        Raises:
            RuntimeError: if the worker died or its module takes too long to import.
        """
        if self._fresh:
            self._fresh = False
            self._await_beginning("loading it")
        self._send(packed)
        self._busy = True

    def answer(self) -> Answer | None:
        """What the call gave; None if it took longer than the limit. Then it is ended.

        Raises:
            RuntimeError: if the worker died.
            Exception: what the function raised, from a RuntimeError with its traceback.
        """
        begun = self._await_beginning("reading its arguments")
        received = self._receive(begun + self._limit)
        if received is None:
            self.close()
            return None
        self._busy = False
        if isinstance(received, _Failure):
            self._raise(received)
        return received if received.seconds <= self._limit else None

    def close(self) -> None:
        """End the process: at once if it is at work. The next start begins another."""
        if self._end is not None and self._end.detach() is not None:
            assert self._process is not None
            _end(self._process, self._pipe, 0.0 if self._busy else _PARTING_SECONDS)
        self._process = self._end = None
        self._fresh = self._busy = False

    @property
    def busy(self) -> bool:
        """Whether a call was begun whose answer has not been taken."""
        return self._busy

    def _await_beginning(self, doing: str) -> float:
        """When the worker began; what it imports before is not counted."""
        sign = self._receive(time.monotonic() + _START_SECONDS)
        if isinstance(sign, _Begun):
            return sign.at
        self._busy = True
        self.close()
        if sign is None:
            raise RuntimeError(
                f"reward function {self._name!r}: its worker process took over "
                f"{_START_SECONDS:.0f} s for {doing}; is there long work at import?"
            )
        raise RuntimeError(
            f"reward function {self._name!r}: its worker process failed in {doing}:\n{sign.text}"
        )

    def _send(self, message: bytes) -> None:
        try:
            self._pipe.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            self._died()

    def _receive(self, deadline: float) -> Any:
        """The next message; None if there is none before the deadline."""
        assert self._process is not None
        try:
            while not self._pipe.poll(max(0.0, min(_GLANCE, deadline - time.monotonic()))):
                # What a dead worker left running may hold the pipe open.
                if self._process.poll() is not None and not self._pipe.poll():
                    self._died()
                if time.monotonic() >= deadline:
                    return None
            return pickle.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._died()

    def _died(self) -> None:
        assert self._process is not None
        how = _exit_of(self._process)
        self.close()
        raise RuntimeError(f"reward function {self._name!r}: its worker process ended {how}")

    def _raise(self, failure: _Failure) -> None:
        cause = RuntimeError(f"in the worker process of {self._name!r}:\n{failure.text}")
        if failure.error is None:
            raise cause
        raise failure.error from cause


def serve(handle: int) -> None:
    """The worker's side: load the function, then answer calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    gone = contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError)
    with Connection(handle) as pipe, gone:
        os.set_inheritable(handle, False)
        message = pipe.recv_bytes()
        try:
            sys.argv[:], home = pickle.loads(message)
            function = _loaded(home)
        except Exception as error:
            pipe.send_bytes(_failed(error))
            return
        pipe.send_bytes(_begun())
        while True:
            _answer(home.name, function, pipe)


def _leave_with(parent: int) -> None:
    """End this process once its parent is gone, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _loaded(home: _Home) -> Callable[..., Any]:
    if home.script is not None or home.module is not None:
        main = types.ModuleType("__mp_main__")
        if home.script is not None:
            found = runpy.run_path(home.script, run_name="__mp_main__")
        else:
            found = runpy.run_module(str(home.module), run_name="__mp_main__", alter_sys=True)
        main.__dict__.update(found)
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    return pickle.loads(home.pickled)


def _begun() -> bytes:
    return pickle.dumps(_Begun(time.monotonic()))


def _answer(name: str, function: Callable[..., Any], pipe: Connection) -> None:
    message = pipe.recv_bytes()
    try:
        keywords = pickle.loads(message)
    except Exception as error:
        pipe.send_bytes(_failed(error))
        return
    pipe.send_bytes(_begun())
    begun = time.monotonic()
    log = Log()
    try:
        returned = function(**keywords, log_extra=log.extra, log_metric=log.metric)
        found = outcomes(name, returned, len(keywords["completions"]))
        seconds = time.monotonic() - begun
        answer = pickle.dumps(Answer(found, log, seconds))
    except Exception as error:
        answer = _failed(error)
    sys.stdout.flush()
    pipe.send_bytes(answer)


def _failed(error: Exception) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        sent = pickle.dumps(_Failure(error, text))
        pickle.loads(sent)  # some exceptions can be pickled, but not made again
        return sent
    except Exception:
        return pickle.dumps(_Failure(None, text))
