"""`make bench`: make the peers' environments, run the benchmarks, print and keep the table.

    python benchmarks/run.py                 everything
    python benchmarks/run.py gae whiten      only the files whose name contains one of these

FASTRL_BENCH_SEED repeats a run's lengths and values. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import environments  # noqa: E402
import report  # noqa: E402


def chosen(words: list[str]) -> list[Path]:
    """The benchmark files whose names contain one of the words, or all."""
    files = sorted(HERE.glob("*/bench_*.py"))
    return [file for file in files if not words or any(word in file.name for word in words)]


def run_benchmarks(files: list[Path], seed: int) -> tuple[list[dict], int]:
    """pytest-benchmark's records, and pytest's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "benchmark.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            str(HERE / "pytest.ini"),
            "-q",
            "--tb=short",
        ]
        command += ["--benchmark-disable-gc", "--benchmark-columns=median,min,max,rounds"]
        command += [f"--benchmark-json={out}", *map(str, files)]
        environment = {**os.environ, "FASTRL_BENCH_SEED": str(seed)}
        status = subprocess.run(command, env=environment, cwd=HERE.parent).returncode
        return (json.loads(out.read_text())["benchmarks"] if out.exists() else []), status


def own_version() -> str:
    """fastrl's version, installed or not."""
    try:
        return version("fastrl")
    except PackageNotFoundError:
        sys.path.append(str(HERE.parent))
        import fastrl

        return fastrl.__version__


def main() -> int:
    """Run, print, write; the status is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="parts of the names of benchmark files")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    environments.make_missing()
    seed = int(os.environ.get("FASTRL_BENCH_SEED") or int.from_bytes(os.urandom(3), "big"))
    before = report.load_average()
    benchmarks, status = run_benchmarks(chosen(arguments.words), seed)
    rows = report.rows_of(benchmarks)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "fastrl": own_version(),
        "seed": seed,
        "hardware": report.hardware(),
        "load_before": before,
        "load_after": report.load_average(),
    }
    text = report.document(rows, facts)
    print(text)
    if rows and not arguments.no_write:
        parts = [facts["date"], report.slug(facts["hardware"]["cpu"]), *arguments.words]
        stem = "-".join(parts)  # a part of the rows does not replace the whole table
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        (results / f"{stem}.md").write_text(text)
        (results / f"{stem}.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
        print(f"written to benchmarks/results/{stem}.md and .json")
    return status


if __name__ == "__main__":
    sys.exit(main())
