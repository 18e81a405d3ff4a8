"""Command lines of TRL 0.7 and 0.11, run: two steps of each script on local rows and a tiny model.

What a line is read as stands in test_script_flags.py; here the options must also do their part.
"""

from __future__ import annotations

import importlib
import json
import math
import shlex
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "scripts"
WORDS = 300  # in the vocabulary
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder of a tiny model, a reward model, texts, pairs, and solutions that are marked."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(SCRIPTS))
        import gsm8k
        import made_up

        patched.setattr(gsm8k, "VOCABULARY", WORDS)
        sums = Path(made_up.sums(folder / "sums"))
        problems = gsm8k.problems(sums, "train")
        gsm8k.new_model(folder / "start", problems, seed=0, small=True)
        solved, _ = gsm8k.solved(sums)
        pairs, marked = gsm8k.pairs(solved), gsm8k.marked(solved)
    texts = [row["prompt"][0]["content"] + row["completion"][0]["content"] for row in problems]
    Dataset.from_dict({"words": texts}).to_json(folder / "texts.json")
    for name, rows in (("pairs", pairs), ("marked", marked)):
        plain = [
            {k: v[0]["content"] if isinstance(v, list) else v for k, v in row.items()}
            for row in rows
        ]
        Dataset.from_list(plain).to_json(folder / f"{name}.json")
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "start", num_labels=1)
    judge.save_pretrained(folder / "judge")
    AutoTokenizer.from_pretrained(folder / "start").save_pretrained(folder / "judge")
    return folder


@pytest.fixture
def run(hub, monkeypatch, tmp_path):
    """run(script, line): the trainer that the line made, after its training."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import command_line

    for name in ("start", "judge", "texts.json", "pairs.json", "marked.json"):
        (tmp_path / name).symlink_to(hub / name)
    monkeypatch.chdir(tmp_path)
    made, fit = [], command_line.fit

    def watched(trainer, given):
        made.append(trainer)
        fit(trainer, given)

    monkeypatch.setattr(command_line, "fit", watched)

    def start(script, line):
        importlib.import_module(script).main(shlex.split(line))
        return made.pop()

    return start


def first_loss(trainer):
    return next(row["loss"] for row in trainer.state.log_history if "loss" in row)


def adapter(folder="out"):
    """The saved adapter's settings, and whether it learnt: its second matrix starts as zeros."""
    settings = json.loads(Path(folder, "adapter_config.json").read_text())
    weights = load_file(Path(folder, "adapter_model.safetensors"))
    learnt = all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    return settings, learnt


def test_sft_of_0_7_4(run):
    trainer = run(
        "sft",
        "--model_name start --dataset_name texts.json --dataset_text_field words --log_with none "
        "--learning_rate 1e-2 --batch_size 2 --seq_length 16 --gradient_accumulation_steps 2 "
        "--use_peft --peft_lora_r 4 --peft_lora_alpha 2 --trust_remote_code --use_auth_token True "
        "--num_train_epochs 1 --max_steps 2 --save_steps 1 --save_total_limit 1 --output_dir out "
        "--use_cpu",
    )
    assert trainer.state.global_step == 2
    assert first_loss(trainer) == pytest.approx(math.log(WORDS), abs=0.5)
    assert max(map(len, trainer.train_dataset["input_ids"])) == 16
    settings, learnt = adapter()
    assert (settings["r"], settings["lora_alpha"], learnt) == (4, 2, True)
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_sft_of_0_7_11(run):
    trainer = run(
        "sft",
        "--model_name_or_path start --dataset_name texts.json --dataset_text_field words "
        "--max_seq_length 128 --packing --torch_dtype float32 --report_to none --output_dir out "
        "--overwrite_output_dir --per_device_train_batch_size 1 --evaluation_strategy no "
        "--warmup_ratio 0.5 --gradient_checkpointing_use_reentrant False --no_cuda --max_steps 2 "
        "--logging_steps 1 --learning_rate 1e-2",
    )
    assert trainer.state.global_step == 2
    assert first_loss(trainer) == pytest.approx(math.log(WORDS), abs=0.5)
    assert len(trainer.train_dataset) < 12  # several texts in a row
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == [0.0, 1e-2]  # half of the two steps warm up
    assert Path("out", "model.safetensors").exists()


def test_reward_modeling_by_tyro(run):
    trainer = run(
        "reward_modeling",
        "--model_name start --dataset_name pairs.json --reward_config.learning_rate 1e-2 "
        "--reward-config.max-length 200 --reward_config.evaluation_strategy no "
        "--reward_config.no-gradient-checkpointing --reward_config.output_dir=out "
        "--reward_config.per-device-train-batch-size 4 --reward_config.max_steps 2 "
        "--reward_config.gradient_accumulation_steps 1 --reward_config.logging_steps 1 "
        "--reward_config.report_to none --reward_config.use_cpu --eval_split none --use-peft "
        "--no-trust-remote-code peft_config:lora-config --peft_config.r 4 --peft-config.lora-alpha "
        "8 --peft_config.target_modules q_proj v_proj --peft_config.bias none",
    )
    assert trainer.state.global_step == 2 and trainer.args.train_batch_size == 4
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=0.1)
    settings, learnt = adapter()
    assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (4, 8, "SEQ_CLS")
    assert sorted(settings["target_modules"]) == ["q_proj", "v_proj"] and learnt


@pytest.mark.slow
def test_reward_modeling_of_0_7_11(run):
    trainer = run(
        "reward_modeling",
        "--model_name_or_path start --output_dir out --dataset_name pairs.json "
        "--per_device_train_batch_size 4 --num_train_epochs 1 --gradient_accumulation_steps 2 "
        "--gradient_checkpointing True --learning_rate 1e-2 --report_to none "
        "--remove_unused_columns False --optim adamw_torch --logging_steps 1 --max_steps 2 "
        "--evaluation_strategy no --max_length 200 --no_cuda",
    )
    assert trainer.state.global_step == 2 and trainer.args.gradient_accumulation_steps == 2
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=0.1)
    assert type(trainer.optimizer.optimizer).__name__ == "AdamW"
    assert trainer.model.is_gradient_checkpointing
    weights = [load_file(Path(name, "model.safetensors")) for name in ("start", "out")]
    shared = [name for name in weights[1] if name in weights[0] and name.endswith("proj.weight")]
    assert shared and not any(weights[0][name].equal(weights[1][name]) for name in shared)


@pytest.mark.slow
def test_dpo_of_0_7_4(run):
    """Its defaults too: RMSprop, 1000 rows, a warm-up of 150 steps."""
    trainer = run(
        "dpo",
        "--model_name start --dataset_name pairs.json --beta 0.2 --use_peft --peft_lora_r 8 "
        "--peft_lora_alpha 2 --max_prompt_length 128 --label_pad_token_id -100 --report_to none "
        "--max_steps 2 --logging_steps 1 --output_dir out --no_cuda --evaluation_strategy no",
    )
    assert trainer.state.global_step == 2
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)
    assert type(trainer.optimizer.optimizer).__name__ == "RMSprop"
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == pytest.approx([0.0, 1e-3 / 150])
    settings, learnt = adapter()
    assert (settings["r"], settings["lora_alpha"], learnt) == (8, 2, True)


def test_dpo_of_0_11(run):
    trainer = run(
        "dpo",
        "--dataset_name pairs.json --model_name_or_path start --learning_rate 1e-2 --beta 0.2 "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --gradient_checkpointing "
        "--logging_steps 1 --output_dir out --no_remove_unused_columns --max_prompt_length 128 "
        "--max_length 256 --loss_type sigmoid --use_peft --lora_r 4 --lora_alpha 8 --max_steps 2 "
        "--report_to none --torch_dtype float32 --no_cuda --sanity_check --evaluation_strategy no",
    )
    assert trainer.state.global_step == 2 and trainer.args.beta == 0.2
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)  # policy = reference
    assert trainer.state.log_history[-2]["rewards/margins"] != 0
    settings, learnt = adapter()
    assert (settings["r"], settings["lora_alpha"], learnt) == (4, 8, True)


@pytest.mark.slow
def test_kto_of_0_11(run):
    """The line of TRL's script for an adapter, without --load_in_4bit, which needs a GPU."""
    trainer = run(
        "kto",
        "--dataset_name marked.json --model_name_or_path start --per_device_train_batch_size 4 "
        "--num_train_epochs 1 --learning_rate 1e-2 --lr_scheduler_type=cosine "
        "--gradient_accumulation_steps 1 --logging_steps 1 --eval_steps 500 --output_dir=out "
        "--warmup_ratio 0.5 --report_to none --bf16 False --logging_first_step --use_peft "
        "--lora_target_modules=all-linear --lora_r=16 --lora_alpha=16 --max_steps 4 --no_cuda "
        "--max_length 256 --max_prompt_length 128 --desirable_weight 2.0",
    )
    assert trainer.state.global_step == 4
    # Policy = reference: 1 - sigmoid(0) of each row, times 2 where the answer is marked as good.
    good = [row["label"] for row in trainer.train_dataset][:4].count(True)
    assert 0 < good < 4
    assert first_loss(trainer) == pytest.approx(0.5 * (2 * good + (4 - good)) / 4, abs=1e-5)
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == pytest.approx([0, 5e-3, 1e-2, 5e-3])  # half warms up, then half a cosine
    assert trainer.state.log_history[-2]["rewards/chosen"] != 0
    settings, learnt = adapter()
    assert (settings["r"], settings["lora_alpha"], learnt) == (16, 16, True)
    linear = {name.rpartition(".")[2] for name in settings["target_modules"]}
    assert linear == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.mark.slow
def test_rloo_of_0_11(run):
    trainer = run(
        "rloo",
        "--dataset_name marked.json --model_name_or_path judge --sft_model_path start "
        "--reward_model_path judge --rloo_k 2 --num_ppo_epochs 3 --kl_coef 0.03 "
        "--response_length 5 --per_device_train_batch_size 4 --learning_rate 1e-2 --max_steps 3 "
        "--logging_steps 1 --output_dir out --report_to none --no_cuda "
        "--local_rollout_forward_batch_size 1",
    )
    assert trainer.state.global_step == 3
    assert (trainer.args.num_generations, trainer.args.beta) == (2, 0.03)
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert steps[0]["completions/max_length"] <= 5 and steps[0]["kl"] == 0
    assert steps[0]["rewards/judge/mean"] == steps[0]["reward"] != 0
    # Three updates by the answers of one rollout, whose rewards are told once.
    assert [name for row in steps for name in row if name == "reward"] == ["reward"]
    assert steps[1]["entropy"] != steps[0]["entropy"]


# Script -> the words that are its own.
PAIRS = {
    "orpo": "--beta 0.1 --optim rmsprop --warmup_steps 1 --bf16 False --no_remove_unused_columns",
    "cpo": "--loss_type simpo --cpo_alpha 0.0 --simpo_gamma 1.6 --beta 2.5 --bf16 False "
    "--label_pad_token_id -100",
}


@pytest.mark.slow
@pytest.mark.parametrize("script", PAIRS)
def test_orpo_and_cpo_of_0_11(run, script):
    trainer = run(
        script,
        "--dataset_name pairs.json --model_name_or_path=start --per_device_train_batch_size 4 "
        "--max_steps 2 --learning_rate 1e-2 --gradient_accumulation_steps 1 --logging_steps 1 "
        "--eval_steps 500 --output_dir=out --report_to none --logging_first_step --use_peft "
        "--lora_r=16 --lora_alpha=16 --max_length 256 --max_prompt_length 128 --no_cuda "
        + PAIRS[script],
    )
    assert trainer.state.global_step == 2
    first = next(row for row in trainer.state.log_history if "loss" in row)
    if script == "cpo":  # -log sigmoid(beta * margin - gamma), its mean over four pairs
        middle = -math.log(1 / (1 + math.exp(1.6 - first["rewards/margins"])))
        assert first["loss"] == pytest.approx(middle, rel=0.02)
    else:  # cross-entropy of the chosen answer, and beta of the odds
        odds = first["loss"] - first["nll_loss"]
        assert odds == pytest.approx(-0.1 * first["log_odds_ratio"], rel=0.1) and odds > 0
        assert type(trainer.optimizer.optimizer).__name__ == "RMSprop"
    settings, learnt = adapter()
    assert (settings["r"], settings["lora_alpha"], learnt) == (16, 16, True)
