"""`IterativeSFTTrainer`: what a step learns from each kind of input, and what a run keeps."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling

from fastrl.algos.iterative_sft import IterativeSFTTrainer
from tests.algos.iterative_sft_runs import IDS, MODELS, TEXTS, config, make_tokenizer, tiny

pytestmark = pytest.mark.filterwarnings("ignore:IterativeSFTTrainer, old spellings")


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


def test_an_encoder_decoder_needs_labels(make):
    with pytest.raises(ValueError, match="encoder-decoder needs labels= or texts_labels="):
        make("t5").step(texts=TEXTS)


def test_texts_win_over_ids_with_a_warning(make):
    trainer = make()
    with pytest.warns(UserWarning, match="input_ids are not used"):
        trainer.step(input_ids=IDS[:1], texts=TEXTS)
    assert trainer.losses == pytest.approx([mean_nll(tiny(), [(i,) for i in IDS])], rel=1e-5)


def test_the_model_is_saved_with_its_card(make, tmp_path):
    trainer = make()
    trainer.step(texts=TEXTS)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.lm_head.weight, trainer.model.lm_head.weight)
    trainer.create_model_card(model_name="mine")
    assert "Iterative-SFT" in (tmp_path / "README.md").read_text()
