"""Two ranks: spread weights are sent whole, and each rank gets its own answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import two_ranks

FAKE = Path(__file__).parent / "fake_vllm"


@pytest.mark.slow
def test_two_ranks(tmp_path):
    facts = tmp_path / "site" / "vllm-0.31.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0\n")
    path = (FAKE, facts.parent)
    first, second = two_ranks.run(FAKE / "worker.py", tmp_path, timeout=150, on_path=path)
    for rank in (first, second):
        assert len(rank["weights"]) == 5
        assert max(rank["weights"].values()) < 1e-6, rank["weights"]
    # answers are the prompt's sum plus their number, and what follows
    mine = [[(11, 12, 13, 14), (12, 13, 14, 15)], [(9, 10)]]
    others = [[(20, 21, 22), (21, 22, 23)]]
    for way in ("colocated", "served"):
        assert first[way]["answers"] == mine
        assert second[way]["answers"] == others
    # ranks that share an engine feed it the same prompts, and draw alike
    assert first["colocated"]["asked"] == second["colocated"]["asked"] == [[5, 6], [9], [20]]
    assert first["colocated"]["seed"] == second["colocated"]["seed"] == 0
    # only the main process spoke to the server
    assert second["served"]["log"] == []
    assert first["served"]["asked"] == [[[5, 6]], [[9]], [[20]]]
    assert first["served"]["gap"] < 1e-6
    assert "top_p" in first["served"]["error"]
    assert second["served"]["error"].startswith("on the main process: the vLLM server at")
