"""A folder of tiny models under the names that scripts load them by."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from fastrl import legacy
from tests.customisation import runs

EOS = "<|endoftext|>"


def _tokenizer(folder: Path) -> None:
    """GPT-2's without its merges: one token for each byte, and none for padding."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, EOS])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    own = transformers.GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    assert len(own) == 257
    own.save_pretrained(folder)


@pytest.fixture(autouse=True)
def quick() -> Any:
    """Trainers that begin to train do not collect the whole process's garbage first."""
    with runs.uncollected():
        yield


@pytest.fixture(scope="session")
def hub(tmp_path_factory: Any) -> Path:
    """`gpt2`, `bigscience/bloom-560m` and the classifier `lvwerra/distilbert-imdb`, all tiny."""
    root = tmp_path_factory.mktemp("hub")
    ends = {"bos_token_id": 256, "eos_token_id": 256}
    gpt2 = transformers.GPT2Config(
        vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=64, **ends
    )
    bloom = transformers.BloomConfig(vocab_size=257, hidden_size=16, n_layer=8, n_head=2, **ends)
    for name, config in (("gpt2", gpt2), ("bigscience/bloom-560m", bloom)):
        torch.manual_seed(0)
        (root / name).mkdir(parents=True)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        _tokenizer(root / name)
    sizes = {"vocab_size": 257, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    judge = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**sizes))
    judge.save_pretrained(root / "lvwerra" / "distilbert-imdb")
    _tokenizer(root / "lvwerra" / "distilbert-imdb")
    return root


@pytest.fixture
def at_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The working directory: a folder of a name goes before the hub's model of that name."""
    monkeypatch.chdir(hub)
    legacy._said.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No dataset is provided")
        warnings.filterwarnings("ignore", message="no v_head weight is found")
        yield


@pytest.fixture
def row() -> tuple[list[Any], list[Any], list[Any]]:
    """One query, its response and its score, for a batch of one."""
    return [torch.tensor([72, 73, 74])], [torch.tensor([75, 76, 77, 78])], [torch.tensor(1.0)]
