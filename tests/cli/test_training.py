"""What the training commands share, and each of them end to end on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    TrainingArguments,
)

import fastrl
from fastrl.cli.main import main
from fastrl.cli.training import datasets_for, load_quantised, parser_for, trainer_arguments
from fastrl.train.model_config import ModelConfig
from fastrl.train.parser import TrlParser
from fastrl.train.script_arguments import DatasetConfig, DatasetMixtureConfig, ScriptArguments

TEXTS = ["the cat sat on the mat", "a dog ran to the park", "good day to you"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a language model, a classifier and rows of every kind."""
    folder = tmp_path_factory.mktemp("tiny")
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<unk>", "<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "bos_token_id": None,
    }
    for name, kind in (
        ("lm", Qwen2ForCausalLM),
        ("judge", Qwen2ForSequenceClassification),
        ("tokens", Qwen2ForTokenClassification),
    ):
        config = Qwen2Config(**shape, **({"num_labels": 1} if name == "judge" else {}))
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = {
        "text": [{"text": f"{TEXTS[i % 3]} {i}"} for i in range(8)],
        "pairs": [
            {"prompt": "the cat", "chosen": f" sat {i}", "rejected": " ran"} for i in range(8)
        ],
        "answers": [
            {"prompt": "the cat", "completion": f" sat {i}", "label": i % 2 == 0} for i in range(8)
        ],
        "prompts": [{"prompt": f"{TEXTS[i % 3]}"} for i in range(8)],
        "ids": [
            {"prompt": "the cat", "input_ids": tokenizer(f"the cat sat {i}")["input_ids"]}
            for i in range(8)
        ],
        "steps": [
            {"prompt": "the", "completions": [f"cat {i}", "sat"], "labels": [True, i % 2 == 0]}
            for i in range(8)
        ],
    }
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, each)))
    return folder


def test_a_dataset_is_named_in_one_way(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = str(tiny / "text.jsonl")
    one, none = ScriptArguments(dataset_name=path), DatasetMixtureConfig()
    train, evaluation = datasets_for(one, none, evaluates=False)
    assert train.num_rows == 8 and evaluation is None
    with pytest.raises(ValueError, match=r"no split 'test', only \['train'\]"):
        datasets_for(one, none, evaluates=True)
    mixture = DatasetMixtureConfig([DatasetConfig(path)], test_split_size=2)
    train, evaluation = datasets_for(ScriptArguments(), mixture, evaluates=True)
    assert (train.num_rows, evaluation.num_rows) == (6, 2)
    for script, mixed in ((one, mixture), (ScriptArguments(), none)):
        with pytest.raises(ValueError, match="either dataset_name or"):
            datasets_for(script, mixed, evaluates=False)


def test_model_options_become_keywords_of_loading(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    args = TrainingArguments("o", use_cpu=True)
    args.model_init_kwargs = {"attn_implementation": "eager", "token": "t"}
    script = ScriptArguments(dataset_name=str(tiny / "text.jsonl"))
    model = ModelConfig("name", dtype="bfloat16", attn_implementation="sdpa", use_peft=True)
    given = trainer_arguments(script, args, model, DatasetMixtureConfig())
    assert given["model"] == "name" and given["args"] is args
    assert args.model_init_kwargs == {
        "revision": "main",
        "attn_implementation": "eager",  # said twice: the trainer's own keyword wins
        "dtype": "bfloat16",
        "token": "t",
    }
    assert given["peft_config"].r == 16 and given["quantization_config"] is None
    with pytest.raises(ValueError, match="model_name_or_path is needed"):
        trainer_arguments(script, args, ModelConfig(), DatasetMixtureConfig())


def test_a_config_that_loads_the_model_quantises_it():
    args = TrainingArguments("o", use_cpu=True)
    for own, want in ((None, "four"), ({"token": "t"}, "four"), ({"quantization_config": 8}, 8)):
        args.model_init_kwargs = own
        load_quantised(args, None)
        assert args.model_init_kwargs is own
        load_quantised(args, "four")
        assert args.model_init_kwargs == {**(own or {}), "quantization_config": want}


def test_a_parser_can_stand_below_others():
    below = TrlParser().add_subparsers(parser_class=TrlParser)
    parser = parser_for(TrainingArguments, "go", "trains", below)
    assert isinstance(parser, TrlParser) and "--learning_rate" in parser.known_flags()


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def flags(tiny, out, rows, *more):
    return [
        *("--dataset_name", str(tiny / f"{rows}.jsonl"), "--output_dir", str(out)),
        *("--max_steps", "2", "--logging_steps", "1", "--use_cpu", "--report_to", "none"),
        *("--per_device_train_batch_size", "2", "--learning_rate", "1e-3", "--disable_tqdm"),
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "rows", "model", "trainer"),
    [
        ("sft", "text", "lm", "SFTTrainer"),
        ("dpo", "pairs", "lm", "DPOTrainer"),
        ("orpo", "pairs", "lm", "ORPOTrainer"),
        ("cpo", "pairs", "lm", "CPOTrainer"),
        ("kto", "answers", "lm", "KTOTrainer"),
        ("bco", "answers", "lm", "BCOTrainer"),
        ("prm", "steps", "tokens", "PRMTrainer"),
        ("reward", "pairs", "judge", "RewardTrainer"),
        ("grpo", "prompts", "lm", "GRPOTrainer"),
        ("rloo", "prompts", "lm", "RLOOTrainer"),
        ("online_dpo", "prompts", "lm", "OnlineDPOTrainer"),
        ("nash_md", "prompts", "lm", "NashMDTrainer"),
        ("xpo", "prompts", "lm", "XPOTrainer"),
        ("distillation", "prompts", "lm", "DistillationTrainer"),
        ("gkd", "ids", "lm", "GKDTrainer"),
    ],
)
def test_training_commands_train(tiny, tmp_path, monkeypatch, command, rows, model, trainer):
    if trainer not in fastrl.__all__:
        pytest.skip(f"there is no {trainer} yet")
    monkeypatch.setattr("fastrl.cli.launch._default_config", lambda: False)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    before = torch.cat([p.flatten() for p in load(tiny / model).parameters()])
    words = flags(tiny, tmp_path, rows, "--model_name_or_path", str(tiny / model))
    if command in ("grpo", "rloo"):
        words += ["--reward_model_name_or_path", str(tiny / "judge"), "--num_generations", "2"]
        words += ["--reward_funcs", "think_format_reward", "tests.cli.test_training.shortness"]
        words += ["--max_completion_length", "4"]
    if command in ("online_dpo", "nash_md", "xpo"):
        words += ["--reward_model_path", str(tiny / "judge"), "--max_new_tokens", "4"]
        words += ["--reward_funcs", "tests.cli.test_training.shortness"]
    if command in ("distillation", "gkd"):
        teacher = load(tiny / "lm")
        teacher.model.embed_tokens.weight.data.mul_(3.0)
        teacher.save_pretrained(tmp_path / "teacher")
        words += ["--teacher_model_name_or_path", str(tmp_path / "teacher")]
        longest = "max_new_tokens" if command == "gkd" else "max_completion_length"
        words += [f"--{longest}", "4"]
    assert main([command, *words]) == 0
    assert [row["step"] for row in log_of(tmp_path) if "loss" in row] == [1, 2]
    after = torch.cat([p.flatten() for p in load(tmp_path).parameters()])
    assert after.shape == before.shape and not torch.equal(after, before)
    assert main(["plot", str(tmp_path)]) == 0


def shortness(completions: list[str], **_: object) -> list[float]:
    """A reward function for `--reward_funcs tests.cli.test_training.shortness`."""
    return [-float(len(text)) for text in completions]


def load(folder: Path) -> torch.nn.Module:
    kinds = {
        "Qwen2ForCausalLM": Qwen2ForCausalLM,
        "Qwen2ForSequenceClassification": Qwen2ForSequenceClassification,
        "Qwen2ForTokenClassification": Qwen2ForTokenClassification,
    }
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return kinds[name].from_pretrained(folder)


@pytest.mark.slow
def test_ppo_follows_the_judge(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastrl.cli.launch._default_config", lambda: False)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    words = ["ppo", "--model_name_or_path", str(tiny / "lm"), "--reward_model", str(tiny / "judge")]
    words += ["--dataset_name", str(tiny / "prompts.jsonl"), "--output_dir", str(tmp_path)]
    words += ["--batch_size", "4", "--mini_batch_size", "2", "--ppo_epochs", "1"]
    words += ["--max_new_tokens", "6", "--max_steps", "3", "--init_kl_coef", "0.1"]
    words += ["--tracker_kwargs", '{"a": 1}', "--seed", "3"]
    assert main(words) == 0
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all({"reward", "objective/kl", "ppo/loss/total"} <= row.keys() for row in rows)
    assert f"reward {rows[0]['reward']:.3f}" in capsys.readouterr().out
    again = fastrl.AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    assert again.v_head.summary.weight.shape == (1, 16)


@pytest.mark.slow
def test_a_launched_run_trains_too(tiny, tmp_path):
    """`accelerate launch` starts the module with the script's own words."""
    config = tmp_path / "run.yaml"
    config.write_text("num_processes: 1\nenv:\n  FASTRL_TEST_SEEN: yes\nmax_length: 16\n")
    words = flags(tiny, tmp_path, "text", "--model_name_or_path", str(tiny / "lm"))
    root = Path(fastrl.__file__).parents[1]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "fastrl", "sft", *words, "--config", str(config), "--cpu"],
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in log_of(tmp_path) if "loss" in row] == [1, 2]
