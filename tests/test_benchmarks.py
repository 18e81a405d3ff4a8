"""The benchmarks' own machinery: the table says what was measured, both sides do the same work."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def measured(row: str, peer: float, ours: float, **more: Any) -> dict[str, Any]:
    """What a benchmark stores for a row."""
    versions = {"torch": "2.13.0"}
    medians = {"peer_median": peer, "fastrl_median": ours}
    named = {"row": row, "peer": "torch", "peer_versions": versions, "fastrl_versions": versions}
    return {"extra_info": {**named, **medians, **more}}


def test_the_table_shows_ratio_and_aim_in_the_issues_order() -> None:
    report = load("report")
    memory = {"peer_above_bytes": 1000 * 2**20, "fastrl_above_bytes": 250 * 2**20}
    rows = report.rows_of(
        [measured("gae 512x1024", 0.05, 0.005), measured("PPOTrainer.step", 20.0, 8.0, **memory)]
    )
    lines = report.table(rows).splitlines()[2:]
    assert lines[0] == "| PPOTrainer.step | torch: 20 s | 8 s | 2.5x faster | 2.5x | 3.8x |"
    assert "1000 MiB | 250 MiB | 0.25x | ≤ 0.5x" in lines[1]
    assert lines[2] == "| gae 512x1024 | torch: 50 ms | 5 ms | 10x faster | 4x | — |"


def test_every_memory_line_names_its_row_and_its_own_aim() -> None:
    report = load("report")
    memory = {"peer_above_bytes": 1000 * 2**20, "fastrl_above_bytes": 300 * 2**20}
    rows = report.rows_of([measured("DPOTrainer step", 4.0, 1.0, **memory)])
    lines = report.table(rows).splitlines()[2:]
    assert lines[0] == "| DPOTrainer step | torch: 4 s | 1 s | 4x faster | 3x | 4.7x |"
    assert lines[1].startswith("| DPOTrainer step, peak memory above the model's | torch: 1000 MiB")
    assert "| 300 MiB | 0.3x | ≤ 0.6x |" in lines[1]


def test_a_processor_name_becomes_a_file_name() -> None:
    assert load("report").slug("Intel(R) Xeon(R) CPU @ 2.0GHz") == "intel-xeon-cpu-2-0ghz"


def test_a_named_interpreter_is_used_in_place_of_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = load("environments")
    peer = environments.PEERS[0]
    monkeypatch.setenv(peer.variable, str(tmp_path / "python"))
    assert not peer.ready
    (tmp_path / "python").touch()
    assert peer.ready
    assert peer.python == tmp_path / "python"


def test_an_environment_that_lacks_what_was_added_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = load("environments")
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    peer = environments.Peer("peer", "FASTRL_BENCH_UNSET", ("one==1", "two"))
    peer.folder.mkdir(parents=True)
    for made, ready in (("", False), ("one==1\n", False), ("one==1\ntwo\n", True)):
        (peer.folder / "complete").write_text(made)
        assert peer.ready is ready


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "gae", "shape": [5, 7]},
        {"operation": "whiten", "shape": [9, 11]},
        {"operation": "segment_attention", "shape": [2, 3, 5, 7]},
        {"operation": "token_logprobs", "shape": [6, 97], "dtype": "float32"},
    ],
    ids=lambda request: request["operation"],
)
def test_torch_and_fastrl_workers_compute_the_same(request_: dict[str, Any]) -> None:
    race = load("race")
    answers = []
    for library in ("torch", "fastrl"):
        request = {"seed": 3, **request_}
        with race.Worker(Path(sys.executable), "tensor_op.py", library, request) as worker:
            answers.append(worker.ask({"round": 0}))
    for want, got in zip(answers[0]["samples"], answers[1]["samples"], strict=True):
        assert got == pytest.approx(want, rel=1e-4, abs=1e-4)
    assert all(answer["seconds"] > 0 for answer in answers)


@pytest.mark.slow
def test_the_ppo_worker_measures_a_step() -> None:
    race = load("race")
    request = {"seed": 3, "vocab": 256}
    with race.Worker(Path(sys.executable), "ppo_step.py", "fastrl", request) as worker:
        answer = worker.ask({"round": 0})
    assert answer["seconds"] > 0
    assert answer["above_bytes"] > 0
    assert 16 <= answer["numbers"]["tokens/responses_len_mean"] <= 256


@pytest.mark.slow
def test_the_sentiment_worker_starts_at_its_reference_and_then_draws() -> None:
    race = load("race")
    request = {"seed": 4, "vocab": 256, "rows": 8, "at_a_time": None}  # mean lengths 6 and 4
    with race.Worker(Path(sys.executable), "sentiment_run.py", "fastrl", request) as worker:
        first, second = worker.ask({"round": 0}), worker.ask({"round": 1})
    assert first["numbers"]["objective/kl"] == 0
    assert second["numbers"]["objective/kl"] != 0
    assert (
        second["numbers"]["tokens/queries_len_mean"] != first["numbers"]["tokens/queries_len_mean"]
    )
    assert [len(first["responses"]), len(second["responses"])] == [8, 0]
    lengths = [len(row) for row in first["responses"]]
    assert first["numbers"]["tokens/responses_len_mean"] == sum(lengths) / 8
    assert max(lengths) == 32
    assert second["seconds"] > 0 and second["above_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sft_packed", "sft_lora", "kto", "reward"])
def test_the_offline_worker_measures_one_optimizer_step_a_round(case: str) -> None:
    race = load("race")
    request = {"seed": 3, "vocab": 256, "steps": 3, "case": case}
    with race.Worker(Path(sys.executable), "offline_step.py", "fastrl", request) as worker:
        first, second = worker.ask({"round": 0}), worker.ask({"round": 1})
    assert 0 < second["seconds"] < first["seconds"] + 60
    assert second["above_bytes"] > 0
    steps = [answer["numbers"]["num_tokens"] for answer in (first, second)]
    assert 8 * 100 < steps[0] < steps[1] < 2 * 16 * 1024
    assert first["numbers"]["grad_norm"] > 0


@pytest.mark.slow
def test_the_online_worker_trains_on_the_completions_it_is_given() -> None:
    race = load("race")
    request = {"seed": 3, "vocab": 512, "steps": 2, "case": "grpo_given"}
    steps = []
    for _ in range(2):
        with race.Worker(Path(sys.executable), "online_step.py", "fastrl", request) as worker:
            steps.append(worker.ask({"round": 0}))
    assert steps[0]["seconds"] > 0 and steps[0]["above_bytes"] > 0
    numbers = [{k: v for k, v in one["numbers"].items() if "time" not in k} for one in steps]
    assert numbers[0] == numbers[1]
    assert 48 < numbers[0]["completions/mean_length"] < 131
    assert numbers[0]["completions/max_length"] <= 256
    assert numbers[0]["grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["generation", "rloo"])
def test_the_online_workers_model_ends_its_completions(case: str) -> None:
    race = load("race")
    request = {"seed": 3, "vocab": 512, "steps": 3, "case": case}
    with race.Worker(Path(sys.executable), "online_step.py", "fastrl", request) as worker:
        means = [worker.ask({"round": i})["numbers"]["completions/mean_length"] for i in (0, 1)]
    assert means[0] != means[1]
    assert all(48 < mean < 118 for mean in means)  # 83 of 96 cut at 256, ± 3 standard errors


@pytest.mark.slow
def test_the_paired_workers_entropy_tells_the_lengths_of_its_answers() -> None:
    race = load("race")
    request = {"seed": 3, "vocab": 512, "steps": 2, "case": "xpo"}
    with race.Worker(Path(sys.executable), "online_step.py", "fastrl", request) as worker:
        numbers = worker.ask({"round": 0})["numbers"]
    mean = numbers["completions/mean_length"]
    assert 30 < mean < 60  # 32 of 80 cut at 64: 44 ± 3.7 standard errors
    assert numbers["objective/entropy"] / math.log(512) == pytest.approx(mean, rel=0.05)
    assert numbers["objective/model_scores"] != numbers["objective/ref_scores"]


@pytest.mark.slow
def test_the_preparation_worker_has_new_rows_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "workers"))
    race, prepare = load("race"), load("workers/prepare")
    prepare.write_tokenizer(tmp_path / "tokenizer.json")
    request = {"seed": 3, "rows": 50, "tokenizer": str(tmp_path / "tokenizer.json")}
    with race.Worker(Path(sys.executable), "prepare.py", "fastrl", request) as worker:
        answers = [worker.ask({"round": number}) for number in (0, 1)]
    assert [answer["rows"] for answer in answers] == [50, 50]
    assert answers[0]["digest"] != answers[1]["digest"]
    assert all(answer["seconds"] > 0 for answer in answers)


@pytest.mark.slow
def test_a_workers_error_is_raised_with_its_trace() -> None:
    race = load("race")
    request = {"seed": 3, "operation": "nothing", "shape": [1]}
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        race.Worker(Path(sys.executable), "tensor_op.py", "torch", request)
