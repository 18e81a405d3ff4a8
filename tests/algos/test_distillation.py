"""Distillation: TRL's numbers, the loss by its definition, tools, resuming, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

import fastrl
from fastrl import DistillationConfig, DistillationTrainer
from fastrl.train.experience import Drawn
from tests.algos.offline_parity.making import CHATML, model, tokenizer
from tests.algos.online_parity import distilled, making, records, running
from tests.train.online_runs import PROMPTS, SHORT

QUICK = {
    "distillation_reverse", "distillation_uneven", "distillation_accumulation",
    "distillation_lora", "distillation_evaluated",
}  # fmt: skip
# Fields of the other online trainers that mean the same here.
OURS = {
    "balance_ranks", "log_multimodal", "transformers_continuous_batching_config",
    "use_transformers_continuous_batching", "use_transformers_paged",
}  # fmt: skip


def trainer_of(folder, teacher="wide", rows=PROMPTS, student=None, more=None, **given):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 8,
        "max_completion_length": 6,
        **SHORT,
        **given,
    }
    return DistillationTrainer(
        student or model("llama"),
        making.teacher(teacher) if isinstance(teacher, str) else teacher,
        args=DistillationConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": rows}),
        eval_dataset=Dataset.from_dict({"prompt": rows}),
        processing_class=tokenizer(CHATML),
        **(more or {}),
    )


def scripted(trainer, answers, written=None):
    """Make the trainer draw these ids to its prompts, in their order."""

    def draw(rows):
        prompts = [row["prompt"] for row in rows]
        ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        places = [PROMPTS.index(prompt) for prompt in prompts]
        own = None if written is None else [written[i] for i in places]
        drawn = [answers[i] for i in places]
        return Drawn(prompts, trainer.processing_class.batch_decode(drawn), ids, drawn, own)

    trainer._collecting._drawing.draw = draw


@torch.no_grad()
def expected(trainer, answers, written=None):
    """Σ of reverse KL over the tokens of all answers, and their number, by whole logits."""
    total, count = 0.0, 0
    for i, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        front = trainer.processing_class(prompt)["input_ids"]
        ids = torch.tensor([front + answer])
        p, q = (
            (part(input_ids=ids).logits[0, len(front) - 1 : -1].double()).softmax(-1)
            for part in (trainer.model.eval(), trainer.teacher_model)
        )
        divergence = (p * (p / q).log()).sum(-1)
        wanted = [True] * len(answer) if written is None else written[i]
        total += divergence[torch.tensor(wanted)].sum().item()
        count += sum(wanted)
    return total, count


def column(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


# --- TRL's numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in QUICK else pytest.mark.slow)
        for case in distilled.ALL
    ],
)
def test_logs_what_trl_logs(case):
    different = records.differences(running.run(case, fastrl), records.read(case))
    assert not different, "\n" + "\n".join(different)


def test_every_quick_case_exists():
    assert {case.name for case in distilled.ALL} >= QUICK


def test_the_judge_sees_a_loss_that_is_off():
    want = records.read(distilled.ALL[0])
    got = {"asked": want["asked"], "logs": {k: list(v) for k, v in want["logs"].items()}}
    assert records.differences(got, want) == []
    for key in ("loss", "grad_norm", "entropy"):
        got["logs"][key][6] += 2e-4 * abs(got["logs"][key][6])
    said = records.differences(got, want)
    assert [line.split(":")[0] for line in said] == ["entropy", "grad_norm", "loss"]


def test_every_field_beyond_trls_is_named():
    theirs = set(re.findall(r"\w+", RECORDED_FIELDS))
    own = {f.name for f in dataclasses.fields(DistillationConfig) if f.init}
    assert own - set(TrainingArguments.__dataclass_fields__) - theirs == OURS
    assert theirs - own == set()


# What TRL 1.16.0's config has beyond `TrainingArguments`.
RECORDED_FIELDS = """
model_init_kwargs trust_remote_code teacher_model_name_or_path teacher_model_revision
teacher_model_init_kwargs disable_dropout max_completion_length ds3_gather_for_generation
shuffle_dataset pad_to_multiple_of temperature top_p top_k min_p generation_kwargs
chat_template_kwargs repetition_penalty cache_implementation use_vllm vllm_mode vllm_model_impl
vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host
vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization
vllm_max_model_length vllm_tensor_parallel_size beta max_tool_calling_iterations log_completions
num_completions_to_print log_unique_prompts
"""


# --- the loss ------------------------------------------------------------------------------------

ANSWERS = [[5, 9, 1], [7], [40, 41, 42, 43, 44, 45], [6, 1], [8, 8], [9, 1], [30, 31, 32], [1]]


def test_the_loss_is_the_mean_over_tokens_by_its_definition(tmp_path):
    trainer = trainer_of(tmp_path)
    scripted(trainer, ANSWERS)
    total, count = expected(trainer, ANSWERS)
    assert count == sum(map(len, ANSWERS)) and total / count > 0.5
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert not any(p.requires_grad for p in trainer.teacher_model.parameters())


def test_a_step_weighs_every_token_alike_whatever_its_micro_batch(tmp_path):
    trainer = trainer_of(
        tmp_path, max_steps=1, gradient_accumulation_steps=4, per_device_train_batch_size=2
    )
    scripted(trainer, ANSWERS)
    total, count = expected(trainer, ANSWERS)
    trainer.train()
    assert column(trainer, "loss") == [pytest.approx(total / count, rel=1e-5)]


def test_what_tools_say_is_not_learnt(tmp_path):
    written = [[i % 3 != 1 for i in range(len(answer))] for answer in ANSWERS]
    trainer = trainer_of(tmp_path)
    scripted(trainer, ANSWERS, written)
    total, count = expected(trainer, ANSWERS, written)
    assert 0 < count < sum(map(len, ANSWERS))
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["eval_completions/mean_length"] == count / len(ANSWERS)


def test_an_adapter_on_the_head_is_trained(tmp_path):
    from peft import LoraConfig

    adapter = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    trainer = trainer_of(tmp_path, more={"peft_config": adapter}, max_steps=2)
    scripted(trainer, ANSWERS)
    total, count = expected(trainer, ANSWERS)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    trainer.train()
    grown = [p for n, p in trainer.model.named_parameters() if "lora_B" in n]
    assert grown and all(p.abs().sum() > 0 for p in grown)


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher(tmp_path):
    teacher = model("llama")
    for parameter in teacher.parameters():
        parameter.data.mul_(1.5)
    given = {"max_steps": 15, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    trainer = trainer_of(tmp_path, teacher, gradient_accumulation_steps=1, **given)
    before, count = expected(trainer, ANSWERS)
    trainer.train()
    after, _ = expected(trainer, ANSWERS)
    assert before / count > 0.05 and after < 0.7 * before


# --- around it -----------------------------------------------------------------------------------


def test_a_resumed_run_logs_what_the_whole_one_does(tmp_path):
    given = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer_of(tmp_path / "whole", **given)
    whole.train()
    kept = tmp_path / "whole" / "checkpoint-2"
    assert not any("teacher" in file.name for file in kept.iterdir())
    part = trainer_of(tmp_path / "part", **given)
    part.train(resume_from_checkpoint=str(kept))
    for key in ("loss", "grad_norm", "num_tokens", "entropy"):
        assert len(column(whole, key)) == 4 and column(part, key) == column(whole, key), key


def test_completions_are_kept_without_scores(tmp_path, capsys):
    import pandas as pd

    trainer = trainer_of(tmp_path, max_steps=1, log_completions=True)
    scripted(trainer, ANSWERS)
    trainer.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert list(table.columns) == ["step", "prompt", "completion"] and len(table) == 4
    assert set(table["prompt"]) <= set(PROMPTS)
    assert table["prompt"][0] in capsys.readouterr().out


def test_columns_beside_the_prompt_have_any_name(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    rows = [{"prompt": prompt, "completions": [prompt], "environments": 1} for prompt in PROMPTS]
    other = DistillationTrainer(
        model("llama"),
        making.teacher("wide"),
        trainer.args,
        Dataset.from_list(rows),
        processing_class=tokenizer(CHATML),
    )
    for one in (trainer, other):
        scripted(one, ANSWERS)
        one.train()
    assert column(other, "loss") == column(trainer, "loss")


def test_the_teacher_may_be_named_in_the_arguments(tmp_path):
    making.teacher("wide").save_pretrained(tmp_path / "teacher")
    named = str(tmp_path / "teacher")
    trainer = trainer_of(tmp_path, None, teacher_model_name_or_path=named)
    scripted(trainer, ANSWERS)
    same = trainer_of(tmp_path)
    scripted(same, ANSWERS)
    assert trainer.evaluate()["eval_loss"] == same.evaluate()["eval_loss"]
    assert trainer.teacher_model.dtype is torch.float32


# --- what is refused -----------------------------------------------------------------------------


def other_vocabulary():
    made = making.teacher("wide")
    made.resize_token_embeddings(96)
    return made


@pytest.mark.parametrize(
    ("teacher", "given", "said"),
    [
        (None, {}, "teacher_model is required"),
        ("wide", {"teacher_model_name_or_path": "another"}, "two teachers"),
        ("wide", {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}, "loaded already"),
        ("wide", {"teacher_model_revision": "main"}, "loaded already"),
        ("wide", {"beta": 1.5}, "beta must be between 0 and 1, got 1.5"),
        ("wide", {"beta": -0.5}, "beta must be"),
        ("wide", {"temperature": 0.0}, "temperature must be positive"),
        ("wide", {"max_tool_calling_iterations": 0}, "max_tool_calling_iterations must be 1"),
        (lambda: model("llama", "score"), {}, "teacher_model: LlamaForSequence.* has no language"),
        (other_vocabulary, {}, "teacher_model has vocab_size 96 and model 80"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path, teacher, given, said):
    with pytest.raises(ValueError, match=said):
        trainer_of(tmp_path, teacher() if callable(teacher) else teacher, **given)


def test_the_student_is_no_teacher_of_its_own(tmp_path):
    student = model("llama")
    with pytest.raises(ValueError, match="the object given as model"):
        trainer_of(tmp_path, student, student=student)
    with pytest.raises(TypeError, match="teacher_model must be a name or a transformers model"):
        trainer_of(tmp_path, 7)


def test_soft_prompts_are_refused(tmp_path):
    from peft import PromptTuningConfig

    prompt = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="soft prompt"):
        trainer_of(tmp_path, more={"peft_config": prompt})


def test_more_prompts_than_there_are(tmp_path):
    with pytest.raises(ValueError, match="8 prompts, but a generation batch takes 12"):
        trainer_of(tmp_path, gradient_accumulation_steps=6)


def test_the_temperature_is_of_both(tmp_path):
    """Two models that differ by the size of their logits alone are one at temperature 0+."""
    student, teacher = model("llama"), model("llama")
    teacher.lm_head.weight.data.mul_(3.0)
    losses = []
    for temperature in (0.5, 1.0, 100.0):
        trainer = trainer_of(tmp_path, teacher, student=student, temperature=temperature)
        scripted(trainer, ANSWERS)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] > losses[1] > losses[2] > 0
    # By the second order of KL in the logits' difference over the temperature.
    assert losses[2] == pytest.approx(losses[1] * 1e-4, rel=0.7) and not math.isnan(losses[0])
