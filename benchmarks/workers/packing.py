"""The plan of best-fit-decreasing packing: `python packing.py trl|fastrl`, see protocol.py.

TRL 1.16 plans and packs in one function, `trl.data_utils._pack_bfd`. It is called unmodified on a
table of empty-typed lists with the lengths asked for, and stopped where it starts to copy rows (its
call of `pyarrow.compute.take`). The clock runs from the making of its segment tree to there, so its
sort by length is not counted; fastrl's is.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import protocol

CAPACITY = 2048


class Planned(Exception):
    """Raised in place of TRL's copying of rows."""


class StoppedCompute:
    """`pyarrow.compute` but for `take`, which notes the time and stops the caller."""

    def __init__(self, compute: Any) -> None:
        self._compute = compute

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compute, name)

    def take(self, *arguments: Any, **options: Any) -> Any:
        raise Planned(time.perf_counter())


def lengths_of(seed: list[int], count: int) -> np.ndarray:
    """Log-normal lengths between 1 and the capacity, as instruction data have."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(5.8, 0.9, count), 1, CAPACITY).astype(np.int64)


def digest(bins: Any) -> str:
    """A digest of which rows stand in which bin, in order."""
    sha = hashlib.sha256()
    sha.update(np.array([len(rows) for rows in bins], dtype=np.int64).tobytes())
    sha.update(np.array([row for rows in bins for row in rows], dtype=np.int64).tobytes())
    return sha.hexdigest()


def plan_by_trl(lengths: np.ndarray) -> tuple[float, list[list[int]]]:
    """Seconds and bins of TRL's planner."""
    import pyarrow as pa
    import pyarrow.compute
    from trl import data_utils

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.nulls(int(offsets[-1])))
    table = pa.table({"input_ids": column})
    started: list[float] = []
    tree = data_utils._SegmentTree

    class Timed(tree):
        def __init__(self, *arguments: Any) -> None:
            started.append(time.perf_counter())
            super().__init__(*arguments)

    data_utils._SegmentTree, data_utils.pc = Timed, StoppedCompute(pyarrow.compute)
    try:
        data_utils._pack_bfd(table, CAPACITY, "split")
    except Planned as stop:
        frame = stop.__traceback__
        while "bins" not in frame.tb_frame.f_locals:
            frame = frame.tb_next
        bins = [one["ids"] for one in frame.tb_frame.f_locals["bins"]]
        return stop.args[0] - started[0], bins
    finally:
        data_utils._SegmentTree, data_utils.pc = tree, pyarrow.compute
    raise RuntimeError("trl.data_utils._pack_bfd ended without calling pyarrow.compute.take")


def setup(request: dict[str, Any]) -> protocol.Round:
    """A round plans the lengths of (seed, round)."""
    plan = None
    if sys.argv[1] == "fastrl":
        plan = protocol.import_fastrl().ops.plan_packing

    def run(number: int) -> dict[str, Any]:
        lengths = lengths_of([request["seed"], number], request["count"])
        if plan is None:
            seconds, bins = plan_by_trl(lengths)
        else:
            seconds, bins = protocol.timed(lambda: plan(lengths, CAPACITY))
        return {"seconds": seconds, "bins": len(bins), "digest": digest(bins)}

    return run


if __name__ == "__main__":
    protocol.serve(setup)
