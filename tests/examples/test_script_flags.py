"""Command lines of every vintage: what each example script makes of the flags people type."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
import warnings
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from fastrl import get_peft_config, get_quantization_config
from fastrl.cli.rewarded import judged_arguments
from fastrl.rewards import think_format_reward
from tests.examples.command_lines import LINES, SFT

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "scripts"


@pytest.fixture
def read(monkeypatch):
    """read(script, line): one mapping of all options, and the parsed dataclasses."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def parse(name, line):
        module = importlib.import_module(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # old spellings
            parts = getattr(module, "SCRIPT", module).parse(shlex.split(line))
        return {k: v for part in parts for k, v in vars(part).items()}, parts

    return parse


@pytest.mark.parametrize(("script", "line", "expected"), LINES.values(), ids=LINES)
def test_command_lines_of_every_vintage(read, script, line, expected):
    found, _ = read(script, line)
    assert {name: found[name] for name in expected} == expected


def test_sft_script_loads_in_8_bits_with_an_adapter_as_in_0_7_4(read):
    _, parts = read("sft", "--model_name m --load_in_8bit --use_peft --peft_lora_r 8")
    model_args = parts[3]
    assert get_quantization_config(model_args).load_in_8bit
    lora = get_peft_config(model_args)
    assert (lora.r, lora.lora_alpha, lora.task_type) == (8, 16, "CAUSAL_LM")


def test_rloo_script_starts_from_the_policy_of_0_11_s_flags(read, monkeypatch):
    import rloo

    _, (_, *parts) = read("rloo", "--model_name_or_path m --sft_model_path s --reward_model_path r")
    names = {}
    monkeypatch.setattr(
        rloo,
        "rewarded_arguments",
        lambda script, args, model, *_: names.update(vars(script) | vars(model)),
    )
    rloo.rloo_arguments(*parts)
    assert (names["model_name_or_path"], names["reward_model_name_or_path"]) == ("s", "r")


def test_a_reward_model_of_the_config_is_the_first_reward(read, monkeypatch):
    trainer_arguments = lambda *_: {"quantization_config": None}  # noqa: E731
    monkeypatch.setattr("fastrl.cli.rewarded.trainer_arguments", trainer_arguments)

    def rewards(flags):
        _, (_, *parts) = read("dpo_online", f"{SFT} {flags}")
        return judged_arguments(*parts)["reward_funcs"]

    assert rewards("--reward_model_path r") == ["r"]
    both = rewards("--reward_model_path r --reward_funcs think_format_reward")
    assert both == ["r", think_format_reward]
    assert rewards("--reward_model_name_or_path r") == ["r"]
    with pytest.raises(ValueError, match="reward_model_name_or_path name two; give one"):
        rewards("--reward_model_path r --reward_model_name_or_path s")
    with pytest.raises(ValueError, match="nothing is rewarded"):
        rewards("")


@pytest.mark.parametrize("flag", ["", "--sanity_check"])
def test_dpo_script_sanity_check_keeps_a_thousand_rows(read, monkeypatch, flag):
    import dpo

    rows = Dataset.from_dict({"prompt": list(range(1200))})
    few = {"train_dataset": rows, "eval_dataset": rows.select(range(9))}
    monkeypatch.setattr(dpo, "trainer_arguments", lambda *_: dict(few))
    _, (_, *parts) = read("dpo", f"{SFT} {flag}")
    found = dpo.dpo_arguments(*parts)
    sizes = [len(found[name]) for name in ("train_dataset", "eval_dataset")]
    assert sizes == ([1000, 9] if flag else [1200, 9])


@pytest.mark.parametrize(("given", "layer"), [("json", "BertLayer"), ("file", "GPT2Block")])
def test_fsdp_config_as_json_and_as_a_file(read, tmp_path, given, layer):
    text = json.dumps({"transformer_layer_cls_to_wrap": layer, "backward_prefetch": "backward_pre"})
    (tmp_path / "fsdp.json").write_text(text)
    value = text if given == "json" else str(tmp_path / "fsdp.json")
    found, _ = read("sft", f"{SFT} --fsdp 'full_shard auto_wrap' --fsdp_config '{value}'")
    assert found["fsdp_config"]["transformer_layer_cls_to_wrap"] == [layer]
    assert found["fsdp_config"]["reshard_after_forward"] is True  # full_shard


def test_log_levels_of_main_process_and_replica(read, monkeypatch):
    line = SFT + "--log_level warning --log_level_replica error --log_on_each_node 0"
    _, parts = read("sft", line)
    assert parts[2].get_process_log_level() == 30
    monkeypatch.setattr(TrainingArguments, "local_process_index", property(lambda self: 0))
    monkeypatch.setattr(TrainingArguments, "process_index", property(lambda self: 1))
    assert parts[2].get_process_log_level() == 40  # the first process of the second machine


def test_a_config_file_yields_to_flags_and_brings_the_offline_defaults(read, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("dataset: sums\nlearning_rate: 0.5\nmax_seq_length: 99\n")
    found, _ = read("sft", f"--config {file} --learning_rate 0.25")
    assert (found["dataset"], found["learning_rate"], found["max_length"]) == ("sums", 0.25, 99)
    assert found["lr_scheduler_type"] == "cosine" and found["packing"] is True


@pytest.mark.parametrize(
    ("script", "line", "message"),
    [
        ("sft", SFT + "--lerning_rate 1", "unknown --lerning_rate; did you mean '--learning_rate'"),
        ("sft", "--model_name gpt2 --lora_bias all", "biases are not trained with the adapter"),
        ("sft", "--model_name gpt2 --mixed_precision fp8", "it is no, fp16 or bf16"),
        ("sft", "--smoke --model_name gpt2", "leave out --model_name_or_path"),
        ("sft", SFT + "--fsdp_min_num_params 9", "write fsdp_config={'min_num_params': ...}"),
        ("sft", "--config there.yaml", "there is no such file"),
        ("reward_modeling", "--reward_config.max_lenght 9", "did you mean '--max_length'"),
        ("reward_modeling", "--peft_config.rank_pattern x", "of an adapter these can be set"),
        ("dpo", SFT + "--label_pad_token_id 5", "label_pad_token_id"),
        ("rloo", SFT + "--total_episodes 9", "write max_steps= or num_train_epochs="),
        ("grpo", "--smoke --reward_funcs accuracy_reward", "leave out --reward_funcs"),
        ("rloo", "--smoke --sft_model_path s", "leave out --sft_model_path"),
        ("dpo_online", "--smoke --reward_model_path r", "leave out --reward_model_path"),
        ("dpo_online", SFT + "--judge pair_rm", "pass judge= to the trainer"),
        ("ppo_train", "--total_episode 9", "did you mean '--total_episodes'"),
        ("ppo_train", "--smoke --dataset_name d", "leave out --dataset_name"),
    ],
)
def test_flags_that_cannot_be_honoured_say_what_to_write(read, capsys, script, line, message):
    with pytest.raises(SystemExit) as stop:
        read(script, line)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_no_mixed_precision_by_flag_and_by_file(read, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("mixed_precision: no\n")
    for words in ("--mixed_precision no", "--mixed_precision=no", f"--config {file}"):
        found, _ = read("sft", f"{SFT}{words}")
        assert (found["bf16"], found["fp16"]) == (False, False)


def test_defaults_of_old_flags_are_said(read, capsys):
    read("sft", "--model_name gpt2")
    assert "--per_device_train_batch_size 64" in capsys.readouterr().err
    read("sft", "--model_name_or_path gpt2")
    assert capsys.readouterr().err == ""


def test_every_old_flag_names_a_flag_of_today(read):
    import command_line
    import old_flags
    import sft

    _, parts = read("sft", SFT)
    known = {field.name for part in parts for field in dataclasses.fields(part)}
    for change in old_flags.FLAGS.values():
        assert getattr(change, "new", "max_length") in known
    assert set(old_flags.LORA.values()) - {"lora_bias"} <= known
    assert set(sft.FIRST) | set(command_line.OFFLINE) <= known
