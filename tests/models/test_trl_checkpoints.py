"""Checkpoints travel both ways between fastrl and TRL <= 0.11.

`tests/fixtures/value_head` was written by TRL 0.7.11 (`trl_checkpoints/peer.py write`); the way
back runs the peer itself, whose interpreter FASTRL_TRL_PYTHON names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

FIXTURES = Path(__file__).parents[1] / "fixtures" / "value_head"
PEER = Path(__file__).parent / "trl_checkpoints" / "peer.py"
IDS = torch.tensor([[3, 14, 7, 9, 22, 5], [8, 8, 1, 30, 2, 11]])
ANSWERS = json.loads((FIXTURES / "answers.json").read_text())


def check(model: Any, answer: dict[str, Any]) -> None:
    """Logits, values and value head are those TRL saw."""
    model.eval()
    both = getattr(model, "is_encoder_decoder", False)
    extra = {"decoder_input_ids": IDS} if both else {}
    with torch.no_grad():
        logits, _, values = model(IDS, **extra)
    assert torch.equal(model.v_head.summary.weight, torch.tensor(answer["weight"]))
    assert torch.equal(model.v_head.summary.bias, torch.tensor(answer["bias"]))
    torch.testing.assert_close(values, torch.tensor(answer["values"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[:, -1], torch.tensor(answer["logits"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded", "sharded_bin"])
def test_reads_what_trl_wrote(form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "no v_head weight is found" would be one
        model = AutoModelForCausalLMWithValueHead.from_pretrained(str(FIXTURES / form))
    check(model, ANSWERS[form])


def test_reads_an_encoder_decoder() -> None:
    folder = FIXTURES / "encoder_decoder"
    check(AutoModelForSeq2SeqLMWithValueHead.from_pretrained(folder), ANSWERS["encoder_decoder"])


def test_reads_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = shutil.copytree(FIXTURES / "adapter", tmp_path / "adapter")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace("BASE", str(FIXTURES / "safetensors")))
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder))
    check(model, ANSWERS["adapter"])
    assert model.is_peft_model
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ["v_head.summary.weight", "v_head.summary.bias"]


@pytest.mark.slow
@pytest.mark.skipif("FASTRL_TRL_PYTHON" not in os.environ, reason="FASTRL_TRL_PYTHON is not set")
@pytest.mark.parametrize("keywords", [{}, {"max_shard_size": "3KB"}])
@pytest.mark.parametrize("form", ["safetensors", "encoder_decoder"])
def test_trl_reads_what_we_wrote(form: str, keywords: dict[str, Any], tmp_path: Path) -> None:
    both = form == "encoder_decoder"
    kind = AutoModelForSeq2SeqLMWithValueHead if both else AutoModelForCausalLMWithValueHead
    model = kind.from_pretrained(str(FIXTURES / form))
    torch.nn.init.normal_(model.v_head.summary.weight)
    model.save_pretrained(tmp_path / "ours", **keywords)
    out = tmp_path / "answer.json"
    command = [os.environ["FASTRL_TRL_PYTHON"], PEER, "read", tmp_path / "ours", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert out.exists(), done.stderr[-2000:]
    check(model, json.loads(out.read_text()))
