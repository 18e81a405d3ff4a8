"""fastrl's `PPOTrainer.step` against recorded runs of TRL 0.7.11 (and a live one when at hand).

The limits: every scalar but `time/*` within 1e-4·max(|TRL's|, 1e-3), and
for every weight tensor ‖fastrl − TRL‖₂ ≤ 1e-3·‖TRL − start‖₂.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fastrl

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures" / "ppo"
sys.path.insert(0, str(HERE))

from ppo_parity import compare  # noqa: E402
from ppo_parity.cases import BASE, CASES, Case, find_case  # noqa: E402
from ppo_parity.running import (  # noqa: E402
    ARRAYS,
    BY_TOKEN,
    Outcome,
    response_values,
    run_case,
    scalars,
)

NAMES = [case.name for case in CASES]
NOISE_ONLY = "attn.c_attn.bias"  # holds GPT-2's key biases, whose gradient is exactly zero

# Every key that TRL 0.7.11's step() returns.
KEYS = sorted(
    [f"objective/{k}" for k in ("kl", "kl_dist", "logprobs", "ref_logprobs", "kl_coef", "entropy")]
    + [f"ppo/{k}" for k in ("mean_non_score_reward", "mean_scores", "std_scores", "learning_rate")]
    + [f"ppo/loss/{k}" for k in ("policy", "value", "total")]
    + [
        f"ppo/policy/{k}"
        for k in (
            *("entropy", "approxkl", "policykl", "clipfrac"),
            *("advantages", "advantages_mean", "ratio"),
        )
    ]
    + [f"ppo/returns/{k}" for k in ("mean", "var")]
    + [f"ppo/val/{k}" for k in ("vpred", "error", "clipfrac", "mean", "var", "var_explained")]
    + [f"tokens/{w}_{k}" for w in ("queries", "responses") for k in ("len_mean", "len_std", "dist")]
    + [
        f"time/ppo/{k}"
        for k in (
            *("forward_pass", "compute_rewards", "compute_advantages"),
            *("optimize_step", "calc_stats", "total"),
        )
    ]
)


@functools.cache
def outcome(name: str) -> Outcome:
    """fastrl's run of the case, made once for all tests of this file.

    On one thread, as recorded: models this small only wait for a second one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skipped minibatches and negative KLs are meant
            return run_case(find_case(name), fastrl)
    finally:
        torch.set_num_threads(threads)


def worst(errors: dict[str, float]) -> str:
    """The statistics or tensors beyond their limit, worst first."""
    beyond = sorted(((v, k) for k, v in errors.items() if not v <= 1), reverse=True)
    return ", ".join(f"{k}: {v:.3g} times the limit" for v, k in beyond)


def check_scalars(case: Case, ours: Outcome, theirs: compare.Recording) -> None:
    """Every scalar of every step within its limit."""
    assert len(ours.steps) == len(theirs.steps) == case.steps
    for number, (stats, recorded) in enumerate(zip(ours.steps, theirs.steps, strict=True)):
        errors = compare.scalar_errors(scalars(stats), recorded["scalars"])
        assert len(errors) == 27
        assert not worst(errors), f"{case.name}, step {number}: {worst(errors)}"


def check_weights(case: Case, ours: Outcome, theirs: compare.Recording) -> None:
    """Every weight tensor within its limit; what TRL left alone is bit for bit the same."""
    assert theirs.weights.keys() <= ours.end.keys()
    assert any(name.startswith("v_head.summary") for name in theirs.weights)
    errors = compare.weight_errors(ours.end, theirs.weights, ours.start)
    if case.name == "default_gpt2":
        noisy = [name for name in errors if name.endswith(NOISE_ONLY)]
        for name in noisy:
            del errors[name]
            check_bias_without_keys(name, ours, theirs)
    assert not worst(errors), f"{case.name}: {worst(errors)}"


def check_bias_without_keys(name: str, ours: Outcome, theirs: compare.Recording) -> None:
    """The query and value parts as any tensor; the key part moved no further than Adam can."""
    parts = {}
    for which, weights in (("ours", ours.end), ("theirs", theirs.weights), ("start", ours.start)):
        query, key, value = np.split(weights[name], 3)
        parts[which] = {"query": query, "value": value}
        if which == "ours":
            updates = 3 * BASE["ppo_epochs"] * BASE["batch_size"] // BASE["mini_batch_size"]
            moved = np.abs(key - np.split(ours.start[name], 3)[1]).max()
            assert moved <= 1.01 * updates * BASE["learning_rate"]
    errors = compare.weight_errors(parts["ours"], parts["theirs"], parts["start"])
    assert not worst(errors), f"{name}: {worst(errors)}"


@pytest.mark.parametrize("name", NAMES)
def test_every_scalar_is_trls(name: str) -> None:
    check_scalars(find_case(name), outcome(name), compare.load(FIXTURES, name))


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_trls(name: str) -> None:
    check_weights(find_case(name), outcome(name), compare.load(FIXTURES, name))


@pytest.mark.parametrize("name", NAMES)
def test_keys_arrays_and_sizes_are_trls(name: str) -> None:
    recorded = compare.load(FIXTURES, name)
    assert recorded.keys == KEYS
    pairs = zip(outcome(name).steps, recorded.steps, strict=True)
    for step, (stats, theirs) in enumerate(pairs):
        assert sorted(stats) == KEYS
        for key in ARRAYS:
            want = np.asarray(theirs["arrays"][key])
            assert np.shape(stats[key]) == want.shape
            # A log-probability of -4 to -8 has a rounding of 5e-7, a row sums up to 12 of them.
            np.testing.assert_allclose(stats[key], want, rtol=1e-4, atol=1e-5, err_msg=key)
        for key in BY_TOKEN:
            got = response_values(find_case(name), step, 0, stats[key])
            np.testing.assert_allclose(got, theirs["arrays"][key], atol=1e-5, err_msg=key)
        for key, size in theirs["sizes"].items():
            assert np.size(stats[key]) == size, key


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_are_consumed_as_in_trl(name: str) -> None:
    """A script that samples between steps goes on with the same random numbers."""
    assert outcome(name).draws == compare.load(FIXTURES, name).draws


def updates(name: str, step: int) -> float:
    """How many epochs' worth of minibatches a recorded step ran, from the size of its ratios."""
    recorded = compare.load(FIXTURES, name).steps[step]
    config = {**BASE, **find_case(name).config}
    longest = max(len(q) + len(r) for q, r in paired_rows(name, step))
    return recorded["sizes"]["ppo/policy/ratio"] / (config["batch_size"] * (longest - 1))


def paired_rows(name: str, step: int) -> list[tuple]:
    """The (query, response) pairs of a step."""
    from ppo_parity.running import rows

    queries, responses, _, _ = rows(find_case(name), step, 0)
    return list(zip(queries, responses, strict=True))


def test_the_cases_exercise_what_they_are_named_for() -> None:
    """A recorded case that never stops early, clips or skips would prove nothing."""
    assert [updates("early_stopping", step) for step in range(3)] == [1, 1, 4]
    for name, key, low, high in (
        ("tight_clips", "ppo/policy/clipfrac", 0.3, 0.9),
        ("tight_clips", "ppo/val/clipfrac", 0.3, 0.9),
        ("left_padding", "objective/kl", -10, 10),
    ):
        for recorded in compare.load(FIXTURES, name).steps:
            assert low < recorded["scalars"][key] < high, (name, key)
    clipped = compare.load(FIXTURES, "score_norm_clip").steps
    unclipped = compare.load(FIXTURES, "score_scaling").steps
    assert clipped[0]["scalars"]["ppo/std_scores"] < unclipped[0]["scalars"]["ppo/std_scores"] / 2
    coefficients = [
        recorded["scalars"]["objective/kl_coef"]
        for recorded in compare.load(FIXTURES, "adaptive_kl").steps
    ]
    assert len(set(coefficients)) == 4
    rates = [
        recorded["scalars"]["ppo/learning_rate"]
        for recorded in compare.load(FIXTURES, "sgd_exponential_lr").steps
    ]
    np.testing.assert_allclose(rates, [0.05, 0.025, 0.0125])


@pytest.mark.slow
@pytest.mark.skipif("FASTRL_TRL_PYTHON" not in os.environ, reason="FASTRL_TRL_PYTHON is not set")
def test_against_a_live_trl(tmp_path: Path) -> None:
    """The recorder run now by the interpreter in FASTRL_TRL_PYTHON, compared the same way."""
    command = [os.environ["FASTRL_TRL_PYTHON"], str(HERE / "ppo_parity" / "record.py")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], timeout=600, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for case in CASES:
        live = compare.load(tmp_path, case.name)
        assert live.versions["trl"] == "0.7.11"
        check_scalars(case, outcome(case.name), live)
        check_weights(case, outcome(case.name), live)
