"""ORPO and CPO beside TRL's logs: rows, losses, limits, what they share and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

import fastrl
from fastrl.algos.cpo_losses import LOSSES, Settings, score
from fastrl.algos.orpo import log_odds, orpo_loss
from fastrl.data.collate_pairs import DataCollatorForPairs
from fastrl.data.prepare_pairs import prepare_pairs
from fastrl.types import Shared
from tests.algos.offline_parity import making, running
from tests.algos.pairs_parity import preparing

RECORDED = Path(__file__).parent / "pairs_parity" / "rows.json"
KINDS = ["ORPO", "CPO"]


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """A trainer that begins to train does not collect the process's garbage: most of a second."""
    monkeypatch.setattr("accelerate.utils.memory.gc", SimpleNamespace(collect=lambda: None))


def config(kind, folder, **fields):
    return getattr(fastrl, f"{kind}Config")(
        str(folder), **{**running.BASE, "max_steps": 2, **fields}
    )


def trainer(kind, folder, model=None, rows=None, given=None, **fields):
    parts = {
        "train_dataset": making.rows("preference", 8) if rows is None else rows,
        "processing_class": making.tokenizer(),
        "args": config(kind, folder, **fields),
        **(given or {}),
    }
    return getattr(fastrl, f"{kind}Trainer")(model or making.model(), **parts)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", preparing.CASES, ids=lambda case: case.name)
def test_rows_are_prepared_as_trl_does(case, tmp_path):
    want = json.loads(RECORDED.read_text())["rows"][case.name]
    args = config("CPO", tmp_path, **case.config)
    made = prepare_pairs(preparing.dataset(case.rows), preparing.tokenizer(case), args)
    assert set(made.column_names) == set(want)
    for name, column in want.items():
        assert list(made[name]) == column, name


def test_odds_and_the_loss_of_orpo_by_hand():
    # p = 1/2 and 1/5: odds 1 and 1/4, so the log odds differ by log 4; σ(log 4) = 4/5.
    logp = torch.tensor([0.5, 0.2], dtype=torch.float64).log()
    torch.testing.assert_close(log_odds(logp).exp(), torch.tensor([1.0, 0.25]).double())
    loss, difference = orpo_loss(logp[:1], logp[1:], torch.tensor(3.0).double(), beta=0.5)
    assert difference.item() == pytest.approx(math.log(4))
    assert loss.item() == pytest.approx(3 - 0.5 * math.log(0.8))


@pytest.mark.parametrize("logp", [0.0, -1e-9, -1e-6, -90.0, -1e4])
def test_odds_of_the_sure_and_the_impossible_are_finite(logp):
    chosen = torch.tensor([logp], requires_grad=True)
    rejected = torch.tensor([-1.0], requires_grad=True)
    loss, _ = orpo_loss(chosen, rejected, torch.tensor(0.0), beta=1.0)
    loss.backward()
    assert all(v.isfinite().all() for v in (loss, chosen.grad, rejected.grad))


@pytest.mark.parametrize(
    ("name", "margin", "want"),
    [
        # β = 1/2, ε = 1/4, γ = 1: σ(log 3) = 3/4.
        ("sigmoid", 2 * math.log(3), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)),
        ("simpo", 2 * math.log(3) + 2, -0.75 * math.log(0.75) - 0.25 * math.log(0.25)),
        ("hinge", -3.0, 2.5),
        ("hinge", 2.5, 0.0),
        ("ipo", 3.0, 4.0),
    ],
)
def test_losses_of_cpo_by_hand(name, margin, want):
    settings = Settings(beta=0.5, label_smoothing=0.25, simpo_gamma=1.0)
    assert LOSSES[name](torch.tensor(margin).double(), settings).item() == pytest.approx(want)


def test_the_shape_of_alphapo_by_hand():
    logp = torch.tensor([0.25], dtype=torch.float64).log()
    assert score(logp, 0.0) is logp
    assert score(logp, 0.5).item() == pytest.approx((1 - 2) / 0.5)  # (1/4)^(-1/2) = 2
    assert score(logp, -0.5).item() == pytest.approx((1 - 0.5) / -0.5)


PAIR = Dataset.from_list([{"prompt": "abcdef", "chosen": "ghij", "rejected": "kl"}])


def cut(tmp_path, **limits):
    """The prepared pair as text: prompt | answer of each side."""
    tokenizer = making.tokenizer()

    def text(ids):
        return "".join(tokenizer.convert_ids_to_tokens(ids))

    (row,) = prepare_pairs(PAIR, tokenizer, config("ORPO", tmp_path, **limits))
    sides = []
    for side in ("chosen", "rejected"):
        ids, labels = row[f"{side}_input_ids"], row[f"{side}_labels"]
        begin = labels.count(-100)
        assert labels == [-100] * begin + ids[begin:]
        sides.append(f"{text(ids[:begin])}|{text(ids[begin:])}")
    assert text(row["prompt_input_ids"]) == sides[0].split("|")[0]
    return sides


def test_what_limits_leave_of_a_pair(tmp_path):
    # With <eos> the answers have 5 and 3 tokens, the prompt 6.
    assert cut(tmp_path) == ["abcdef|ghij<eos>", "abcdef|kl<eos>"]
    assert cut(tmp_path, max_length=8) == ["abcdef|gh", "abcdef|kl"]
    assert cut(tmp_path, max_completion_length=2) == ["abcdef|gh", "abcdef|kl"]
    assert cut(tmp_path, max_length=11, max_prompt_length=2)[0] == "abcdef|ghij<eos>"
    # 6 + 5 > 10: the prompt's last 2 tokens stay; 2 + 5 fits.
    assert cut(tmp_path, max_length=10, max_prompt_length=2) == ["ef|ghij<eos>", "ef|kl<eos>"]
    start = {"max_prompt_length": 2, "truncation_mode": "keep_start"}
    assert cut(tmp_path, max_length=10, **start)[0] == "ab|ghij<eos>"
    # 2 + 5 > 5: both answers get the 3 tokens that are left.
    assert cut(tmp_path, max_length=5, **start) == ["ab|ghi", "ab|kl<eos>"]


def test_a_pair_without_room_is_dropped_and_said(tmp_path, caplog):
    rows = Dataset.from_list([*PAIR, {"prompt": "ab", "chosen": "c", "rejected": "d"}])
    made = prepare_pairs(rows, making.tokenizer(), config("CPO", tmp_path, max_length=6))
    assert made["chosen_labels"][:] == [[-100, -100, *making.tokenizer()("c<eos>")["input_ids"]]]
    assert "1 of 2 rows of the train dataset are dropped" in caplog.text
    with pytest.raises(
        ValueError, match=r"none of the 1 rows.*the prompt alone fills max_length=6"
    ):
        prepare_pairs(PAIR, making.tokenizer(), config("CPO", tmp_path, max_length=6))


def test_batches_name_what_pairs_share(tmp_path):
    case = preparing.CASES[3]
    args = config("CPO", tmp_path)
    rows = list(prepare_pairs(preparing.dataset(case.rows), preparing.tokenizer(case), args))
    batch = DataCollatorForPairs(pad_token_id=0)(rows[:2])
    assert batch["chosen_input_ids"].tolist() == [[1, 26, 27, 30, 28, 2], [1, 26, 27, 32, 28, 2]]
    assert batch["rejected_input_ids"].tolist()[1] == [1, 26, 27, 30, 19, 2, 0]
    assert batch["rejected_labels"].tolist()[1] == [-100, -100, -100, 30, 19, 2, -100]
    assert batch["rejected_attention_mask"].tolist()[1] == [1] * 6 + [0]
    spans = batch["spans"]
    assert spans.shape == (4, 7) and spans.lengths == [6, 6, 7, 6]
    assert spans.scored == [3, 3, 4, 3]  # the merged token is an answer's first
    assert spans.shared == (Shared((0, 2), 3), Shared((1, 3), 3))
    assert DataCollatorForPairs(0, scores_prompt=True)(rows[:2])["spans"].scored == [1, 1, 4, 3]


def plain_loss(kind, model, batch):
    """The loss from padded rows, one side at a time, by cross-entropy of whole logits."""
    means, sums, nll = {}, {}, None
    for side in ("chosen", "rejected"):
        ids, mask = batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]
        logp = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        taken = logp.gather(-1, ids[:, 1:, None])[..., 0]
        answer = (batch[f"{side}_labels"] != -100)[:, 1:]
        sums[side] = (taken * answer).sum(1)
        means[side] = sums[side] / answer.sum(1)
        if side == "chosen":
            learned = mask[:, 1:] if kind == "ORPO" else answer
            nll = -(taken * learned).sum() / learned.sum()
    if kind == "CPO":
        return nll - torch.sigmoid(0.1 * (sums["chosen"] - sums["rejected"])).log().mean()
    odds = {side: mean - torch.log1p(-mean.exp()) for side, mean in means.items()}
    return nll - 0.1 * torch.sigmoid(odds["chosen"] - odds["rejected"]).log().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_shared_and_packed_is_padded(kind, tmp_path):
    made = trainer(kind, tmp_path)
    collated = made.data_collator([made.train_dataset[row] for row in range(4)])
    fed = []
    embeddings = made.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda m, i, out: fed.append(out.shape[1]))
    want = plain_loss(kind, made.model, collated)
    want.backward()
    grads = {name: p.grad.clone() for name, p in made.model.named_parameters()}
    for spans in (collated["spans"], None):
        made.model.zero_grad()
        loss = made.compute_loss(made.model, made._prepare_inputs({**collated, "spans": spans}))
        loss.backward()
        assert loss.item() == pytest.approx(want.item(), rel=1e-6)
        for name, parameter in made.model.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-6)
    shared = sum(group.length - 1 for group in collated["spans"].shared)
    assert len(collated["spans"].shared) == 4
    assert fed[2:] == [sum(collated["spans"].lengths) - 8 - shared, sum(fed[3:])]


def test_a_resumed_run_ends_alike(tmp_path):
    kind = "ORPO"
    whole = trainer(kind, tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    again = trainer(kind, tmp_path / "again", max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 4
    want = weights(whole.model)
    assert all(torch.equal(value, want[name]) for name, value in weights(again.model).items())
    assert again.state.num_input_tokens_seen == whole.state.num_input_tokens_seen > 0


def test_metrics_of_ones_own_and_a_model_made_late(tmp_path):
    seen = []

    def measured(found):
        seen.append(found)
        return {"mine": float(found.predictions.mean())}

    held_out = making.rows("preference", 4, seed=1)
    given = {"eval_dataset": held_out, "compute_metrics": measured}
    made = trainer("CPO", tmp_path, given=given, per_device_eval_batch_size=2)
    found = made.evaluate()
    means = torch.tensor(seen[0].predictions).view(2, 2).mean(0)  # 2 batches × 2 sides
    assert found["eval_logits/chosen"] == pytest.approx(means[0].item(), rel=1e-5)
    assert found["eval_logits/rejected"] == pytest.approx(means[1].item(), rel=1e-5)
    assert seen[0].label_ids.tolist() == [0.0] * 4 and found["eval_mine"]
    late = fastrl.CPOTrainer(
        model_init=lambda trial: making.model(),  # a search's trial, as transformers hands it
        args=config("CPO", tmp_path, per_device_eval_batch_size=2),
        train_dataset=held_out,
        processing_class=making.tokenizer(),
    )
    later = late.evaluate(held_out)
    assert later["eval_loss"] == pytest.approx(found["eval_loss"], rel=1e-6)
    with pytest.raises(ValueError, match="model and model_init are both given"):
        trainer("CPO", tmp_path, given={"model_init": making.model})


def test_a_call_of_0_11(tmp_path):
    kind, made = "CPO", {}
    for name in ("tokenizer", "processing_class"):
        args = config(kind, tmp_path)
        given = {name: making.tokenizer(), "train_dataset": making.rows("preference", 8)}
        owner = getattr(fastrl, f"{kind}Trainer")
        if name == "tokenizer":
            with pytest.warns(FutureWarning, match="tokenizer= is processing_class="):
                made[name] = owner(making.model(), args=args, **given)
        else:
            made[name] = owner(
                making.model(), args, None, given["train_dataset"], None, given[name]
            )
        made[name].train()
    old, new = made.values()
    assert (old._api_generation, new._api_generation) == ("0.11", "1")
    assert [e.get("loss") for e in old.state.log_history] == [
        e.get("loss") for e in new.state.log_history
    ]


def test_defaults_of_today_and_of_0_11(tmp_path):
    for owner in (fastrl.ORPOConfig, fastrl.CPOConfig):
        today = owner(str(tmp_path), use_cpu=True)
        assert (today.learning_rate, today.max_length, today.max_prompt_length) == (
            1e-6,
            1024,
            None,
        )
        with pytest.raises(TypeError, match=r"no longer takes label_pad_token_id=0"):
            owner(str(tmp_path), label_pad_token_id=0)
        fastrl.set_api("0.11")
        try:
            then = owner(str(tmp_path), use_cpu=True, label_pad_token_id=-100)
        finally:
            fastrl.set_api(None)
        assert (then.learning_rate, then.max_length, then.max_prompt_length) == (5e-5, 512, 128)


def test_alphapo_is_simpo_without_nll(tmp_path):
    args = config("CPO", tmp_path, loss_type="alphapo", alpha=0.5)
    assert (args.loss_type, args.cpo_alpha, args.alpha) == ("simpo", 0.0, 0.5)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("CPO", {"loss_type": "kto_pair"}, "loss_type='kto_pair' is none of sigmoid"),
        ("CPO", {"loss_type": "hinge", "label_smoothing": 0.1}, "works with sigmoid and simpo"),
        ("CPO", {"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing=0.1"),
        ("CPO", {"label_smoothing": 1.5}, r"in \[0, 1\], got 1.5"),
        ("CPO", {"loss_type": "alphapo", "cpo_alpha": 0.3}, "write loss_type='simpo'"),
        ("CPO", {"beta": 0}, "beta must be positive"),
        ("CPO", {"cpo_alpha": -1.0}, "cpo_alpha must be 0 or more"),
        ("ORPO", {"beta": -0.1}, "beta must be 0 or more"),
        ("ORPO", {"generate_during_eval": True}, "LogCompletionsCallback"),
        ("ORPO", {"is_encoder_decoder": True}, "decoder-only"),
        ("ORPO", {"max_prompt_length": 64, "max_length": None}, "set max_length"),
        ("ORPO", {"max_prompt_length": 64, "max_length": 64}, "leaves no room"),
        ("ORPO", {"max_completion_length": 0}, "must be positive or None"),
        ("ORPO", {"truncation_mode": "middle"}, "truncation_mode='middle'"),
    ],
)
def test_what_has_no_meaning_is_refused(kind, fields, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        config(kind, tmp_path, **fields)


def test_bad_rows_and_batches_are_named(tmp_path):
    rows = Dataset.from_list([*PAIR, {"prompt": "a", "chosen": "b", "rejected": None}])
    with pytest.raises(ValueError, match="row 1 of the train dataset: 'rejected' is None"):
        trainer("ORPO", tmp_path, rows=rows)
    alone = Dataset.from_list([*PAIR, {"prompt": "", "chosen": "a", "rejected": ""}])
    with pytest.raises(ValueError, match="row 1 of the train dataset: 'rejected' has no token but"):
        trainer("ORPO", tmp_path, rows=alone)
    made = trainer("CPO", tmp_path)
    with pytest.raises(
        ValueError, match="data_collator: its batches have no chosen_attention_mask"
    ):
        made.compute_loss(made.model, {"chosen_input_ids": torch.ones(1, 2)})
