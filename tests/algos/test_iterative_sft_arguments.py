"""`IterativeSFTTrainer`: its arguments, those of a step and its config, and what is refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import TrainingArguments

from fastrl.algos.iterative_sft import IterativeSFTTrainer
from fastrl.algos.iterative_sft_config import IterativeSFTConfig
from tests.algos.iterative_sft_runs import IDS, TEXTS, config, make_tokenizer, tiny

pytestmark = pytest.mark.filterwarnings("ignore:IterativeSFTTrainer, old spellings")


def test_a_model_and_tokenizer_by_name(tmp_path):
    folder = str(tmp_path / "model")
    tiny().save_pretrained(folder)
    make_tokenizer("right").save_pretrained(folder)
    more = {"model_init_kwargs": {"dtype": "bfloat16"}, "gradient_checkpointing": False}
    trainer = IterativeSFTTrainer(folder, config(tmp_path, **more))
    assert trainer.model.dtype == torch.bfloat16
    trainer.step(texts=TEXTS)
    assert trainer.tokenizer.truncation_side == "left"


BAD_STEPS = {
    "nothing": ({}, "needs input_ids= or texts="),
    "no list": ({"input_ids": torch.ones(2, 3).long()}, "input_ids must be a list of tensors"),
    "lists of lists": ({"input_ids": [[1, 2]]}, "input_ids must be a list of tensors, but row 0"),
    "no rows": ({"input_ids": []}, "input_ids is empty"),
    "floats": ({"input_ids": [torch.ones(3)]}, "row 0 must be 1-D and of whole numbers"),
    "labels are no list": ({"input_ids": IDS, "labels": IDS[0]}, "labels must be a list"),
    "masks are no tensors": (
        {"input_ids": IDS, "attention_mask": [[1]] * 3},
        "attention_mask must",
    ),
    "one text": ({"texts": "w5 w6"}, "texts must be a list of strings, got str"),
    "no texts": ({"texts": [IDS[0]]}, "texts must be a list of strings, but row 0 is Tensor"),
    "labels as a text": ({"texts": TEXTS, "texts_labels": "w5"}, "texts_labels must be a list"),
    "other lengths": ({"texts": TEXTS, "texts_labels": ["w5"] * 3}, "labels row 0 has 1 tokens"),
    "fewer labels": ({"input_ids": IDS, "labels": IDS[:2]}, "labels has 2 rows"),
    "short mask": ({"input_ids": IDS, "attention_mask": [IDS[1]] * 3}, "attention_mask row 0"),
    "all masked": ({"input_ids": IDS[:1], "attention_mask": [torch.zeros(4).long()]}, "is empty"),
    "empty": ({"input_ids": [torch.ones(0).long()]}, "row 0 is empty"),
    "outside": ({"input_ids": [torch.tensor([3, 64])]}, "row 0 holds 64, outside"),
    "label outside": ({"input_ids": IDS[1:2], "labels": [torch.tensor([3, -5])]}, "holds -5"),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return IterativeSFTTrainer(
        tiny(), config(tmp_path_factory.mktemp("bad")), processing_class=make_tokenizer("right")
    )


@pytest.mark.parametrize("name", BAD_STEPS)
def test_bad_input_of_step_is_a_value_error(decoder, name):
    given, told = BAD_STEPS[name]
    with pytest.raises(ValueError, match=told):
        decoder.step(**given)
    assert decoder.state.global_step == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"processing_class": "gpt2"}, "must be a transformers tokenizer, got str"),
        ({"model": torch.nn.Linear(2, 2)}, "model must be a transformers model or its name"),
        ({"args": {"max_steps": -1}}, "set args.max_steps to the optimizer steps of all"),
        ({"args": {"eval_steps": 2}}, "there is no eval_dataset"),
        ({"args": {"max_length": 1}}, "max_length must leave room"),
        ({"args": {"truncation_mode": "middle"}}, "truncation_mode='middle'"),
    ],
)
def test_bad_parts_are_value_errors(tmp_path, given, told):
    with pytest.raises(ValueError, match=told):
        IterativeSFTTrainer(
            given.get("model") or tiny(),
            config(tmp_path, **given.get("args", {})),
            processing_class=given.get("processing_class", make_tokenizer("right")),
        )


def test_positional_arguments_in_the_order_of_both_eras(tmp_path):
    model, tokenizer = tiny(), make_tokenizer("right")
    args = TrainingArguments(str(tmp_path), max_steps=3, report_to="none")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(FutureWarning, match="IterativeSFTTrainer, old spellings"):
        old = IterativeSFTTrainer(model, args, tokenizer, (optimizer, None), None, None, 12)
    assert (old.max_length, old.tokenizer, old._api_generation) == (12, tokenizer, "0.7")
    assert old.args.logging_steps == 500 and not old.args.gradient_checkpointing
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        new = IterativeSFTTrainer(model, config(tmp_path), None, None, tokenizer)
    assert new.tokenizer is tokenizer and new._api_generation == "1"


def test_iterative_sft_config_has_trls_defaults(tmp_path):
    args = IterativeSFTConfig(str(tmp_path))
    found = (args.max_length, args.truncation_mode, args.optimize_device_cache, args.logging_steps)
    assert found == (None, "keep_end", False, 10)
    with pytest.warns(FutureWarning, match="eval_strategy"):
        IterativeSFTConfig(str(tmp_path), evaluation_strategy="no")


@pytest.mark.parametrize(
    "field",
    [
        {"dataloader_drop_last": True},
        {"dataloader_num_workers": 2},
        {"eval_strategy": "epoch"},
        {"num_train_epochs": 1.0},
        {"save_steps": 10},
        {"save_strategy": "epoch"},
        {"save_total_limit": 2},
    ],
    ids=lambda field: next(iter(field)),
)
def test_fields_that_step_does_not_look_at_are_refused(tmp_path, field):
    (name,) = field
    with pytest.raises(ValueError, match=f"{name}=.* has no part in IterativeSFTConfig"):
        IterativeSFTConfig(str(tmp_path), use_cpu=True, bf16=False, **field)
