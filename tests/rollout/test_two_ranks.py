"""Ranks that share a model's weights generate in lockstep, each its own prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import two_ranks

WORKER = Path(__file__).parent / "two_ranks" / "worker.py"


@pytest.mark.slow
def test_a_spread_model_generates_as_a_whole_one(tmp_path):
    first, second = two_ranks.run(WORKER, tmp_path, timeout=150)
    for rank in (first, second):
        assert rank["together"] == rank["again"] == rank["alone"]
    # rank 1 has 1 prompt and 2 more tokens to feed; the rest it passes along
    assert first["passes"] == second["passes"] > 14
