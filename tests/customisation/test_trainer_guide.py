"""What the guide of `transformers.Trainer` promises, held by the trainers here."""

from __future__ import annotations

import inspect
import json
import logging as python_logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import transformers
from torch import nn
from transformers import TrainerCallback
from transformers.integrations import integration_utils

import fastrl
from fastrl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    OnlineDPOConfig,
    OnlineDPOTrainer,
    PPOv2Trainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
    TrlParser,
)
from tests.algos.offline_parity import making
from tests.customisation import runs

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "max_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
SAMPLING = {"num_generations": 4, "max_completion_length": 4}


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


# Kind -> trainer, config, kind of rows, architecture, more settings, more arguments.
KINDS: dict[str, tuple[Any, Any, str, str, dict[str, Any], dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, "completion", "lm", {}, {}),
    "dpo": (DPOTrainer, DPOConfig, "preference", "lm", {}, {}),
    "kto": (KTOTrainer, KTOConfig, "unpaired", "lm", {}, {}),
    "reward": (RewardTrainer, RewardConfig, "preference", "score", {}, {}),
    "grpo": (GRPOTrainer, GRPOConfig, "completion", "lm", SAMPLING, {"reward_funcs": length}),
    "rloo": (RLOOTrainer, RLOOConfig, "completion", "lm", SAMPLING, {"reward_funcs": length}),
    "online_dpo": (
        OnlineDPOTrainer,
        OnlineDPOConfig,
        "completion",
        "lm",
        {"max_new_tokens": 4},
        {"reward_funcs": length},
    ),
}
DRAWING = ("grpo", "rloo", "online_dpo")


def rows(kind: str, count: int, seed: int = 0) -> Any:
    made = making.rows(KINDS[kind][2], count, seed)
    return made.select_columns(["prompt"]) if kind in DRAWING else made


def build(folder: Any, kind: str = "sft", cls: Any = None, more: Any = None, **given: Any) -> Any:
    trainer, config, _, architecture, settings, arguments = KINDS[kind]
    parts = {
        "model": making.model("qwen2", architecture),
        "train_dataset": rows(kind, 16),
        "eval_dataset": rows(kind, 4, 1),
        "processing_class": making.tokenizer(),
        **arguments,
        **(more or {}),
    }
    return (cls or trainer)(args=config(str(folder), **{**SETTINGS, **settings, **given}), **parts)


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def losses(trainer: Any) -> list[float]:
    return logged(trainer, "loss")


# --- overrides ------------------------------------------------------------------------------------


def with_old_hooks(base: type) -> type:
    """A subclass that overrides every hook of the guide, by the signatures of its day."""

    class Old(base):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            self.called: list[str] = []
            super().__init__(*args, **keywords)

        def get_train_dataloader(self):
            self.called.append("get_train_dataloader")
            return super().get_train_dataloader()

        def get_eval_dataloader(self, eval_dataset=None):
            self.called.append("get_eval_dataloader")
            return super().get_eval_dataloader(eval_dataset)

        def get_test_dataloader(self, test_dataset):
            self.called.append("get_test_dataloader")
            return super().get_test_dataloader(test_dataset)

        def _get_train_sampler(self):
            self.called.append("_get_train_sampler")
            return super()._get_train_sampler()

        def log(self, logs):
            self.called.append("log")
            logs["mine"] = 1.0
            super().log(logs)

        def create_optimizer_and_scheduler(self, num_training_steps):
            self.called.append("create_optimizer_and_scheduler")
            super().create_optimizer_and_scheduler(num_training_steps)

        def create_optimizer(self):
            self.called.append("create_optimizer")
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
            return self.optimizer

        def create_scheduler(self, num_training_steps, optimizer=None):
            self.called.append("create_scheduler")
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
            return self.lr_scheduler

        def compute_loss(self, model, inputs, return_outputs=False):
            self.called.append("compute_loss")
            if not return_outputs:
                return 3 * super().compute_loss(model, inputs)
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            return 3 * loss, outputs

        def training_step(self, model, inputs):
            self.called.append("training_step")
            return super().training_step(model, inputs)

        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            self.called.append("prediction_step")
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            self.called.append("evaluate")
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

        def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
            self.called.append("predict")
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    return Old


HOOKS = [name for name in vars(with_old_hooks(object)) if not name.startswith("__")]


@pytest.mark.parametrize("kind", list(KINDS))
def test_overridable_hooks_by_their_old_signatures(tmp_path, kind):
    lr = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "optim": "sgd"}
    plain = build(tmp_path / "a", kind, **lr)
    at_start = plain.evaluate()["eval_loss"]
    plain.predict(rows(kind, 4, 1))
    plain.train()
    old = build(tmp_path / "b", kind, with_old_hooks(KINDS[kind][0]))
    evaluated = old.evaluate()
    found = old.predict(rows(kind, 4, 1))
    old.train()
    assert [hook for hook in HOOKS if hook not in old.called] == []
    assert old.called.count("training_step") == 2
    # Thrice the loss, on the same rows and the same answers.
    norms = [logged(trainer, "grad_norm")[0] for trainer in (old, plain)]
    assert norms[0] == pytest.approx(3 * norms[1], rel=1e-4)
    if kind not in ("grpo", "rloo"):  # whose loss is 0 before anything is learnt
        assert losses(old)[0] == pytest.approx(3 * losses(plain)[0], rel=1e-5)
    if kind not in DRAWING:  # who evaluate on answers drawn anew
        assert evaluated["eval_loss"] == pytest.approx(3 * at_start, rel=1e-5)
        assert found.metrics["test_loss"] == pytest.approx(3 * at_start, rel=1e-5)
    assert logged(old, "learning_rate") == [0.5, 0.25]
    assert all(entry["mine"] == 1.0 for entry in old.state.log_history)
    assert isinstance(old.optimizer.optimizer, torch.optim.SGD)


def test_overridable_hooks_of_ppo_by_train(tmp_path, monkeypatch):
    settings = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "optim": "sgd"}
    settings |= {"num_ppo_epochs": 1}
    plain = runs.build("ppo_train", tmp_path / "a", settings)
    plain.train()
    monkeypatch.setattr(fastrl, "PPOTrainer", with_old_hooks(PPOv2Trainer))
    old = runs.build("ppo_train", tmp_path / "b", settings)
    old.evaluate()
    old.train()
    predicting = {"get_eval_dataloader", "get_test_dataloader", "prediction_step", "predict"}
    assert {hook for hook in HOOKS if hook not in old.called} == predicting  # PPO predicts nothing
    assert old.called.count("training_step") == old.called.count("compute_loss") == 2
    for key in ("loss", "grad_norm"):  # the same answers in the first batch
        assert logged(old, key)[0] == pytest.approx(3 * logged(plain, key)[0], rel=1e-5)
    assert logged(old, "learning_rate") == logged(old, "lr") == [0.5, 0.25]
    assert logged(old, "episode") == [4, 8] and len(logged(old, "eps")) == 2
    assert all(entry["mine"] == 1.0 for entry in old.state.log_history)


class CustomTrainer(SFTTrainer):
    """The guide's weighted loss."""

    def compute_loss(self, model, inputs, return_outputs=False):
        labels = inputs.pop("labels")
        # forward pass
        outputs = model(**inputs)
        logits = outputs.get("logits")
        # compute custom loss
        weight = torch.linspace(1.0, 3.0, self.model.config.vocab_size, device=model.device)
        loss_fct = nn.CrossEntropyLoss(weight=weight)
        loss = loss_fct(logits.view(-1, self.model.config.vocab_size), labels.view(-1))
        return (loss, outputs) if return_outputs else loss


def test_the_guides_weighted_loss(tmp_path):
    trainer = build(tmp_path, cls=CustomTrainer, train_sampling_strategy="sequential", max_steps=1)
    tokenizer, model = making.tokenizer(), making.model("qwen2").eval()
    total = weights = 0.0
    for row in rows("sft", 16).select(range(4)):
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([*prompt, *tokenizer(row["completion"])["input_ids"], 1])
        with torch.no_grad():
            logp = model(ids[None]).logits[0].log_softmax(-1)
        for place in range(len(prompt), len(ids)):
            weight = 1 + 2 * ids[place].item() / 79
            total, weights = total - weight * logp[place, ids[place]].item(), weights + weight
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(total / weights, rel=1e-4)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0


def test_predict_prepares_its_rows_and_gives_predictions(tmp_path):
    trainer = build(tmp_path, "reward", more={"compute_metrics": lambda p: {"rows": len(p[1])}})
    found = trainer.predict(rows("reward", 6, 2))
    assert found.predictions.shape == (6, 2) and found.metrics["test_rows"] == 6
    assert found.predictions.sum(1) == pytest.approx([1] * 6, rel=1e-5)
    again = trainer.evaluate(rows("reward", 6, 2), metric_key_prefix="test")
    assert again["test_loss"] == pytest.approx(found.metrics["test_loss"], rel=1e-6)


# --- callbacks and loggers ------------------------------------------------------------------------


class Events(TrainerCallback):
    """Keeps the names of what happened; stops the run when told to."""

    def __init__(self, stop_at: int = 99) -> None:
        self.seen: list[str] = []
        self.stop_at = stop_at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.seen.append("step")
        control.should_training_stop = state.global_step >= self.stop_at
        return control

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seen.append("begin")

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.seen.append("evaluate")

    def on_save(self, *_: Any, **__: Any) -> None:
        self.seen.append("save")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        self.seen.append("log" if "loss" in logs else "summary")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seen.append("end")


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_callbacks(tmp_path, kind):
    events = Events(stop_at=2)
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = build(tmp_path, kind, more={"callbacks": [events]}, max_steps=5, **steps)
    trainer.train()
    assert events.seen == [
        *("begin", "step", "log", "step", "log"),
        *("summary", "evaluate", "save", "summary", "end"),
    ]
    assert trainer.pop_callback(Events) is events


def test_loggers_by_report_to(tmp_path, monkeypatch):
    """A logger of `report_to` gets what the trainer logs; an unknown one is refused."""
    told: list[dict[str, Any]] = []

    class Logger(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            told.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Logger)
    build(tmp_path, report_to="wandb").train()
    assert [entry["loss"] > 0 for entry in told if "loss" in entry] == [True, True]
    assert {"num_tokens", "mean_token_accuracy", "entropy"} <= told[0].keys()
    with pytest.raises(ValueError, match="nothing is not supported"):
        build(tmp_path, report_to=["nothing"])


# --- the log level --------------------------------------------------------------------------------


@pytest.fixture
def verbosity() -> Any:
    """transformers' own and that of datasets, put back at the end."""
    kept = [(each, each.get_verbosity()) for each in (transformers.logging, datasets.logging)]
    yield
    for each, before in kept:
        each.set_verbosity(before)


# Command line -> levels of (main process, another of its node, main of another node).
LEVELS = {
    "--log_level warning --log_level_replica error": (30, 40, 30),
    "--log_level warning --log_level_replica error --log_on_each_node 0": (30, 40, 40),
    "--log_level error --log_level_replica error --log_on_each_node 0": (40, 40, 40),
}


@pytest.mark.parametrize("line", LEVELS)
@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, RewardConfig, GRPOConfig])
def test_log_level_replica(line, config, monkeypatch, verbosity):
    parsed = ["--output_dir", "out", "--use_cpu", "--report_to", "none", *line.split()]
    (args,) = TrlParser((config,)).parse_args_and_config(args=parsed)
    seen = []
    for index, local in ((0, 0), (1, 1), (2, 0)):
        monkeypatch.setattr(config, "process_index", property(lambda _, at=index: at))
        monkeypatch.setattr(config, "local_process_index", property(lambda _, at=local: at))
        seen.append(args.get_process_log_level())
    assert tuple(seen) == LEVELS[line]


def test_get_process_log_level_is_what_the_trainer_sets(tmp_path, verbosity):
    for level in ("info", "error"):
        trainer = build(tmp_path, log_level=level)
        wanted = getattr(python_logging, level.upper())
        assert trainer.args.get_process_log_level() == wanted
        assert transformers.logging.get_verbosity() == wanted


@pytest.mark.parametrize(("index", "level"), [(0, 30), (1, 40)])
def test_the_guides_lines_for_a_scripts_own_loggers(
    tmp_path, monkeypatch, verbosity, caplog, index, level
):
    """A replica says errors only, in the script, in datasets and in transformers; trainers too."""
    logger = python_logging.getLogger("my_app")
    monkeypatch.setattr(SFTConfig, "process_index", property(lambda _: index))
    monkeypatch.setattr(SFTConfig, "local_process_index", property(lambda _: index))
    levels = {"log_level": "warning", "log_level_replica": "error"}
    training_args = SFTConfig(str(tmp_path), **SETTINGS, **levels)

    log_level = training_args.get_process_log_level()
    logger.setLevel(log_level)
    datasets.utils.logging.set_verbosity(log_level)
    transformers.utils.logging.set_verbosity(log_level)

    parts = {"train_dataset": rows("sft", 4), "processing_class": making.tokenizer()}
    SFTTrainer(making.model("qwen2"), args=training_args, **parts)
    assert datasets.utils.logging.get_verbosity() == level
    assert transformers.utils.logging.get_verbosity() == level
    logger.warning("from the script")
    assert ("from the script" in caplog.text) == (level == 30)


# --- quantisation ---------------------------------------------------------------------------------


def test_quantization_config_goes_to_the_loading_of_the_model(tmp_path, monkeypatch):
    quantised = transformers.BitsAndBytesConfig(load_in_4bit=True)
    asked: list[Any] = []

    def load(name: str, *_: Any, **keywords: Any) -> Any:
        asked.append((name, keywords.get("quantization_config")))
        return making.model("qwen2")

    monkeypatch.setattr("fastrl.train.setup.create_model_from_path", load)
    build(tmp_path, more={"model": "somewhere", "quantization_config": quantised})
    assert asked == [("somewhere", quantised)]
    with pytest.raises(ValueError, match="quantization_config is for a model given by name"):
        build(tmp_path, more={"quantization_config": quantised})


def test_an_optimizer_of_bitsandbytes_without_it_fails_before_training(tmp_path):
    trainer = build(tmp_path, optim="adamw_8bit")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ImportError, match=r"pip install.* bitsandbytes"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


# --- NEFTune --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "reward"])
def test_neftune_is_off_after_training(tmp_path, kind):
    plain, noisy = build(tmp_path / "a", kind), build(tmp_path / "b", kind, neftune_noise_alpha=9.0)
    hooks: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
            hooks.append(len(model.get_input_embeddings()._forward_hooks))

    noisy.add_callback(Watch())
    embeddings = noisy.model.get_input_embeddings()
    before = len(embeddings._forward_hooks)
    plain.train()
    noisy.train()
    assert hooks == [before + 1] * 2
    assert losses(noisy)[0] != pytest.approx(losses(plain)[0], rel=1e-4)
    assert len(embeddings._forward_hooks) == before
    noisy.model.train()
    ids = torch.arange(5, 40)
    assert torch.equal(embeddings(ids), embeddings.weight[ids])


# --- checkpoints ----------------------------------------------------------------------------------


def test_resume_from_checkpoint_of_a_folder(tmp_path):
    """`=True` is in test_trainer.py; a folder named is the one taken, of several."""
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = build(tmp_path, **steps)
    whole.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (1, 2, 3)
    ]
    resumed = build(tmp_path / "again", **{**steps, "save_strategy": "no"})
    begun = []
    resumed.add_callback(
        type("Begin", (TrainerCallback,), {"on_step_begin": lambda *a, **k: begun.append(a[2])})()
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert len(begun) == 2
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, whole.model.get_parameter(name)), name
    with pytest.raises(ValueError, match="No valid checkpoint"):
        build(tmp_path / "empty").train(resume_from_checkpoint=True)


class Hub:
    """In place of the hub: keeps what is uploaded."""

    def __init__(self) -> None:
        self.repositories: list[str] = []
        self.uploads: list[dict[str, Any]] = []

    def create_repo(self, name: str, **_: Any) -> Any:
        self.repositories.append(name)
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, **given: Any) -> Any:
        folder = Path(given["folder_path"])
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        self.uploads.append({**given, "files": files})
        return SimpleNamespace(is_done=lambda: True, result=lambda: None, _done=True)


# hub_strategy -> path in the repository of what is uploaded in a run of two checkpoints.
STRATEGIES = {
    "end": [],
    "every_save": [None, None],
    "checkpoint": [None, "last-checkpoint", None, "last-checkpoint"],
    "all_checkpoints": [None, "checkpoint-1", None, "checkpoint-2"],
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hub_strategy(tmp_path, monkeypatch, strategy):
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    jobs = "transformers.trainer.PushInProgress"
    monkeypatch.setattr(jobs, lambda _: SimpleNamespace(is_done=lambda: True, jobs=[]))
    trainer = build(
        tmp_path / "mine", push_to_hub=True, hub_strategy=strategy, hub_token="key",
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer.train()
    assert hub.repositories == ["mine"]
    assert [upload.get("path_in_repo") for upload in hub.uploads] == STRATEGIES[strategy]
    assert all(u["repo_id"] == "me/mine" and u["token"] == "key" for u in hub.uploads)
    for upload in hub.uploads:
        whole = {"model.safetensors", "config.json", "tokenizer.json"}
        assert whole <= set(upload["files"])
        assert ("optimizer.pt" in upload["files"]) == (upload.get("path_in_repo") is not None)
        assert upload.get("path_in_repo") or "README.md" in upload["files"]
    monkeypatch.setattr(trainer, "push_in_progress", None)
    trainer.push_to_hub(commit_message="done", dataset_name="rows", tags="mine")
    assert hub.uploads[-1]["commit_message"] == "done"
    assert "- mine" in (tmp_path / "mine" / "README.md").read_text()


# --- devices --------------------------------------------------------------------------------------

ON_CPU = """
import sys, torch
sys.path.insert(0, {root!r})
import fastrl
assert not torch.cuda.is_initialized()
from tests.customisation.test_trainer_guide import build
trainer = build({folder!r}, max_steps=1)
trainer.train()
print("device", trainer.args.device, len(trainer.state.log_history))
"""


@pytest.mark.slow
def test_cuda_visible_devices_empty(tmp_path):
    """`CUDA_VISIBLE_DEVICES=` with nothing behind it: everything runs on the CPU."""
    source = ON_CPU.format(root=str(ROOT), folder=str(tmp_path))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    run = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "device cpu 2" in run.stdout


ACCELERATOR_LITERAL = re.compile(
    r"""\.cuda\(|["'](?:cuda|mps|xpu):\d+["']|torch\.device\(["']cuda"""
)


def test_mps_or_any_device_no_module_assumes_cuda():
    """Tensors go where the accelerator or another tensor is, never to a device by its name.

    What names CUDA asks first whether it is there, so that MPS and others are served.
    """
    assert ACCELERATOR_LITERAL.search("x.cuda()") and ACCELERATOR_LITERAL.search('"cuda:0"')
    found = []
    for folder in ("fastrl", "examples", "benchmark"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if ACCELERATOR_LITERAL.search(line.partition("#")[0]):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_mps_goes_first_where_it_is(monkeypatch):
    """What a module decides by device type has an answer for one it has never heard of."""
    from fastrl.algos.ppo_train_config import PPOTrainConfig
    from fastrl.ops import token_logprobs
    from fastrl.train import classic_parts, device_cache

    emptied = []
    device = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: emptied.append(1))
    monkeypatch.setattr(torch, "mps", device)
    device_cache.empty_device_cache()
    assert emptied == [1]
    parameter = nn.Parameter(torch.zeros(2, device="meta"))
    assert not classic_parts.default_adam([parameter], 1e-3).defaults["fused"]
    logits = torch.zeros(1, 3, device="meta")
    logp, _ = token_logprobs(logits, torch.zeros(1, dtype=torch.int64, device="meta"))
    assert logp.device.type == "meta"
    assert "cuda" not in inspect.getsource(PPOTrainConfig)


# --- FSDP and XLA ---------------------------------------------------------------------------------


FSDP_FORMS = {
    "full_shard": "full_shard",
    "shard_grad_op": "shard_grad_op",
    "no_shard": "no_shard",
    "full_shard offload": "full_shard",
    "full_shard auto_wrap": "full_shard",
    "full_shard offload auto_wrap": "full_shard",
}


@pytest.mark.parametrize("form", FSDP_FORMS)
@pytest.mark.parametrize("config", [SFTConfig, GRPOConfig])
def test_fsdp_flags_parse(tmp_path, config, form):
    settings = {
        "fsdp_transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"],
        "fsdp_backward_prefetch": "backward_pre",
        "fsdp_forward_prefetch": True,
        "limit_all_gathers": True,
        "activation_checkpointing": False,
        "version": 1,
    }
    (tmp_path / "fsdp.json").write_text(json.dumps(settings))
    line = ["--output_dir", "out", "--use_cpu", "--report_to", "none", "--fsdp", form]
    line += ["--fsdp_config", str(tmp_path / "fsdp.json")]
    (args,) = TrlParser((config,)).parse_args_and_config(args=line)
    plugin = args.fsdp_plugin_args
    assert plugin["reshard_after_forward"] == FSDP_FORMS[form]
    assert bool(plugin.get("cpu_offload")) == ("offload" in form)
    assert plugin["backward_prefetch"] == "BACKWARD_PRE"
    assert plugin["forward_prefetch"] is plugin["limit_all_gathers"] is True
    assert plugin["transformer_cls_names_to_wrap"] == "Qwen2DecoderLayer"


@pytest.mark.parametrize("prefix", ["", "fsdp_"])
def test_fsdp_wraps_by_size_and_checkpoints_itself(tmp_path, prefix):
    """By a file, its keys written either way; until release 5 transformers chose the policy so."""
    asked = {"min_num_params": 2000, "activation_checkpointing": True, "version": 1}
    (tmp_path / "fsdp.json").write_text(json.dumps({prefix + k: v for k, v in asked.items()}))
    args = SFTConfig(
        "out", use_cpu=True, gradient_checkpointing=False, fsdp="full_shard auto_wrap",
        fsdp_config=str(tmp_path / "fsdp.json"),
    )  # fmt: skip
    plugin = args.fsdp_plugin_args
    assert plugin["auto_wrap_policy"] == "SIZE_BASED_WRAP"
    assert (plugin["min_num_params"], plugin["activation_checkpointing"]) == (2000, True)


def test_xla_fsdp_arguments_parse():
    xla = {"xla": True, "xla_fsdp_settings": {"flatten": True}, "xla_fsdp_grad_ckpt": True}
    args = SFTConfig("out", use_cpu=True, fsdp="full_shard", fsdp_config=dict(xla))
    assert args.xla_fsdp_config["flatten"] is True
    assert args.fsdp_config["xla"] is args.fsdp_config["xla_fsdp_grad_ckpt"] is True
