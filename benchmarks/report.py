"""From pytest-benchmark's JSON to the table, with versions and hardware."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

MIB = 2**20

# row -> (at least this many times faster, the limit on two cores or None)
TARGETS: dict[str, tuple[float, float | None]] = {
    "PPOTrainer.step": (2.5, 3.8),
    "Sentiment run, an iteration": (2.5, None),
    "SFTTrainer step, ragged rows": (2, 3.3),
    "SFTTrainer step, both packing": (1.5, 2.7),
    "SFTTrainer step, LoRA": (2, 4),
    "DPOTrainer step": (3, 4.7),
    "ORPOTrainer step": (2, None),
    "CPOTrainer step": (2, None),
    "GKDTrainer step": (2, None),
    "DistillationTrainer step, completions given": (2, None),
    "DistillationTrainer step, generation and all": (2, None),
    "DDPOTrainer.step": (1, None),
    "AlignPropTrainer.step": (1, None),
    "NashMDTrainer step, generation and all": (1, None),
    "XPOTrainer step, generation and all": (1, None),
    "KTOTrainer step": (2.5, 4.4),
    "RewardTrainer step": (1.7, 3),
    "GRPOTrainer step, completions given": (4, None),
    "GRPOTrainer step, completions given, prompts of 512": (6, None),
    "GRPOTrainer step, generation and all": (3.5, None),
    "Generation of 4 prompts, 8 answers each": (3, 5),
    "RLOOTrainer step, generation and all": (3.5, None),
    "SFTTrainer of 20k conversations": (2, None),
    "token_logprobs + entropy, 512x151936 fp32": (8, 25),
    "token_logprobs + entropy, 512x151936 bf16": (8, 25),
    "gae 512x1024": (4, None),
    "gae 4096x1024": (15, None),
    "whiten 16M, masked": (5, 20),
    "plan_packing of 1M lengths": (100, 360),
}
# row -> at most this share of the peer's memory
MEMORY_TARGETS = {
    "PPOTrainer.step": 0.5,
    "GRPOTrainer step, completions given": 0.5,
    "GRPOTrainer step, completions given, prompts of 512": 0.5,
    "GRPOTrainer step, generation and all": 0.5,
    "Generation of 4 prompts, 8 answers each": 0.5,
    "RLOOTrainer step, generation and all": 0.5,
}
MEMORY_TARGET = 0.6  # of every other row


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and system; no host name."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"flags\s*:\s*(.+)", text)
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "cpu": named.group(1).strip() if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [one for one in wanted if flags and one in flags.group(1).split()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes; recorded because a busy machine distorts timings."""
    return [round(value, 2) for value in os.getloadavg()]


def rows_of(benchmarks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as measured, in the table's order; those without an aim last."""
    found = {one["extra_info"]["row"]: one["extra_info"] for one in benchmarks}
    named = [row for row in TARGETS if row in found]
    return [found[row] for row in dict.fromkeys([*named, *found])]


def seconds(value: float) -> str:
    """A duration to three figures."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def times(value: float | None) -> str:
    """A ratio, or a dash."""
    return "—" if value is None else f"{value:.3g}x"


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table: medians, ratio, what was aimed at, and the limit."""
    lines = ["| | peer | fastrl | ratio | aim | limit |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(time_line(row))
        if "peer_above_bytes" in row:
            lines.append(memory_line(row))
    return "\n".join(lines)


def time_line(row: dict[str, Any]) -> str:
    """A row's medians and their ratio."""
    aim, limit = TARGETS.get(row["row"], (None, None))
    cells = [
        row["row"],
        f"{row['peer']}: {seconds(row['peer_median'])}",
        seconds(row["fastrl_median"]),
        f"{times(row['peer_median'] / row['fastrl_median'])} faster",
        times(aim),
        times(limit),
    ]
    return f"| {' | '.join(cells)} |"


def memory_line(row: dict[str, Any]) -> str:
    """A row's high-water marks and fastrl's share of the peer's."""
    cells = [
        f"{row['row']}, peak memory above the model's",
        f"{row['peer']}: {row['peer_above_bytes'] / MIB:.0f} MiB",
        f"{row['fastrl_above_bytes'] / MIB:.0f} MiB",
        times(row["fastrl_above_bytes"] / row["peer_above_bytes"]),
        f"≤ {times(MEMORY_TARGETS.get(row['row'], MEMORY_TARGET))}",
        times(None),
    ]
    return f"| {' | '.join(cells)} |"


METHOD = """\
Each side is a process in an environment of its own; rounds alternate peer, fastrl; one warm-up;
medians of the rounds; the clock runs inside the process, around the call. The peers are unmodified,
nothing is set that a user does not get, and every pair of rounds is checked to have done the same
work. Memory is the high-water mark of resident memory in the measured steps (VmHWM, reset through
clear_refs before each), less what was resident when models and trainer stood, less the optimizer's
state. A step of a trainer but PPO's is all that lies between two logs of one `trainer.train()` that
logs every step: collation, forward, backward, clipping, the optimizer, the metrics. The torch side
of an operation is what a careful user writes without a library (`benchmarks/workers/tensor_op.py`).
TRL's planner is timed without its sort by length, fastrl's with it."""


def document(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The .md file: the table, then how and on what it was measured."""
    machine = facts["hardware"]
    ours = rows[0]["fastrl_versions"] if rows else {}
    shown = {"fastrl": f"fastrl {facts['fastrl']}, {listed(ours)}"}
    for row in rows:
        shown[row["peer"]] = listed(row["peer_versions"])
    paragraphs = [
        f"# Benchmarks of {facts['date']}",
        table(rows),
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions'])}), "
        f"{machine['memory_gib']} GiB, {machine['system']}. Two threads a side.\n"
        f"Seed {facts['seed']}. Load average before and after (1, 5, 15 minutes): "
        f"{facts['load_before']}, {facts['load_after']}.",
        "\n".join(f"- {name}: {text}" for name, text in shown.items()),
        METHOD,
    ]
    return "\n\n".join(paragraphs) + "\n"


def listed(versions: dict[str, str]) -> str:
    """Versions in one line."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def slug(cpu: str) -> str:
    """A processor's name for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", cpu.lower().replace("(r)", "").replace("(tm)", "")).strip("-")
