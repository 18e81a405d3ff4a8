"""Two ranks of four rows train BCO and PRM as one process of eight."""

from __future__ import annotations

import pytest
import torch

from tests.algos.bco_prm_parity import ranks
from tests.two_ranks import run


@pytest.mark.slow
def test_two_ranks_of_four_are_one_of_eight(tmp_path):
    (tmp_path / "two").mkdir()
    first, second = run(ranks.__file__, tmp_path / "two")
    for name, one in ranks.train(1, tmp_path / "one").items():
        for key, weight in one["weights"].items():
            two = first[name]["weights"][key]
            assert torch.equal(two, second[name]["weights"][key]), key
            torch.testing.assert_close(two, weight, rtol=2e-6, atol=2e-6, msg=f"{name}: {key}")
        assert len(one["logs"]) == len(first[name]["logs"]) == 3
        for alone, shared in zip(one["logs"], first[name]["logs"], strict=True):
            assert shared == pytest.approx(alone, rel=1e-4, abs=2e-6)
