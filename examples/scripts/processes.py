"""Which of several processes this is, where a script has to know it before its trainer does."""

from __future__ import annotations

from collections.abc import Callable

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def state() -> PartialState:
    """accelerate's, started the way its Accelerator would: on CPUs if it was told so."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def once(make: Callable[[], None]) -> None:
    """Call it on the main process; the others wait until it is done."""
    if state().is_main_process:
        make()
    state().wait_for_everyone()
