"""Overrides that the guide of `transformers.Trainer` shows, on the trainers here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastrl
from fastrl import PPOv2Trainer, SFTTrainer
from tests.algos.offline_parity import making
from tests.customisation import runs
from tests.customisation.guide_runs import DRAWING, KINDS, build, logged, losses, rows


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


@pytest.mark.parametrize(
    "kind", ["orpo", "cpo", "bco", "prm", "gkd", "nash_md", "xpo", "distillation"]
)
def test_overridable_hooks_of_the_other_algorithms(tmp_path, kind, monkeypatch):
    settings = {"learning_rate": 0.5, "optim": "sgd"}
    trainer, *rest = runs.KINDS[kind]
    plain = runs.build(kind, tmp_path / "a", settings)
    at_start = plain.evaluate()["eval_loss"]
    plain.predict(runs.rows(kind, 4, 1, None))
    plain.train()
    monkeypatch.setitem(runs.KINDS, kind, (with_old_hooks(trainer), *rest))
    old = runs.build(kind, tmp_path / "b", settings)
    evaluated = old.evaluate()
    found = old.predict(runs.rows(kind, 4, 1, None))
    old.train()
    assert [hook for hook in HOOKS if hook not in old.called] == []
    assert old.called.count("training_step") == 2
    for key in ("loss", "grad_norm"):  # on the same rows and the same answers
        assert logged(old, key)[0] == pytest.approx(3 * logged(plain, key)[0], rel=1e-4)
    if kind not in runs.DRAWING:  # who evaluate on answers drawn anew
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
