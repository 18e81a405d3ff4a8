"""Callbacks: progress, logs on disk, samples and who judges them, and weights averaged
along the way."""

from __future__ import annotations

from fastrl.train.callbacks.bema import BEMACallback
from fastrl.train.callbacks.log_completions import LogCompletionsCallback
from fastrl.train.callbacks.log_file import LogFileCallback
from fastrl.train.callbacks.merge_model import MergeModelCallback
from fastrl.train.callbacks.rich_progress import RichProgressCallback
from fastrl.train.callbacks.sync_ref import SyncRefModelCallback
from fastrl.train.callbacks.weave import WeaveCallback
from fastrl.train.callbacks.win_rate import WinRateCallback

__all__ = [
    "BEMACallback",
    "LogCompletionsCallback",
    "LogFileCallback",
    "MergeModelCallback",
    "RichProgressCallback",
    "SyncRefModelCallback",
    "WeaveCallback",
    "WinRateCallback",
]
