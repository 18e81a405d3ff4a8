"""`IterativeSFTTrainer`: runs of TRL 0.7.11 repeated, and what it does with each kind of input."""

from __future__ import annotations

import json
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling, TrainingArguments

from fastrl.algos.iterative_sft import IterativeSFTTrainer
from fastrl.algos.iterative_sft_config import IterativeSFTConfig

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from iterative_parity.cases import CASES, DROPOUTS, MODELS, run_case  # noqa: E402
from iterative_two_ranks import worker  # noqa: E402
from ppo_parity.cases import fill, make_tokenizer, tiny_config  # noqa: E402

from tests import two_ranks  # noqa: E402

RECORDED = json.loads((HERE.parent / "fixtures" / "iterative_sft.json").read_text())["cases"]
FASTRL = types.SimpleNamespace(IterativeSFTTrainer=IterativeSFTTrainer)
IDS = [torch.tensor([5, 6, 7, 8]), torch.tensor([9, 10]), torch.tensor([11, 12, 13, 14, 15, 16])]
TEXTS = ["w5 w6 w7 w8", "w9 w10", "w11 w12 w13 w14 w15 w16"]
pytestmark = pytest.mark.filterwarnings("ignore:IterativeSFTTrainer, old spellings")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_iterative_sft_trainer_step_has_trls_losses(case, capsys):
    found, recorded = run_case(case, FASTRL), RECORDED[case.name]
    assert len(found["losses"]) == 12
    assert found["losses"] == pytest.approx(recorded["losses"], abs=1e-5)
    assert found["draw"] == recorded["draw"], "the shuffles drew as TRL's did"
    for line, theirs in zip(found["log"], recorded["log"], strict=True):
        assert line == pytest.approx(theirs, abs=1e-4)


def tiny(kind="llama", dropout=0.0):
    config = tiny_config(kind)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    model = MODELS[kind](config)
    fill(model, 1)
    return model


def config(tmp_path, **more):
    base = {"per_device_train_batch_size": 3, "max_steps": 9, "learning_rate": 1e-2}
    return IterativeSFTConfig(
        str(tmp_path), **{**base, "report_to": "none", "disable_tqdm": True, **more}
    )


@pytest.fixture
def make(tmp_path):
    """make(model="llama", …config fields…) -> a trainer that keeps its losses."""

    class Kept(IterativeSFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self.model.training:
                self.losses.append(found.item())
            return found

    def build(model="llama", data_collator=None, eval_dataset=None, padding_side="right", **more):
        model = tiny(model) if isinstance(model, str) and model in MODELS else model
        trainer = Kept(
            model,
            config(tmp_path, **more),
            data_collator,
            eval_dataset,
            make_tokenizer(padding_side),
        )
        trainer.losses = []
        return trainer

    return build


def nll(model, ids, labels=None):
    """Summed loss and number of learnt tokens of one row alone, by transformers."""
    labels = ids if labels is None else labels
    with torch.no_grad():
        logp = model.eval()(ids[None]).logits[0, :-1].log_softmax(-1)
    counts = labels[1:] != -100
    picked = logp.gather(1, labels[1:].clamp(min=0)[:, None])[:, 0]
    return -(picked * counts).sum().item(), int(counts.sum())


def mean_nll(model, rows):
    found = [nll(model, *row) for row in rows]
    return sum(loss for loss, _ in found) / sum(count for _, count in found)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_packed_loss_is_that_of_each_row_alone(make, kind, padding_side):
    expected = mean_nll(tiny(kind), [(ids,) for ids in IDS])
    trainer = make(kind, padding_side=padding_side)
    trainer.step(input_ids=IDS)
    assert trainer.losses == pytest.approx([expected], rel=1e-5)
    trainer = make(kind, padding_side=padding_side)
    trainer.step(texts=TEXTS)
    assert trainer.losses == pytest.approx([expected], rel=1e-5)


def test_labels_say_what_is_learnt(make):
    labels = [torch.tensor([-100, -100, 7, 3]), torch.tensor([9, 10]), torch.full((6,), -100)]
    expected = mean_nll(tiny(), zip(IDS, labels, strict=True))
    trainer = make()
    trainer.step(IDS, labels=labels)
    assert trainer.losses == pytest.approx([expected], rel=1e-5)


def test_texts_labels_are_learnt_not_the_texts(make):
    other = ["w5 w20 w7 w21", "w9 w22", "w11 w12 w13 w14 w15 w23"]
    labels = [torch.tensor([int(w[1:]) for w in text.split()]) for text in other]
    expected = mean_nll(tiny(), zip(IDS, labels, strict=True))
    trainer = make()
    trainer.step(texts=TEXTS, texts_labels=other)
    assert trainer.losses == pytest.approx([expected], rel=1e-5)


def test_texts_labels_of_an_encoder_decoder(make):
    texts, answers = TEXTS[:2], ["w20 w21 w22", "w23"]
    model = tiny("t5").eval()
    losses, counts = 0.0, 0
    for text, answer in zip(IDS, (torch.tensor([20, 21, 22]), torch.tensor([23])), strict=False):
        losses += model(text[None], labels=answer[None]).loss.item() * len(answer)
        counts += len(answer)
    trainer = make("t5")
    trainer.step(texts=texts, texts_labels=answers)
    assert trainer.losses == pytest.approx([losses / counts], rel=1e-5)


def test_masked_tokens_are_no_part_of_a_row(make):
    padded = [torch.tensor([0, 0, 5, 6, 7, 8]), torch.tensor([9, 10, 3, 3])]
    masks = [torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([1, 1, 0, 0])]
    trainer = make()
    trainer.step(padded, masks)
    assert trainer.losses == pytest.approx([mean_nll(tiny(), [(i,) for i in IDS[:2]])], rel=1e-5)


def test_padding_tokens_in_a_row_are_not_learnt(make):
    labels = torch.tensor([9, 10, -100])
    expected = mean_nll(tiny(), [(torch.tensor([9, 10, 0]), labels)])
    trainer = make()
    trainer.step([torch.tensor([9, 10, 0])])
    assert trainer.losses == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "part"), [("keep_end", slice(-3, None)), ("keep_start", slice(3))]
)
def test_max_length_cuts_rows_not_the_batch(make, mode, part):
    expected = mean_nll(tiny(), [(ids[part],) for ids in IDS])
    for given in ({"input_ids": IDS, "labels": IDS}, {"texts": TEXTS}):
        trainer = make(max_length=3, truncation_mode=mode)
        trainer.step(**given)
        assert trainer.losses == pytest.approx([expected], rel=1e-5)


def test_columns_of_a_dataset(make):
    dataset = Dataset.from_dict({"text": TEXTS, "ids": [row.tolist() for row in IDS]})
    expected = mean_nll(tiny(), [(ids,) for ids in IDS])
    for given in (
        {"texts": dataset["text"]},
        {"input_ids": dataset["ids"]},
        {"input_ids": dataset.with_format("torch")["ids"]},
    ):
        trainer = make()
        trainer.step(**given)
        assert trainer.losses == pytest.approx([expected], rel=1e-5)


def test_gradients_are_zeros_and_weights_moved(make):
    trainer = make("gpt2")
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.step(IDS, labels=IDS)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
        if "wpe" not in name:
            assert not torch.equal(parameter, before[name]), name


def test_batches_accumulate_over_calls(make):
    trainer = make(gradient_accumulation_steps=2)
    start = trainer.model.lm_head.weight.clone()
    trainer.step(IDS)
    assert torch.equal(trainer.model.lm_head.weight, start)
    trainer.step(IDS)
    moved = trainer.model.lm_head.weight.detach().clone()
    assert not torch.equal(moved, start)
    once = make()
    once.step(IDS)
    torch.testing.assert_close(moved, once.model.lm_head.weight, rtol=1e-4, atol=1e-6)


def test_other_accelerators_of_the_process_do_not_count_its_batches(make):
    plain, trainer = make(), make(gradient_accumulation_steps=2)
    other = Accelerator()
    assert other.gradient_accumulation_steps == 1
    start = trainer.model.lm_head.weight.clone()
    trainer.step(IDS)
    assert torch.equal(trainer.model.lm_head.weight, start)
    assert trainer.model.lm_head.weight.grad.any()  # kept for the next call
    assert other.gradient_accumulation_steps == 1
    plain.step(IDS)
    assert not torch.equal(plain.model.lm_head.weight, start)
    with pytest.raises(ValueError, match="is empty"):
        trainer.step([])
    assert other.gradient_accumulation_steps == 1
    trainer.step(IDS)
    torch.testing.assert_close(
        trainer.model.lm_head.weight, plain.model.lm_head.weight, rtol=1e-4, atol=1e-6
    )


def test_a_failing_step_gives_the_count_back(make):
    trainer = make(gradient_accumulation_steps=2)
    other = Accelerator()
    with torch.no_grad():
        trainer.model.lm_head.weight[5, 0] = float("nan")
    trainer.step(IDS)
    with pytest.raises(FloatingPointError):
        trainer.step(IDS)
    assert other.gradient_accumulation_steps == 1


def test_max_steps_are_optimizer_steps_of_the_schedule(make):
    trainer = make(gradient_accumulation_steps=2, max_steps=2, warmup_steps=0)
    rates = []
    for _ in range(4):
        trainer.step(IDS)
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
    assert rates == pytest.approx([1e-2, 5e-3, 5e-3, 0])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(make, reentrant):
    weights = []
    for asked in (True, False):
        trainer = make(
            gradient_checkpointing=asked,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )
        assert (
            any(getattr(m, "gradient_checkpointing", False) for m in trainer.model.modules())
            is asked
        )
        trainer.step(IDS)
        weights.append(trainer.model.lm_head.weight)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


def test_an_adapter_is_trained_alone(make):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny(), lora)
    start = {name: p.clone() for name, p in model.named_parameters()}
    trainer = make(model)
    assert trainer.is_peft_model
    trainer.step(texts=TEXTS)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved and all("lora_B" in name for name in moved)


def test_a_model_and_tokenizer_by_name(tmp_path):
    folder = str(tmp_path / "model")
    tiny().save_pretrained(folder)
    make_tokenizer("right").save_pretrained(folder)
    more = {"model_init_kwargs": {"dtype": "bfloat16"}, "gradient_checkpointing": False}
    trainer = IterativeSFTTrainer(folder, config(tmp_path, **more))
    assert trainer.model.dtype == torch.bfloat16
    trainer.step(texts=TEXTS)
    assert trainer.tokenizer.truncation_side == "left"


def test_evaluation_and_logs(make, tmp_path):
    rows = Dataset.from_dict({"input_ids": [row.tolist() for row in IDS]})
    trainer = make(eval_dataset=rows, eval_steps=2, logging_steps=2, per_device_eval_batch_size=3)
    for _ in range(3):
        trainer.step(IDS)
    lines = trainer.state.log_history
    (eval_line,) = [line for line in lines if "eval_loss" in line]
    (line,) = [line for line in lines if "loss" in line]
    assert line["loss"] == pytest.approx(sum(trainer.losses[:2]) / 2)
    assert eval_line["step"] == line["step"] == 2
    # What was evaluated is what the next step learnt first.
    assert eval_line["eval_loss"] == pytest.approx(trainer.losses[2], rel=1e-5)
    assert trainer.model.training


def test_logging_may_be_off_or_a_share_of_the_steps(make):
    for more, steps in (({"logging_strategy": "no"}, []), ({"logging_steps": 1 / 3}, [3])):
        trainer = make(**more)
        for _ in range(4):
            trainer.step(IDS)
        assert [line["step"] for line in trainer.state.log_history] == steps


def test_metrics_of_evaluation_see_logits(make, tmp_path):
    seen = []
    rows = Dataset.from_dict({"input_ids": [row.tolist() for row in IDS]})
    trainer = make(eval_dataset=rows, per_device_eval_batch_size=3)
    trainer.compute_metrics = lambda found: seen.append(found) or {"seen": 1.0}
    metrics = trainer.evaluate()
    assert metrics["eval_seen"] == 1.0
    assert metrics["eval_loss"] == pytest.approx(mean_nll(tiny(), [(i,) for i in IDS]), rel=1e-5)
    assert seen[0].predictions.shape == (3, 6, 64)
    assert seen[0].label_ids[1].tolist() == [9, 10, -100, -100, -100, -100]


def test_neftune_is_on_within_a_step_only(make):
    trainer = make(neftune_noise_alpha=50.0, gradient_checkpointing=False)
    embeddings = trainer.model.get_input_embeddings()
    trainer.step(IDS)
    assert abs(trainer.losses[0] - mean_nll(tiny(), [(i,) for i in IDS])) > 1e-3
    assert not embeddings._forward_hooks


def test_a_collator_of_ones_own(make):
    seen = []
    theirs = DataCollatorForLanguageModeling(make_tokenizer("right"), mlm=False)

    def collate(rows):
        seen.append([sorted(row) for row in rows])
        return theirs(rows)

    trainer = make(data_collator=collate)
    trainer.step(IDS)
    assert seen == [[["attention_mask", "input_ids"]] * 3]
    assert trainer.losses == pytest.approx([mean_nll(tiny(), [(i,) for i in IDS])], rel=1e-5)


def test_a_loss_that_is_not_finite_moves_nothing(make):
    trainer = make()
    with torch.no_grad():
        trainer.model.lm_head.weight[5, 0] = float("nan")
    start = trainer.model.model.norm.weight.clone()
    with pytest.raises(FloatingPointError, match="this optimizer step was not taken"):
        trainer.step(IDS)
    assert torch.equal(trainer.model.model.norm.weight, start)


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


def test_an_encoder_decoder_needs_labels(make):
    with pytest.raises(ValueError, match="encoder-decoder needs labels= or texts_labels="):
        make("t5").step(texts=TEXTS)


def test_texts_win_over_ids_with_a_warning(make):
    trainer = make()
    with pytest.warns(UserWarning, match="input_ids are not used"):
        trainer.step(input_ids=IDS[:1], texts=TEXTS)
    assert trainer.losses == pytest.approx([mean_nll(tiny(), [(i,) for i in IDS])], rel=1e-5)


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


def test_the_model_is_saved_with_its_card(make, tmp_path):
    trainer = make()
    trainer.step(texts=TEXTS)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.lm_head.weight, trainer.model.lm_head.weight)
    trainer.create_model_card(model_name="mine")
    assert "Iterative-SFT" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_two_ranks_learn_as_one_and_stop_together(tmp_path):
    first, second = two_ranks.run(HERE / "iterative_two_ranks" / "worker.py", tmp_path, timeout=200)
    alone = worker.train(tmp_path, 0, 1)
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], weight, rtol=2e-6, atol=2e-6, msg=name)
    assert first["logs"] == pytest.approx(alone["logs"], rel=1e-5)
    for rank in (first, second):
        assert (
            rank["uneven"] == "ValueError: step() got [1, 2] rows on the ranks: give each as many"
        )
    assert "holds 64, outside" in second["one_bad"]
    assert "failed on rank 1" in first["one_bad"]


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
