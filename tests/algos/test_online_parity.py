"""Ten steps of GRPO and RLOO log what TRL 1.16 logs, and ask for the prompts that it asks for.

The numbers of TRL were recorded by `online_parity/record.py`; completions come from a script.
"""

from __future__ import annotations

import math

import pytest

import fastrl
from tests.algos.online_parity import cases, ranks, records, running

# One of each kind; the rest is slow only because it is much of the same.
QUICK = {
    "dapo_beta0_iter1_ga1",
    "dapo_beta0.1_iter2_ga4_lora",
    "grpo_beta0.1_iter1_ga4",
    "dr_grpo_beta0_iter2_ga4",
    "bnpo_beta0.1_iter2_ga4",
    "cispo_beta0_iter2_ga1_lora",
    "sapo_beta0.1_iter2_ga1",
    "luspo_beta0.1_iter1_ga1_lora",
    "vespo_beta0.1_iter2_ga4",
    "grpo_sequence_grpo",
    "grpo_scale_batch",
    "grpo_normalize_then_sum",
    "grpo_delta",
    "grpo_truncated",
    "grpo_quantile",
    "grpo_adaptive_accumulation",
    "grpo_off_policy_sampled",
    "grpo_generates_often",
    "grpo_generates_rarely_grpo",
    "grpo_synced",
    "grpo_env_mask_truncated",
    "grpo_engine_sequence_mask",
    "grpo_moe",
    "grpo_stream_accumulation",
    "grpo_evaluated",
    "rloo_default",
    "rloo_normalized",
    "rloo_iterations_accumulation",
    "rloo_lora_given",
    "rloo_evaluated",
}


def _marked(case: running.Case) -> object:
    there = hasattr(fastrl, f"{case.trainer}Trainer")
    marks = [pytest.mark.skipif(not there, reason=f"no {case.trainer}Trainer yet")]
    if case.name not in QUICK:
        marks.append(pytest.mark.slow)
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", [_marked(case) for case in cases.ALL])
def test_logs_what_trl_logs(case):
    different = records.differences(running.run(case, fastrl), records.read(case))
    assert not different, "\n" + "\n".join(different)


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    return ranks.start("fastrl", tmp_path_factory.mktemp("ranks"), timeout=600)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(fastrl, "RLOOTrainer"), reason="no RLOOTrainer yet")
@pytest.mark.parametrize("case", cases.RANKS, ids=lambda case: case.name)
def test_logs_on_two_ranks_what_trl_logs(case, of_two_ranks):
    found = of_two_ranks[case.name]
    assert "error" not in found, found["error"]
    different = records.differences(found, records.read(case))
    assert not different, "\n" + "\n".join(different)


def test_every_quick_case_exists():
    assert {case.name for case in cases.ALL} >= QUICK


@pytest.mark.parametrize("key", ["loss", "kl", "reward", "completions/mean_length"])
def test_the_judge_sees_one_number_that_is_off(key):
    want = records.read(next(case for case in cases.ALL if case.name == "grpo_one_reward"))
    got = {"asked": want["asked"], "logs": {k: list(column) for k, column in want["logs"].items()}}
    assert records.differences(got, want) == []
    got["logs"][key][7] += 2e-4 * max(abs(got["logs"][key][7]), 1e-2)
    assert [line.split(":")[0] for line in records.differences(got, want)] == [key]
    got["logs"][key][7] = math.nan
    assert [line.split(":")[0] for line in records.differences(got, want)] == [key]
    del got["logs"][key]
    assert records.differences(got, want) == [f"{key}: logged by TRL alone"]


def test_the_judge_sees_prompts_in_another_order():
    want = records.read(next(case for case in cases.ALL if case.name == "grpo_pairs"))
    got = {"asked": want["asked"][::-1], "logs": want["logs"]}
    assert len(records.differences(got, want)) == 1
