"""Every run's log on disk: one JSON object a line."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

NAME = "log.jsonl"


def plain(value: Any) -> Any:
    """The value as strict JSON holds it: numbers as they are, NaN and infinities as None."""
    if hasattr(value, "tolist"):  # tensors and arrays of any shape
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; what a crash left half written is skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class LogFileCallback(TrainerCallback):
    """Appends what the trainer logs to `output_dir/log.jsonl`, on the main process.

    Each line is one strict JSON object: `step`, `time` (seconds since 1970), then the log's own
    keys; NaN and infinities are null. A line is on disk when it is logged. A run that is resumed
    first drops the lines beyond its checkpoint; a new run in the same folder starts the file anew.
    """

    def __init__(self) -> None:
        self._own_from: int | None = None  # byte at which this run's lines begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the lines up to the step that training starts from."""
        path = Path(args.output_dir) / NAME
        if not state.is_world_process_zero or not path.exists():
            return
        if state.global_step > 0:
            kept = [row for row in read_log(path) if row.get("step", 0) <= state.global_step]
            text = "".join(_line(row) for row in kept)
        else:
            own = path.stat().st_size if self._own_from is None else self._own_from
            text = path.read_bytes()[own:].decode("utf-8")
        fresh = path.with_suffix(".tmp")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
        self._own_from = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if not state.is_world_process_zero or not logs:
            return
        path = Path(args.output_dir) / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._own_from is None:
            self._own_from = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as log:
            log.write(_line({"step": state.global_step, "time": round(time.time(), 3), **logs}))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"
