"""`make bench-gpu`: device time of the operations on an NVIDIA GPU, with this interpreter as it is.

Device time is the sum of a call's kernels as the profiler (CUPTI) reports them, so launches and
Python do not count; the median of several batches of calls. Inputs take turns among copies that
together are larger than the GPU's cache. `sync` says whether torch saw the call wait for the
device. TRL 1.16 is compared with where it imports.

Prints the table and writes benchmarks/results/<date>-<gpu>.md and .json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parent))

import report  # noqa: E402

Call = Callable[[], Any]
BATCHES, CALLS = 7, 8
CACHE_BYTES = 2**28  # inputs of one row together exceed any cache of today


def device_seconds(calls: list[Call]) -> float:
    """Seconds of kernel time of one call: the median over batches; calls are made in turn."""
    from torch.profiler import ProfilerActivity, profile

    for call in calls:
        call()
    torch.cuda.synchronize()
    found = []
    for _ in range(BATCHES):
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for number in range(CALLS):
                calls[number % len(calls)]()
            torch.cuda.synchronize()
        kernels = [one for one in recorded.events() if one.device_type.name == "CUDA"]
        found.append(sum(one.self_device_time_total for one in kernels) / CALLS / 1e6)
    return statistics.median(found)


def synchronises(call: Call) -> bool:
    """Whether torch saw the call wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def copies(bytes_each: int) -> int:
    """How many sets of inputs are needed to defeat the cache."""
    return max(1, min(64, CACHE_BYTES // bytes_each + 1))


def copy_bandwidth() -> float:
    """Bytes read and written per second by a device copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / device_seconds([lambda: target.copy_(source)])


def trl_logprobs() -> Callable[..., Any] | None:
    """TRL 1.16's log-probability and entropy, or None where TRL does not import."""
    try:
        from trl.trainer.utils import selective_log_softmax_and_entropy
    except ImportError:
        return None
    return selective_log_softmax_and_entropy


def logits_of(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sets of (logits bf16, targets) of `count` rows over 151936 entries."""
    vocab = 151936
    sets = []
    for _ in range(copies(2 * count * vocab)):
        logits = (3 * torch.randn(count, vocab, device="cuda")).bfloat16()
        sets.append((logits, torch.randint(vocab, (count,), device="cuda")))
    return sets


def bound(function: Callable[..., Any], sets: list[tuple]) -> list[Call]:
    """One call per set of arguments."""
    return [lambda arguments=arguments: function(*arguments) for arguments in sets]


def row(name: str, calls: list[Call], aim: str, judge: Callable[[float], tuple[str, bool]]) -> dict:
    """Measure a row. `judge(seconds)` gives the figure that the aim speaks of, and if it is met."""
    seconds = device_seconds(calls)
    figure, met = judge(seconds)
    return {
        "row": name,
        "seconds": seconds,
        "figure": figure,
        "aim": aim,
        "met": met,
        "sync": synchronises(calls[0]),
    }


def microseconds(limit: float) -> Callable[[float], tuple[str, bool]]:
    """Judges a row by its device time."""
    return lambda seconds: (f"{1e6 * seconds:.1f} µs", 1e6 * seconds <= limit)


def logprob_rows(ops: Any, bandwidth: float) -> list[dict]:
    """Large rows against the copy bandwidth, small ones against TRL 1.16's kernel."""
    large = logits_of(8192)
    size = large[0][0].numel() * 2

    def of_copy(seconds: float) -> tuple[str, bool]:
        share = size / seconds / bandwidth
        return f"{size / seconds / 1e9:.0f} GB/s, {100 * share:.0f} % of copy", share >= 0.8

    found = [
        row(
            "token_logprobs 8192x151936 bf16",
            bound(ops.token_logprobs, large),
            "≥ 80 % of copy",
            of_copy,
        )
    ]
    del large
    small = logits_of(64)
    peer = trl_logprobs()
    theirs = device_seconds(bound(peer, small)) if peer else None

    def of_trl(seconds: float) -> tuple[str, bool]:
        if theirs is None:
            return f"{1e6 * seconds:.1f} µs, TRL does not import", False
        ratio = theirs / seconds
        return f"{1e6 * seconds:.1f} µs, TRL 1.16 {1e6 * theirs:.1f} µs: {ratio:.1f}x", ratio >= 5

    calls = bound(ops.token_logprobs, small)
    found.append(row("token_logprobs 64x151936 bf16", calls, "≥ 5x TRL 1.16's kernel", of_trl))
    return found


def gae_row(ops: Any) -> dict:
    """512 × 4096, fp32, ragged masks."""
    batch, width = 512, 4096
    sets = []
    for _ in range(copies(9 * batch * width)):
        lengths = torch.randint(width // 2, width + 1, (batch, 1), device="cuda")
        mask = torch.arange(width, device="cuda")[None] < lengths
        rewards = torch.randn(batch, width, device="cuda")
        sets.append((rewards, torch.randn_like(rewards), mask, 1.0, 0.95))
    return row("gae 512x4096", bound(ops.gae, sets), "≤ 30 µs", microseconds(30))


def whiten_row(ops: Any) -> dict:
    """16 million fp32, one in four masked out."""
    sets = []
    for _ in range(copies(5 * 2**24)):
        x = torch.randn(4096, 4096, device="cuda")
        sets.append((x, torch.rand(4096, 4096, device="cuda") < 0.75))
    return row("whiten 16M, masked", bound(ops.whiten, sets), "≤ 100 µs", microseconds(100))


def installed(name: str) -> str:
    """A package's version, or that it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def document(rows: list[dict], facts: dict[str, Any]) -> str:
    """The .md file."""
    lines = [
        "| on the GPU | device time | measured | aim | met | sync |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        said = ["yes" if one[key] else "no" for key in ("met", "sync")]
        cells = [one["row"], f"{1e6 * one['seconds']:.1f} µs", one["figure"], one["aim"], *said]
        lines.append(f"| {' | '.join(cells)} |")
    listed = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return "\n\n".join(
        [
            f"# GPU benchmarks of {facts['date']}",
            "\n".join(lines),
            f"{facts['gpu']}, CUDA {facts['cuda']}, copy {facts['copy_bandwidth'] / 1e9:.0f} GB/s, "
            f"seed {facts['seed']}. {listed}.",
            "\n".join(__doc__.splitlines()[2:6]),
        ]
    )


def main() -> int:
    """Measure, print, write."""
    if not torch.cuda.is_available():
        print("no NVIDIA GPU is visible to torch; nothing is measured")
        return 1
    import fastrl
    from fastrl import ops

    seed = int(os.environ.get("FASTRL_BENCH_SEED") or int.from_bytes(os.urandom(3), "big"))
    torch.manual_seed(seed)
    with torch.no_grad():
        bandwidth = copy_bandwidth()
        rows = [gae_row(ops), *logprob_rows(ops, bandwidth), whiten_row(ops)]
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "copy_bandwidth": bandwidth,
        "seed": seed,
        "versions": {
            "fastrl": fastrl.__version__,
            **{name: installed(name) for name in ("torch", "triton", "trl")},
        },
    }
    text = document(rows, facts) + "\n"
    print(text)
    stem = HERE / "results" / f"{facts['date']}-{report.slug(facts['gpu'])}"
    stem.parent.mkdir(exist_ok=True)
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
