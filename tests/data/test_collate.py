"""Collators give TRL's batches; what they say of rows and scores matches the tensors beside it."""

from __future__ import annotations

import json
import pickle

import collation_cases as cases
import numpy as np
import pytest
import torch
from preparation_cases import FIXTURES
from torch.utils.data import DataLoader

from fastrl.data import collate, collate_preference, collate_reward
from fastrl.types import Shared

RECORDED = json.loads((FIXTURES / "collation.json").read_text())["batches"]
BATCHES = cases.batches(
    collate.DataCollatorForLanguageModeling,
    collate_preference.DataCollatorForPreference,
    collate_preference.DataCollatorForUnpairedPreference,
    collate_reward.DataCollatorForPreference,
)
OURS = ("spans", "pooled")


@pytest.mark.parametrize("name", RECORDED)
def test_batches_are_those_of_trl(name):
    batch = {key: value for key, value in BATCHES[name].items() if key not in OURS}
    assert cases.plain(batch) == RECORDED[name]


def scored_columns(spans, index):
    scored = spans.scored[index]
    if isinstance(scored, int):
        assert scored < spans.lengths[index]
        scored = np.arange(scored, spans.lengths[index])
    assert all(0 < place < spans.lengths[index] for place in scored)
    return spans.starts[index] + scored


def marked(spans):
    """(B, T) bool: scored tokens; and how many spans cover each token."""
    scored = np.zeros(spans.shape, bool)
    covered = np.zeros(spans.shape, int)
    for index, row in enumerate(spans.rows):
        begin = spans.starts[index]
        covered[row, begin : begin + spans.lengths[index]] += 1
        scored[row, scored_columns(spans, index)] = True
    return scored, covered


@pytest.mark.parametrize("name", [name for name in BATCHES if name.startswith("language")])
def test_spans_score_the_labels(name):
    batch = BATCHES[name]
    spans = batch["spans"]
    assert spans.shape == tuple(batch["input_ids"].shape)
    scored, covered = marked(spans)
    labels = batch["labels"].numpy() != -100
    if "attention_mask" in batch:
        assert (covered == batch["attention_mask"].numpy()).all()
        labels[:, 0] = False  # nothing precedes it
    else:
        starts = batch["cu_seq_lens_q"][:-1].tolist()
        padding = batch["input_ids"].shape[1] - sum(spans.lengths)
        assert [*spans.starts, *range(sum(spans.lengths), spans.shape[1])] == starts
        assert covered.sum() == spans.shape[1] - padding
    assert (scored == labels).all()


@pytest.mark.parametrize("name", [name for name in BATCHES if name.startswith("pairs")])
def test_spans_of_pairs(name):
    batch = BATCHES[name]
    scored, covered = marked(batch["spans"])
    wanted = batch["completion_mask"].numpy().astype(bool)
    wanted[:, 0] = False
    assert (scored == wanted).all()
    assert (covered == batch["attention_mask"].numpy()).all()
    check_shared(batch["spans"].shared, batch["input_ids"], batch["completion_mask"])


def check_shared(shared, ids, completion):
    pairs = len(ids) // 2
    for one in shared:
        left, right = one.spans
        assert right == left + pairs
        assert (ids[left, : one.length] == ids[right, : one.length]).all()
        assert completion[[left, right], : one.length].sum() == 0


def test_a_pair_shares_its_whole_prompt():
    collator = collate_preference.DataCollatorForPreference(0, max_length=5)
    rows = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6], "rejected_ids": [4]},
        {"prompt_ids": [], "chosen_ids": [7, 8], "rejected_ids": [7, 9]},
        {"prompt_ids": [1, 2, 3, 4, 5], "chosen_ids": [6], "rejected_ids": [7]},
    ]
    spans = collator(rows)["spans"]
    # No prompt shares nothing; a prompt that fills the row leaves each side a token of its own.
    assert spans.shared == (Shared((0, 3), 3), Shared((2, 5), 4))
    assert spans.lengths == [5, 2, 5, 4, 2, 5]
    assert [s if isinstance(s, int) else s.tolist() for s in spans.scored] == [3, 1, [], 3, 1, []]


def test_rows_cut_at_the_front_share_only_what_begins_alike():
    collator = collate_preference.DataCollatorForPreference(0, 4, truncation_mode="keep_end")
    rows = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6, 7]},
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6], "rejected_ids": [7]},
    ]
    batch = collator(rows)
    assert batch["input_ids"].tolist() == [[2, 3, 4, 5], [3, 4, 5, 6], [2, 3, 6, 7], [1, 2, 3, 7]]
    assert batch["spans"].shared == (Shared((0, 2), 2),)


def test_kto_spans_stack_policy_and_kl_rows():
    batch = BATCHES["marked None kl=True"]
    spans = batch["spans"]
    widths = [batch[name].shape[1] for name in ("input_ids", "KL_input_ids")]
    assert spans.shape == (6, max(widths))
    pad = [torch.nn.functional.pad(batch[f"{p}completion_mask"], (0, max(widths) - w))
           for p, w in zip(("", "KL_"), widths, strict=True)]  # fmt: skip
    wanted = torch.cat(pad).bool().numpy()
    wanted[:, 0] = False
    assert (marked(spans)[0] == wanted).all()
    prompts = [len(row["prompt_ids"]) for row in cases.marked_rows(True)]
    assert spans.shared == tuple(Shared((i, i + 3), length) for i, length in enumerate(prompts))
    assert BATCHES["marked None kl=False"]["spans"].shared == ()


def test_reward_rows_share_up_to_where_they_are_pooled():
    collator = collate_reward.DataCollatorForPreference(0)
    rows = [
        {"chosen_ids": [1, 2, 3, 9], "rejected_ids": [1, 2, 4]},
        {"chosen_ids": [5, 6, 0], "rejected_ids": [5, 6, 7, 0]},
        {"chosen_ids": [8], "rejected_ids": [8]},
        {"chosen_ids": [0, 0], "rejected_ids": [3, 0, 4, 0, 0]},
    ]
    batch = collator(rows)
    # A padding token at the end of a row is skipped, as transformers' pooling does.
    assert batch["pooled"] == [3, 1, 0, 0, 2, 2, 0, 2]
    assert batch["spans"].shared == (Shared((0, 4), 2), Shared((1, 5), 1))
    assert batch["spans"].lengths == [4, 3, 1, 2, 3, 4, 1, 5]


def test_pooled_column_is_that_of_transformers():
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    config = Qwen2Config(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(config).eval()
    rows = [{"chosen_ids": [4, 5, 6, 0], "rejected_ids": [4, 7, 0, 0, 9, 0]}]
    batch = collate_reward.DataCollatorForPreference(0)(rows)
    with torch.no_grad():
        hidden = model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        every = model.score(hidden)[..., 0]
        pooled = model(batch["input_ids"], batch["attention_mask"]).logits[:, 0]
    torch.testing.assert_close(every[[0, 1], batch["pooled"]], pooled, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["language None flat=True positions=False packed=True", "rewards margin=True"]
)
def test_batches_can_be_sent_between_processes(name):
    batch = BATCHES[name]
    again = pickle.loads(pickle.dumps(batch))
    assert list(again) == list(batch)
    assert pickle.dumps(again["spans"].shared) == pickle.dumps(batch["spans"].shared)
    assert again["spans"].lengths == batch["spans"].lengths


@pytest.mark.slow
def test_collators_work_in_loader_processes():
    rows = cases.pair_rows(False) * 2
    collator = collate_preference.DataCollatorForPreference(0)
    batches = list(DataLoader(rows, batch_size=2, collate_fn=collator, num_workers=1))
    expected = [collator(rows[i : i + 2]) for i in range(0, 6, 2)]
    for batch, other in zip(batches, expected, strict=True):
        assert (batch["input_ids"] == other["input_ids"]).all()
        assert batch["spans"].shared == other["spans"].shared


def test_a_label_too_few_is_named():
    with pytest.raises(ValueError, match="row 1 of the batch has 2 input_ids and 1 labels"):
        collate.DataCollatorForLanguageModeling(0)(
            [{"input_ids": [1], "labels": [1]}, {"input_ids": [1, 2], "labels": [1]}]
        )


def test_lengths_that_do_not_add_up_are_refused():
    collator = collate.DataCollatorForLanguageModeling(0, padding_free=True)
    with pytest.raises(ValueError, match="seq_lengths sum to 4"):
        collator([{"input_ids": [1, 2, 3], "seq_lengths": [2, 2]}])


def test_arrays_and_tensors_are_rows_too():
    rows = cases.language_rows(1, labelled=True, packed=False)
    collator = collate.DataCollatorForLanguageModeling(0)
    expected = collator(rows)
    for kind in (np.array, torch.tensor):
        batch = collator([{name: kind(value) for name, value in row.items()} for row in rows])
        assert (batch["input_ids"] == expected["input_ids"]).all()
        assert (batch["labels"] == expected["labels"]).all()
