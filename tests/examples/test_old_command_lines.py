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

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "scripts"
WORDS = 300  # in the vocabulary
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder of a tiny model, texts and pairs."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(SCRIPTS))
        import gsm8k
        import made_up

        patched.setattr(gsm8k, "VOCABULARY", WORDS)
        sums = Path(made_up.sums(folder / "sums"))
        problems = gsm8k.problems(sums, "train")
        gsm8k.new_model(folder / "start", problems, seed=0, small=True)
        pairs = gsm8k.pairs(gsm8k.solved(sums)[0])
    texts = [row["prompt"][0]["content"] + row["completion"][0]["content"] for row in problems]
    Dataset.from_dict({"words": texts}).to_json(folder / "texts.json")
    plain = [
        {name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")}
        for row in pairs
    ]
    Dataset.from_list(plain).to_json(folder / "pairs.json")
    return folder


@pytest.fixture
def run(hub, monkeypatch, tmp_path):
    """run(script, line): the trainer that the line made, after its training."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import command_line

    for name in ("start", "texts.json", "pairs.json"):
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
