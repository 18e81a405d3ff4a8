"""What Nash-MD and XPO have in common: TRL's numbers, fields and calls, batches, resuming."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil

import pytest
import torch
from datasets import Dataset

import fastrl
from fastrl.legacy.online_dpo import ONLINE_DPO_FIELDS
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_parity import running
from tests.algos.online_dpo_runs import PROMPTS, column, settings, vowels
from tests.algos.two_model_parity import cases
from tests.algos.two_model_parity.record import RECORD

RECORDED = json.loads(RECORD.read_text())
BY_NAME = {case.name: case for case in cases.ALL}
QUICK = {
    *(f"NashMD-{name}" for name in ("default", "judge", "lora")),
    *(f"XPO-{name}" for name in ("default", "ipo", "judge")),
}
BOTH = pytest.mark.parametrize("kind", cases.METRICS)


def parts(kind):
    return getattr(fastrl, f"{kind}Trainer"), getattr(fastrl, f"{kind}Config")


def trainer_of(kind, folder, rewards=vowels, rows=PROMPTS, more=None, **given):
    trainer, config = parts(kind)
    rest = {"processing_class": tokenizer(), **(more or {})}
    rest["train_dataset"] = Dataset.from_dict({"prompt": rows})
    return trainer(model(), reward_funcs=rewards, args=config(**settings(folder, **given)), **rest)


def run(case, **given):
    return cases.run(case, *parts(case.trainer), shuffle_dataset=False, **given)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in BY_NAME],
)
def test_logs_what_trl_logs(name):
    different = running.differences(run(BY_NAME[name]), RECORDED["cases"][name])
    assert not different, "\n" + "\n".join(different)


@BOTH
def test_fields_defaults_and_arguments_are_trls(kind):
    trainer, config = parts(kind)
    fields = {f.name: f for f in dataclasses.fields(config) if f.init}
    for name, default in RECORDED[f"{kind}_fields"].items():
        if name in ONLINE_DPO_FIELDS or name == "vllm_mode":  # vLLM has no part here
            continue
        f = fields[name]
        made = f.default is dataclasses.MISSING
        assert (f.default_factory() if made else f.default) == default, name
    arguments = list(inspect.signature(trainer.__init__).parameters)[1:]
    more = ["reward_processing_classes"] if kind == "NashMD" else []
    assert arguments == [*RECORDED[f"{kind}_arguments"], *more]


@pytest.mark.parametrize(("kind", "name"), [("NashMD", "mixture_coef"), ("XPO", "alpha")])
def test_coefficients_are_those_of_the_epoch(tmp_path, kind, name):
    given = {name: [0.25, 0.75], "beta": [0.5, 0.2], "gradient_accumulation_steps": 4}
    trainer = trainer_of(kind, tmp_path, **given, max_steps=3)
    assert getattr(trainer.args, name) == [0.25, 0.75]
    trainer.train()
    assert column(trainer, name)[:1] == [0.25] and column(trainer, name)[-1] == 0.75
    assert column(trainer, "beta")[:1] == [0.5] and column(trainer, "beta")[-1] == 0.2


@BOTH
@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(kind):
    case = BY_NAME[f"{kind}-default"]
    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 2}
    large = run(case, per_device_train_batch_size=8, max_steps=2)
    assert running.differences(run(case, **given), large) == []


@BOTH
@pytest.mark.slow
def test_resumed_ends_in_the_weights_of_the_uninterrupted_run(tmp_path, kind):
    given = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    whole = trainer_of(kind, tmp_path / "whole", **given)
    whole.train()
    part = trainer_of(kind, tmp_path / "part", **given)
    checkpoint = tmp_path / "part" / "checkpoint-2"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", checkpoint)
    part.train(resume_from_checkpoint=str(checkpoint))
    weights = part.model.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in whole.model.state_dict().items())


@BOTH
@pytest.mark.parametrize("size", [60, 96])
def test_a_reference_over_other_tokens_is_refused(tmp_path, kind, size):
    other = model("llama")
    other.resize_token_embeddings(size, mean_resizing=False)
    with pytest.raises(ValueError, match=f"ref_model has vocab_size {size} and model 80"):
        trainer_of(kind, tmp_path, more={"ref_model": other})


@BOTH
def test_called_in_the_order_of_0_11(tmp_path, kind):
    trainer, config = parts(kind)
    args = config(**settings(tmp_path))
    rows = Dataset.from_dict({"prompt": PROMPTS})
    with pytest.warns(FutureWarning, match="order has changed"):
        made = trainer(model(), model("llama"), vowels, args, None, rows, None, tokenizer())
    assert made.args is args and made.reward_func_names == ["vowels"]
    assert made._api_generation == "0.11"
