"""Log files, progress, samples."""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerControl,
    TrainingArguments,
)

from fastrl.models.policy import prepare_policy
from fastrl.train.callbacks import (
    BEMACallback,
    LogCompletionsCallback,
    LogFileCallback,
    RichProgressCallback,
    SyncRefModelCallback,
    WeaveCallback,
)
from fastrl.train.callbacks.log_file import plain, read_log

CONTROL = TrainerControl()
WORDS = ["a", "b", "c", "d", "e", "f"]


def parse(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def lines(folder):
    return [parse(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", "<bos>", "user", ":", *WORDS])}
    plain_tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    plain_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain_tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    return made


def make_trainer(folder, tokenizer, callbacks=(), prompts=("a b", "c", "d e f"), **options):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=2, eos_token_id=1
    )
    ids = tokenizer("a b c d e f")["input_ids"]
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids}] * 8)
    settings = {
        "max_steps": 4,
        "logging_steps": 1,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return Trainer(
        GPT2LMHeadModel(config),
        TrainingArguments(str(folder), **settings | options),
        train_dataset=rows,
        eval_dataset=Dataset.from_list(
            [{"prompt": p, "input_ids": ids, "labels": ids} for p in prompts]
        ),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


# --- log.jsonl -----------------------------------------------------------------------------------
def test_log_file_holds_every_log(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, [LogFileCallback()])
    trainer.train()
    rows = lines(tmp_path)
    history = trainer.state.log_history
    assert [row["step"] for row in rows] == [entry["step"] for entry in history]
    for row, entry in zip(rows, history, strict=True):
        assert {k: row[k] for k in entry} == entry
        assert row["time"] > 1.7e9
    assert [row["loss"] for row in rows[:-1]] and "train_runtime" in rows[-1]


def test_resuming_drops_what_lies_beyond_the_checkpoint(tmp_path, tokenizer):
    make_trainer(tmp_path, tokenizer, [LogFileCallback()]).train()
    before = lines(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 1, "half')
    trainer = make_trainer(tmp_path, tokenizer, [LogFileCallback()], max_steps=5)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = lines(tmp_path)
    assert [row["step"] for row in after] == [1, 2, 3, 4, 5, 5]
    assert after[:2] == before[:2]
    assert after[2]["time"] > before[-1]["time"]


def test_a_new_run_starts_anew_but_keeps_its_own_first_evaluation(tmp_path, tokenizer):
    make_trainer(tmp_path, tokenizer, [LogFileCallback()]).train()
    old = lines(tmp_path)
    trainer = make_trainer(tmp_path, tokenizer, [LogFileCallback()])
    trainer.evaluate()
    assert lines(tmp_path)[: len(old)] == old  # evaluating alone never deletes a log
    trainer.train()
    rows = lines(tmp_path)
    assert "eval_loss" in rows[0] and [row["step"] for row in rows] == [0, 1, 2, 3, 4, 4]


def test_only_the_main_process_writes(tmp_path):
    args = SimpleNamespace(output_dir=tmp_path)
    state = SimpleNamespace(global_step=1, is_world_process_zero=False)
    LogFileCallback().on_train_begin(args, state, CONTROL)
    LogFileCallback().on_log(args, state, CONTROL, logs={"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_every_value_is_strict_json(tmp_path):
    args = SimpleNamespace(output_dir=tmp_path / "new")
    state = SimpleNamespace(global_step=3, is_world_process_zero=True)
    logs = {
        "nan": float("nan"),
        "inf": np.float32("inf"),
        "tensor": torch.tensor(2.5),
        "one": torch.tensor([1]),
        "many": torch.tensor([1.0, float("nan")]),
        "numpy": np.int64(4),
        "none": None,
        "text": "é",
        "nested": {"a": float("-inf"), 1: (True,)},
        "thing": GenerationConfig,
    }
    LogFileCallback().on_log(args, state, CONTROL, logs=logs)
    (row,) = lines(tmp_path / "new")
    del row["time"]
    assert row == {
        "step": 3,
        "nan": None,
        "inf": None,
        "tensor": 2.5,
        "one": [1],
        "many": [1.0, None],
        "numpy": 4,
        "none": None,
        "text": "é",
        "nested": {"a": None, "1": [True]},
        "thing": str(GenerationConfig),
    }
    assert plain(np.array([], dtype=np.float32)) == []


def test_read_log_skips_what_is_no_object(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n[2]\n{"step": \n\n{"step": 3}\n')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 3}]


# --- progress ------------------------------------------------------------------------------------
def test_rich_progress_shows_steps_and_latest_metrics():
    from rich.console import Console

    callback = RichProgressCallback()
    text = io.StringIO()
    callback._console = Console(file=text, width=120, force_terminal=False)
    state = SimpleNamespace(is_world_process_zero=True, max_steps=20, global_step=0)
    callback.on_train_begin(None, state, CONTROL)
    state.global_step = 7
    callback.on_step_end(None, state, CONTROL)
    callback.on_log(None, state, CONTROL, logs={"loss": 0.5, "rewards/chosen": 1.25, "epoch": 0.5})
    callback.on_log(None, state, CONTROL, logs={"loss": 0.125, "tokens": 12345.0})
    callback.on_prediction_step(None, state, CONTROL, eval_dataloader=[1, 2, 3])
    assert [task.total for task in callback._bars.tasks] == [20, 3]
    callback.on_evaluate(None, state, CONTROL)
    assert [task.completed for task in callback._bars.tasks] == [7]
    callback.on_train_end(None, state, CONTROL)
    drawn = text.getvalue()
    assert drawn.endswith("\n")
    assert "7/20" in drawn and "evaluation" not in drawn
    assert "▼ 0.38" in drawn and "0.125" in drawn  # the latest loss and its way there
    assert "rewards" in drawn and "chosen" in drawn and "1.25" in drawn  # kept from the log before
    assert "12,345" in drawn and "epoch" not in drawn


def test_rich_progress_through_a_training_run(tmp_path, tokenizer, capsys):
    trainer = make_trainer(
        tmp_path, tokenizer, [RichProgressCallback()], eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    drawn = capsys.readouterr().out
    assert "4/4" in drawn and "eval_loss" in drawn


def test_other_ranks_draw_nothing(capsys):
    callback = RichProgressCallback()
    state = SimpleNamespace(is_world_process_zero=False, max_steps=2, global_step=1)
    callback.on_train_begin(None, state, CONTROL)
    callback.on_step_end(None, state, CONTROL)
    callback.on_log(None, state, CONTROL, logs={"loss": 1.0})
    callback.on_prediction_step(None, state, CONTROL)
    callback.on_evaluate(None, state, CONTROL)
    callback.on_train_end(None, state, CONTROL)
    assert capsys.readouterr().out == ""


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install rich"):
        RichProgressCallback()
    with pytest.raises(ImportError, match="pip install weave"):
        WeaveCallback(trainer=None)


# --- samples -------------------------------------------------------------------------------------
GREEDY = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=1, pad_token_id=0)


def expected(trainer, tokenizer, text):
    """Greedy continuation of one prompt alone, token by token."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(3):
        if ids[0, -1] == 1 and ids.shape[1] > start:
            break
        ids = torch.cat([ids, trainer.model(ids).logits[:, -1:].argmax(-1)], 1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_completions_are_the_models_own(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, per_device_eval_batch_size=2)
    callback = LogCompletionsCallback(trainer, GREEDY, num_prompts=2, freq=4)
    trainer.add_callback(callback)
    trainer.train()
    rows = [parse(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(4, "a b"), (4, "c")]
    trainer.model.eval()
    with torch.no_grad():
        for row in rows:
            assert row["completion"] == expected(trainer, tokenizer, row["prompt"])
    assert callback.table == [list(row.values()) for row in rows]
    assert tokenizer.padding_side == "right"


def test_messages_are_rendered_for_the_assistant_to_begin(tmp_path, tokenizer):
    prompts = [[{"role": "user", "content": "b c"}]]
    trainer = make_trainer(tmp_path, tokenizer, prompts=prompts)
    trainer.add_callback(LogCompletionsCallback(trainer, GREEDY, freq=4))
    trainer.train()
    row = parse((tmp_path / "completions.jsonl").read_text())
    assert row["prompt"] == "user : b c a"


def test_sampling_leaves_training_as_it_was(tmp_path, tokenizer):
    sampled = GenerationConfig(max_new_tokens=3, do_sample=True, eos_token_id=1, pad_token_id=0)
    weights = []
    for on in (False, True):
        trainer = make_trainer(tmp_path / str(on), tokenizer)
        # As in this package's trainers: the engine runs on a model whose activations are fused,
        # which rounds differently.
        prepare_policy(trainer.model)
        if on:
            trainer.add_callback(LogCompletionsCallback(trainer, sampled, freq=1))
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*weights)


def test_tables_go_to_the_trackers_named(tmp_path, tokenizer, monkeypatch):
    sent = []
    wandb = SimpleNamespace(Table=lambda columns, data: (columns, data), log=sent.append)
    experiment = SimpleNamespace(log_table=lambda name, **table: sent.append((name, table)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(
        sys.modules, "comet_ml", SimpleNamespace(get_running_experiment=lambda: experiment)
    )
    trainer = make_trainer(tmp_path, tokenizer)
    callback = LogCompletionsCallback(trainer, GREEDY, num_prompts=1, freq=1)
    args = SimpleNamespace(
        output_dir=tmp_path, per_device_eval_batch_size=1, report_to=["wandb", "comet_ml"]
    )
    callback.on_step_end(args, SimpleNamespace(global_step=1, eval_steps=9), CONTROL)
    callback.on_step_end(args, SimpleNamespace(global_step=1, eval_steps=9), CONTROL)  # once a step
    columns, data = sent[0]["completions"]
    assert columns == ["step", "prompt", "completion"] and data == callback.table
    assert sent[1] == ("completions.csv", {"tabular_data": data, "headers": columns})
    assert len(sent) == 2


def test_samples_refuse_what_they_cannot_serve(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="freq="):
        LogCompletionsCallback(trainer)
    trainer.eval_dataset = trainer.eval_dataset.remove_columns("prompt")
    with pytest.raises(ValueError, match=r"column 'prompt' .* \['input_ids', 'labels'\]"):
        LogCompletionsCallback(trainer, freq=1)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="one eval_dataset"):
        LogCompletionsCallback(trainer, freq=1)


def test_weave_gets_predictions_scores_and_means(tmp_path, tokenizer, monkeypatch):
    seen = []

    class Logger:
        def __init__(self, **about):
            seen.append(("logger", about))

        def log_prediction(self, inputs, output):
            return SimpleNamespace(
                log_score=lambda scorer, score: seen.append((scorer, score)),
                finish=lambda: seen.append(("finish", inputs["prompt"])),
            )

        def log_summary(self, summary):
            seen.append(("summary", summary))

        def finish(self):
            seen.append(("end", None))

    weave = SimpleNamespace(EvaluationLogger=Logger, init=lambda name: seen.append(("init", name)))
    clients = SimpleNamespace(get_weave_client=lambda: None)
    monkeypatch.setitem(sys.modules, "weave", weave)
    monkeypatch.setitem(sys.modules, "weave.trace.context.weave_client_context", clients)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "weave" or None)
    trainer = make_trainer(tmp_path, tokenizer)
    scorers = {"length": lambda prompt, completion: len(prompt)}
    callback = WeaveCallback(trainer, "p", scorers, GREEDY, num_prompts=2, model_name="m")
    args = SimpleNamespace(per_device_eval_batch_size=2)
    state = SimpleNamespace(global_step=5, is_world_process_zero=True)
    callback.on_train_begin(args, state, CONTROL)
    callback.on_evaluate(args, state, CONTROL)
    about = dict(seen)
    assert about["init"] == "p"
    assert about["logger"]["dataset"] == "eval_dataset" and about["logger"]["model"] == "m"
    assert about["logger"]["eval_attributes"]["training_step"] == 5
    assert [s for s in seen if s[0] == "length"] == [("length", 3), ("length", 1)]
    assert about["summary"] == {"total_predictions": 2, "avg_length": 2.0}
    nowhere = WeaveCallback(trainer)
    with pytest.raises(ValueError, match="project_name="):
        nowhere.on_train_begin(args, state, CONTROL)


# --- signatures ----------------------------------------------------------------------------------
def test_constructors_take_what_trls_take():
    """Names, order and defaults of TRL 1.16.0."""
    expected = {
        BEMACallback: {
            "update_freq": 400,
            "ema_power": 0.5,
            "bias_power": 0.2,
            "lag": 10,
            "update_after": 0,
            "multiplier": 1.0,
            "min_ema_multiplier": 0.0,
            "device": "cpu",
        },
        SyncRefModelCallback: {"ref_model": inspect._empty, "accelerator": inspect._empty},
        RichProgressCallback: {},
        LogCompletionsCallback: {
            "trainer": inspect._empty,
            "generation_config": None,
            "num_prompts": None,
            "freq": None,
        },
        WeaveCallback: {
            "trainer": inspect._empty,
            "project_name": None,
            "scorers": None,
            "generation_config": None,
            "num_prompts": None,
            "dataset_name": "eval_dataset",
            "model_name": None,
        },
    }
    for cls, arguments in expected.items():
        found = inspect.signature(cls).parameters
        assert [(n, p.default) for n, p in found.items()] == list(arguments.items()), cls
