"""The README's scripts run as printed, with tiny models and rows of the names they load."""

import re
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.algos.offline_parity import making

README = Path(__file__).resolve().parents[2] / "README.md"


def script(title: str) -> str:
    """The first python block of the README that names a class."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return next(block for block in blocks if title in block)


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """A folder `gpt2` in the working directory, which goes before the hub's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["The film was good"] * 9, trainer)
    special = {f"{kind}_token": "<|endoftext|>" for kind in ("bos", "eos", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(
        tmp_path / "gpt2"
    )
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": tokenizer.get_vocab_size()}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(
        tmp_path / "gpt2"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:no v_head weight", "ignore:No dataset is provided")
def test_the_ppo_script_runs_as_printed(gpt2, capsys):
    text = script("PPOTrainer")
    assert len([line for line in text.splitlines() if line.strip()]) <= 15
    assert text.count("range(20)") == 1
    names = {}
    exec(compile(text.replace("range(20)", "range(2)"), str(README), "exec"), names)
    assert len(re.findall(r"^reward \d\.\d\d  KL -?\d\.\d\d$", capsys.readouterr().out, re.M)) == 2
    replies = {tuple(ids.tolist()) for ids in names["responses"]}
    assert len(replies) > 1  # eight equal prompts: greedy answers would all be the same


@pytest.mark.parametrize(("title", "rows"), [("SFT", "messages"), ("DPO", "preference_chat")])
def test_the_offline_scripts_run_as_printed(title, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    making.model().save_pretrained("Qwen/Qwen3-0.6B")
    making.tokenizer().save_pretrained("Qwen/Qwen3-0.6B")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: making.rows(rows, 8))
    text = script(f"{title}Trainer")
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    exec(compile(text, str(README), "exec"), {})
    assert (tmp_path / "runs" / title.lower() / "log.jsonl").read_text().count("loss") == 1


@pytest.mark.filterwarnings("ignore:an answer ends where")
def test_the_grpo_script_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    making.model().save_pretrained("Qwen/Qwen3-0.6B")
    making.tokenizer().save_pretrained("Qwen/Qwen3-0.6B")
    row = {"prompt": [{"role": "user", "content": "What is 3 + 4?"}], "solution": "$7$"}
    rows = datasets.Dataset.from_list([row])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    text = script("GRPOTrainer")
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    exec(compile(text, str(README), "exec"), {})
    log = (tmp_path / "runs" / "grpo" / "log.jsonl").read_text()
    assert "train_loss" in log
