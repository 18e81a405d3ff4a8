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


SFT = "--dataset_name there "
LINES = {
    "sft of 0.7.4": (
        "sft",
        "--model_name facebook/opt-125m --dataset_name imdb --dataset_text_field text "
        "--log_with wandb --learning_rate 1e-4 --batch_size 8 --seq_length 256 "
        "--gradient_accumulation_steps 2 --load_in_8bit --use_peft --peft_lora_r 8 "
        "--peft_lora_alpha 4 --trust_remote_code --use_auth_token True --num_train_epochs 1 "
        "--max_steps -1 --save_steps 50 --save_total_limit 2 --output_dir out",
        {
            "model_name_or_path": "facebook/opt-125m",
            "dataset_name": "imdb",
            "dataset_text_field": "text",
            "report_to": ["wandb"],
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 8,
            "max_length": 256,
            "gradient_accumulation_steps": 2,
            "load_in_8bit": True,
            "use_peft": True,
            "lora_r": 8,
            "lora_alpha": 4,
            "trust_remote_code": True,
            "num_train_epochs": 1,
            "save_steps": 50,
            "save_total_limit": 2,
            "output_dir": "out",
        },
    ),
    "sft of 0.7.4, its defaults": (
        "sft",
        "--model_name gpt2 --mixed_precision bf16 --use_cpu",
        {
            "model_name_or_path": "gpt2",
            "dataset_name": "timdettmers/openassistant-guanaco",
            "learning_rate": 1.41e-5,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 16,
            "max_length": 512,
            "num_train_epochs": 3,
            "lora_r": 64,
            "lora_alpha": 16,
            "bf16": True,
            "fp16": False,
        },
    ),
    "sft of 0.7.11": (
        "sft",
        "--model_name_or_path facebook/opt-350m --dataset_name imdb --dataset_text_field text "
        "--max_seq_length 512 --packing --use_peft --lora_r 64 --lora_alpha 16 --load_in_4bit "
        "--torch_dtype bfloat16 --report_to none --output_dir out --overwrite_output_dir "
        "--per_device_train_batch_size 16 --evaluation_strategy no --warmup_ratio 0.25 "
        "--gradient_checkpointing_use_reentrant False --no_cuda",
        {
            "max_length": 512,
            "packing": True,
            "lora_r": 64,
            "load_in_4bit": True,
            "dtype": "bfloat16",
            "report_to": [],
            "per_device_train_batch_size": 16,
            "eval_strategy": "no",
            "warmup_steps": 0.25,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "use_cpu": True,
            "learning_rate": 2e-5,  # today's default: no flag is of 0.7.4 only
        },
    ),
    "sft of 1.16": (
        "sft",
        "--model_name_or_path Qwen/Qwen2-0.5B --dataset_name trl-lib/Capybara --learning_rate "
        "2.0e-4 --num_train_epochs 1 --packing --per_device_train_batch_size 2 "
        "--eos_token '<|im_end|>' --eval_strategy steps --eval_steps 100 --use_peft "
        "--lora_target_modules q_proj v_proj --output_dir Qwen2-0.5B-SFT",
        {
            "learning_rate": 2e-4,
            "packing": True,
            "eos_token": "<|im_end|>",
            "eval_steps": 100,
            "lora_target_modules": ["q_proj", "v_proj"],
            "lora_r": 16,
        },
    ),
    "reward_modeling by tyro (0.7.2 to 0.7.10)": (
        "reward_modeling",
        "--model_name facebook/opt-125m --dataset_name d --reward_config.learning_rate 1e-4 "
        "--reward-config.max-length 128 --reward_config.evaluation_strategy steps "
        "--reward_config.no-gradient-checkpointing --reward_config.output_dir=out "
        "--eval_split test --use-peft --no-trust-remote-code peft_config:lora-config "
        "--peft_config.r 4 --peft-config.lora-alpha 8 --peft_config.target_modules q_proj v_proj "
        "--peft_config.bias none",
        {
            "model_name_or_path": "facebook/opt-125m",
            "learning_rate": 1e-4,
            "max_length": 128,
            "eval_strategy": "steps",
            "dataset_test_split": "test",
            "gradient_checkpointing": False,
            "output_dir": "out",
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 16,
            "use_peft": True,
            "trust_remote_code": False,
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_target_modules": ["q_proj", "v_proj"],
            "lora_task_type": "SEQ_CLS",
        },
    ),
    "reward_modeling of 0.7.11": (
        "reward_modeling",
        "--model_name_or_path facebook/opt-350m --output_dir out --dataset_name d "
        "--per_device_train_batch_size 64 --num_train_epochs 1 --gradient_accumulation_steps 16 "
        "--gradient_checkpointing True --learning_rate 1.41e-5 --report_to wandb "
        "--remove_unused_columns False --optim adamw_torch --logging_steps 10 "
        "--evaluation_strategy steps --eval_steps 500 --max_length 512",
        {"learning_rate": 1.41e-5, "eval_steps": 500, "max_length": 512, "optim": "adamw_torch"},
    ),
    "dpo of 0.7.4": (
        "dpo",
        "--beta 0.2 --use_peft --peft_lora_r 8 --peft_lora_alpha 2 --max_prompt_length 128 "
        "--label_pad_token_id -100 --report_to none",
        {
            "beta": 0.2,
            "model_name_or_path": "gpt2",
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "max_steps": 1000,
            "max_length": 512,
            "optim": "rmsprop",
            "warmup_steps": 150,
            "lora_r": 8,
            "lora_alpha": 2,
            "sanity_check": True,
        },
    ),
    "dpo of 0.7.11": (
        "dpo",
        "--model_name_or_path gpt2 --dataset_name d --per_device_train_batch_size 4 --max_steps "
        "1000 --learning_rate 1e-3 --gradient_accumulation_steps 1 --logging_steps 10 --eval_steps "
        "500 --output_dir out --warmup_steps 150 --report_to wandb --bf16 False "
        "--logging_first_step --no_remove_unused_columns --sanity_check --use_peft --lora_r 16 "
        "--lora_alpha=16 --optim rmsprop",
        {"sanity_check": True, "remove_unused_columns": False, "lora_alpha": 16, "bf16": False},
    ),
    "dpo of 1.16": (
        "dpo",
        "--dataset_name trl-lib/ultrafeedback_binarized --model_name_or_path Qwen/Qwen2-0.5B "
        "--learning_rate 5.0e-7 --loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1.0",
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
        | {"sanity_check": False, "learning_rate": 5e-7},
    ),
    "orpo of 0.11": (
        "orpo",
        "--dataset_name d --model_name_or_path=gpt2 --per_device_train_batch_size 4 "
        "--max_steps 1000 --learning_rate 8e-5 --max_length 512 --max_prompt_length 128 "
        "--optim rmsprop --warmup_steps 150 --report_to wandb --bf16 False --eval_steps 500 "
        "--no_remove_unused_columns --use_peft --lora_r=16 --output_dir gpt2-lora-aligned-orpo",
        {"max_prompt_length": 128, "remove_unused_columns": False, "learning_rate": 8e-5}
        | {"lora_r": 16, "beta": 0.1},
    ),
    "cpo of 0.11": (
        "cpo",
        "--dataset_name d --model_name_or_path=gpt2 --loss_type simpo --cpo_alpha 0.0 "
        "--simpo_gamma 1.6 --beta 2.5 --label_pad_token_id -100 --evaluation_strategy steps "
        "--eval_steps 500 --output_dir gpt2-aligned-cpo --bf16 False --logging_first_step",
        {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.6, "beta": 2.5}
        | {"eval_strategy": "steps"},
    ),
    "kto of 0.11": (
        "kto",
        "--dataset_name trl-lib/kto-mix-14k --model_name_or_path trl-lib/qwen1.5-1.8b-sft "
        "--per_device_train_batch_size 16 --num_train_epochs 1 --learning_rate 1e-5 "
        "--lr_scheduler_type=cosine --gradient_accumulation_steps 1 --logging_steps 10 "
        "--eval_steps 500 --output_dir=kto-aligned-model-lora --warmup_ratio 0.1 "
        "--report_to wandb --bf16 False --logging_first_step --use_peft --load_in_4bit "
        "--lora_target_modules=all-linear --lora_r=16 --lora_alpha=16",
        {"lora_target_modules": "all-linear", "load_in_4bit": True, "warmup_steps": 0.1},
    ),
    "grpo of 1.16": (
        "grpo",
        "--model_name_or_path Qwen/Qwen2-0.5B --dataset_name d --reward_funcs accuracy_reward "
        "think_format_reward --num_generations 4 --max_completion_length 64 --use_vllm False",
        {"reward_funcs": ["accuracy_reward", "think_format_reward"], "num_generations": 4},
    ),
    "rloo of 0.11": (
        "rloo",
        "--dataset_name d --model_name_or_path EleutherAI/pythia-1b-deduped --sft_model_path sft "
        "--reward_model_path rm --rloo_k 2 --num_ppo_epochs 3 --kl_coef 0.03 --response_length 53 "
        "--per_device_train_batch_size 4 --local_rollout_forward_batch_size 1",
        {
            "sft_model_path": "sft",
            "reward_model_path": "rm",
            "num_generations": 2,
            "num_iterations": 3,
            "beta": 0.03,
            "max_completion_length": 53,
        },
    ),
    "rloo of 1.16": (
        "rloo",
        "--model_name_or_path q --dataset_name d --reward_funcs accuracy_reward --beta 0.1 "
        "--normalize_advantages --num_generations 8",
        {"beta": 0.1, "normalize_advantages": True, "num_generations": 8},
    ),
    "ppo of 0.12 to 1.16": (
        "ppo_train",
        "--dataset_name trl-internal-testing/descriptiveness-sentiment-trl-style "
        "--dataset_train_split descriptiveness --learning_rate 3e-6 --output_dir out "
        "--per_device_train_batch_size 64 --gradient_accumulation_steps 1 --total_episodes 10000 "
        "--model_name_or_path EleutherAI/pythia-1b-deduped --sft_model_path sft "
        "--reward_model_path rm --missing_eos_penalty 1.0 --stop_token eos --num_ppo_epochs 1",
        {
            "dataset_train_split": "descriptiveness",
            "total_episodes": 10000,
            "sft_model_path": "sft",
            "reward_model_path": "rm",
            "missing_eos_penalty": 1.0,
            "num_ppo_epochs": 1,
            "response_length": 53,
        },
    ),
    "dpo_online of 0.11.4": (
        "dpo_online",
        "--model_name_or_path trl-lib/pythia-1b-deduped-tldr-sft --reward_model_path "
        "trl-lib/pythia-1b-deduped-tldr-rm --dataset_name trl-lib/tldr --learning_rate 5.0e-6 "
        "--output_dir out --per_device_train_batch_size 16 --gradient_accumulation_steps 8 "
        "--warmup_ratio 0.1 --missing_eos_penalty 1.0 --use_peft --torch_dtype bfloat16 "
        "--evaluation_strategy no --dataset_num_proc 4 --beta 0.2 0.1 --loss_type ipo",
        {
            "model_name_or_path": "trl-lib/pythia-1b-deduped-tldr-sft",
            "reward_model_path": "trl-lib/pythia-1b-deduped-tldr-rm",
            "dataset_name": "trl-lib/tldr",
            "learning_rate": 5e-6,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 8,
            "warmup_steps": 0.1,
            "missing_eos_penalty": 1.0,
            "use_peft": True,
            "dtype": "bfloat16",
            "eval_strategy": "no",
            "beta": [0.2, 0.1],
            "loss_type": "ipo",
            "max_new_tokens": 64,
            "temperature": 0.9,
        },
    ),
    "dpo_online of 1.16": (
        "dpo_online",
        "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --reward_model_path r --dataset_name d "
        "--warmup_steps 0.1 --eval_strategy steps --eval_steps 50 --dtype float16 --max_length "
        "256 --max_new_tokens 32 --top_k 5 --generation_kwargs '{\"min_p\": 0.1}' --report_to none",
        {
            "learning_rate": 5e-7,
            "warmup_steps": 0.1,
            "eval_steps": 50,
            "dtype": "float16",
            "max_length": 256,
            "max_new_tokens": 32,
            "top_k": 5,
            "generation_kwargs": {"min_p": 0.1},
            "report_to": [],
        },
    ),
    "the Trainer guide's logging": (
        "sft",
        SFT + "--log_level warning --log_level_replica error --log_on_each_node 0",
        {"log_level": "warning", "log_level_replica": "error", "log_on_each_node": False},
    ),
    "the Trainer guide's run": (
        "sft",
        SFT + "--model_name_or_path google-bert/bert-base-cased --do_train --do_eval "
        "--max_seq_length 128 --per_device_train_batch_size 32 --learning_rate 2e-5 "
        "--num_train_epochs 3 --output_dir out/mrpc/ --overwrite_output_dir",
        {"do_train": True, "do_eval": True, "max_length": 128, "output_dir": "out/mrpc/"},
    ),
    "the Trainer guide's FSDP": (
        "sft",
        SFT + "--fsdp 'full_shard auto_wrap' "
        """--fsdp_config '{"transformer_layer_cls_to_wrap": "BertLayer", "min_num_params": 9}'""",
        {"fsdp": True},
    ),
    "what torch.distributed.launch and deepspeed add": (
        "sft",
        SFT + "--local-rank=0",
        {"local_rank": 0},
    ),
}  # fmt: skip


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
