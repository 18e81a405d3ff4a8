"""Preparation beyond what TRL does: refusals that name the row, the cache, formatting functions."""

from __future__ import annotations

import json
import logging

import chat_cases
import preparation_cases as cases
import pytest
from datasets import Dataset, Features, Value, disable_progress_bars
from test_prepare import arguments

from fastrl.data import rows as rows_module
from fastrl.data.prepare_preference import prepare_preference, prepare_reward
from fastrl.data.prepare_sft import prepare_sft
from fastrl.data.prepare_unpaired import prepare_unpaired


@pytest.fixture(autouse=True)
def fresh():
    disable_progress_bars()
    rows_module._told.clear()


@pytest.fixture(scope="module")
def tokenizer():
    return cases.load_tokenizer()


def sft(rows, tokenizer, formatting_func=None, name="train", **options):
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return prepare_sft(dataset, tokenizer, arguments(**options), formatting_func, name)


TEXT = [{"text": "Yes."}, {"text": "No."}, {"text": "Rain."}]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"body": "a"}], {}, r"columns \['body'\]"),
        ([*TEXT, {"text": None}], {}, "row 3 of the train dataset: 'text' is None"),
        (
            [{"messages": cases.chat(0)}, {"messages": None}],
            {},
            "row 1 of the train dataset: 'messages' is None",
        ),
        (
            [{"messages": cases.chat(0)}, {"messages": []}],
            {},
            "row 1 of the train dataset: 'messages' has no messages",
        ),
        (
            [{"messages": cases.chat(0), "tools": "[1"}],
            {},
            "row 0 of the train dataset: 'tools' is a string that is not JSON",
        ),
        (
            [{"messages": cases.chat(0)[:1]}],
            {"assistant_only_loss": True},
            "row 0 of the train dataset: 'messages' has no assistant tokens",
        ),
        (
            [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1, 2], "labels": [1]}],
            {},
            r"row 1 of the train dataset: 'input_ids' .* differ in length: \[2, 1\]",
        ),
        (
            [{"input_ids": [1, 2], "labels": [-100, -100]}],
            {},
            "none of the 1 rows of the train dataset is left: within max_length=1024",
        ),
        (TEXT, {"packing": True, "max_length": None}, "packing needs max_length"),
        (TEXT, {"truncation_mode": "middle"}, "truncation_mode must be keep_start or keep_end"),
        (TEXT, {"assistant_only_loss": True}, "assistant_only_loss=True needs conversations"),
    ],
)
def test_refusals(tokenizer, rows, options, message):
    with pytest.raises(ValueError, match=message):
        sft(rows, tokenizer, **options)


def test_a_dataset_that_cannot_be_prepared(tokenizer):
    features = Features({"text": Value("string")})
    with pytest.raises(ValueError, match="the eval dataset is empty"):
        sft(Dataset.from_dict({"text": []}, features=features), tokenizer, name="eval")
    with pytest.raises(ValueError, match="has a transform"):
        sft(Dataset.from_list(TEXT).with_transform(lambda batch: batch), tokenizer)
    with pytest.raises(TypeError, match=r"must be a datasets.Dataset or IterableDataset, not str"):
        prepare_sft("data.json", tokenizer, arguments())
    with pytest.raises(ValueError, match="'text' is None"):
        list(
            sft(Dataset.from_list([{"text": "a"}, {"text": None}]).to_iterable_dataset(), tokenizer)
        )


def test_a_template_that_refuses_a_row_names_it(tokenizer):
    tokenizer = cases.load_tokenizer()
    tokenizer.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}x"
    )
    with pytest.raises(ValueError, match="row 1 of the train dataset: 'messages' cannot be rend"):
        sft([{"messages": cases.chat(0)}, {"messages": cases.chat(1, 2)}], tokenizer)


def test_rows_that_are_dropped_are_counted(tokenizer, caplog):
    rows = [*cases.PROMPTED, {"prompt": cases.SENTENCES[1] * 3, "completion": "Yes."}]
    with caplog.at_level(logging.WARNING):
        assert len(sft(rows, tokenizer, max_length=40)) == 5
    assert "1 of 6 rows of the train dataset are dropped: within max_length=40" in caplog.text
    caplog.clear()
    stream = Dataset.from_list(rows).to_iterable_dataset()
    with caplog.at_level(logging.WARNING):
        assert len(list(sft(stream, tokenizer, max_length=40))) == 5
    assert caplog.text.count("rows of the train dataset are dropped") == 1
    assert "the first is row 5" in caplog.text


def test_pairs_are_refused_by_row(tokenizer):
    broken = Dataset.from_list([*cases.PAIRS, {**cases.PAIRS[0], "rejected": None}])
    for prepare in (prepare_preference, prepare_reward, prepare_unpaired):
        with pytest.raises(ValueError, match="row 5 of the train dataset: 'rejected' is None"):
            prepare(broken, tokenizer, arguments())
    unlabelled = Dataset.from_list([*cases.UNPAIRED[:2], {**cases.UNPAIRED[0], "label": None}])
    with pytest.raises(ValueError, match="row 2 of the train dataset: 'label' is None"):
        prepare_unpaired(unlabelled, tokenizer, arguments())


def test_text_prompts_beside_conversations_repeat_their_start(tokenizer):
    rows = [{**row, "prompt": "as before"} for row in cases.JOINED_CHAT_PAIRS]
    plain = prepare_preference(Dataset.from_list(cases.JOINED_CHAT_PAIRS), tokenizer, arguments())
    told = prepare_preference(Dataset.from_list(rows), tokenizer, arguments())
    assert told[:] == plain[:]


def test_tokenised_pairs_pass(tokenizer):
    rows = [
        {"prompt_ids": [5, 6, 7], "chosen_ids": [8], "rejected_ids": [9, 9]},
        {"prompt_ids": [5] * 9, "chosen_ids": [8], "rejected_ids": [9]},
    ]
    kept = prepare_preference(Dataset.from_list(rows), tokenizer, arguments(max_length=9))
    assert kept.to_list() == rows[:1]


def test_reward_columns_of_trl_0_7(tokenizer):
    rows = [
        {
            "input_ids_chosen": [5, 6, 0, 0],
            "attention_mask_chosen": [1, 1, 0, 0],
            "input_ids_rejected": [5, 7, 8],
            "attention_mask_rejected": [1, 1, 1],
            "margin": 2,
        }
    ]
    with pytest.warns(FutureWarning, match="are now called 'chosen_ids' and 'rejected_ids'"):
        prepared = prepare_reward(Dataset.from_list(rows), tokenizer, arguments())
    assert prepared.to_list() == [{"chosen_ids": [5, 6], "rejected_ids": [5, 7, 8], "margin": 2.0}]


def texts(dataset, tokenizer):
    return [tokenizer.decode(ids) for ids in dataset["input_ids"]]


def test_formatting_functions(tokenizer):
    def of_row(row):
        return f"{row['question']}|{row['answer']}"

    def of_batch(batch):
        return [
            f"{batch['question'][i]}|{batch['answer'][i]}" for i in range(len(batch["question"]))
        ]

    rows = [{**row, "prompt": "p", "n": 3} for row in cases.QUESTIONS]
    wanted = [of_row(row) + "</s>" for row in rows]
    assert texts(sft(rows, tokenizer, of_row), tokenizer) == wanted
    assert texts(sft(rows, tokenizer, of_batch), tokenizer) == wanted
    with pytest.raises(ValueError, match="row 0 of the train dataset: 'formatting_func' returned"):
        sft(rows, tokenizer, lambda row: row["n"])
    with pytest.raises(ValueError, match="returned 1 texts for 4 rows"):
        sft(rows, tokenizer, lambda batch: of_batch(batch)[:1])
    with pytest.raises(KeyError, match="nothing"):
        sft(rows, tokenizer, lambda row: row["nothing"])
    with pytest.raises(ValueError, match="completion_only_loss=True needs"):
        sft(rows, tokenizer, of_row, completion_only_loss=True)


def test_other_columns_are_kept_on_request(tokenizer):
    rows = [{**row, "id": str(i)} for i, row in enumerate(cases.ALL_IGNORED)]
    prepared = sft(rows, tokenizer, remove_unused_columns=False, max_length=9)
    assert prepared["id"][:] == ["0", "1", "2", "3"]
    assert sft(rows, tokenizer).column_names == ["input_ids", "labels"]
    pairs = Dataset.from_list([{**row, "id": i} for i, row in enumerate(cases.PAIRS)])
    kept = prepare_unpaired(pairs, tokenizer, arguments(remove_unused_columns=False, max_length=11))
    assert len(kept["id"]) == 6
    assert [cases.PAIRS[i]["chosen"] for i in kept["id"]] == kept["chosen"][:]


def stored(tmp_path, rows):
    Dataset.from_list(rows).save_to_disk(str(tmp_path))
    return lambda: Dataset.load_from_disk(str(tmp_path))


def test_the_cache_knows_what_rows_depend_on(tmp_path, tokenizer):
    load = stored(tmp_path, cases.MESSAGES)
    first = sft(load(), tokenizer)
    assert first.cache_files
    tokenizer("some use that changes the tokenizer's state", truncation=True, max_length=3)
    assert sft(load(), tokenizer).cache_files == first.cache_files
    assert sft(load(), cases.load_tokenizer()).cache_files == first.cache_files
    others = [
        sft(load(), tokenizer, max_length=20),
        sft(load(), tokenizer, assistant_only_loss=True),
        sft(load(), cases.load_tokenizer("system")),
        sft(load(), tokenizer, lambda row: str(row)),
    ]
    names = [first, *others]
    assert len({json.dumps(dataset.cache_files) for dataset in names}) == len(names)


@pytest.mark.slow
def test_processes_change_nothing(tokenizer):
    rows = cases.PAIRS * 30
    for prepare in (prepare_preference, prepare_reward, prepare_unpaired):
        one, two = (
            prepare(
                Dataset.from_list(cases.UNPAIRED * 30 if prepare is prepare_unpaired else rows),
                tokenizer,
                arguments(dataset_num_proc=processes, per_device_train_batch_size=4),
            )
            for processes in (None, 2)
        )
        assert one[:] == two[:]
    broken = Dataset.from_list([*TEXT * 20, {"text": None}])
    with pytest.raises(ValueError, match="row 60 of the train dataset: 'text' is None"):
        sft(broken, tokenizer, dataset_num_proc=2)


def test_a_split_that_moves_is_told_once(tokenizer, caplog):
    rows = [{"prompt": "The s", "completion": "ky is blue"}] * 3
    with caplog.at_level(logging.WARNING):
        sft(rows, tokenizer)
        sft(rows, tokenizer, max_length=99)
    assert caplog.text.count("the tokens of a prompt are not those that begin") == 1
    assert "' s'" in caplog.text


def test_imbalance_is_told(tokenizer, caplog):
    rows = [{**row, "label": i == 0} for i, row in enumerate(cases.UNPAIRED)]  # 1 of 7
    with caplog.at_level(logging.WARNING):
        prepare_unpaired(Dataset.from_list(rows), tokenizer, arguments())
    assert "a desirable_weight in [6.00, 7.98]" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        prepare_unpaired(Dataset.from_list(rows), tokenizer, arguments(desirable_weight=7.0))
    assert "desirable_weight" not in caplog.text


def test_earlier_reasoning_is_learnt_where_the_template_would_drop_it():
    """A template that strips earlier turns is replaced by the one derived from it."""
    shipped, marked = chat_cases.TEMPLATES["qwen"]
    tokenizer = chat_cases.make_tokenizer(shipped)
    chat = [
        chat_cases.says("user", "a"),
        chat_cases.says("assistant", "<think>\nfirst\n</think>\n\nb"),
        chat_cases.says("user", "c"),
        chat_cases.says("assistant", "<think>\nsecond\n</think>\n\nd"),
    ]
    (row,) = sft([{"messages": chat}], tokenizer, assistant_only_loss=True)
    whole = chat_cases.make_tokenizer(marked).apply_chat_template(
        chat, return_assistant_tokens_mask=True, return_dict=True
    )
    assert row["input_ids"] == whole["input_ids"]
    learnt = [int(label != -100) for label in row["labels"]]
    assert learnt == whole["assistant_masks"]


def test_a_template_no_marks_can_be_put_in_is_proven_row_by_row():
    tokenizer = chat_cases.make_tokenizer(chat_cases.COUNTING)
    one = [chat_cases.says("user", "a"), chat_cases.says("assistant", "b")]
    with pytest.raises(ValueError, match="row 0 of the train dataset"):
        sft([{"messages": [*one, *one]}], tokenizer, assistant_only_loss=True)
