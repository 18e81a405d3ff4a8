"""What TRL's `trainer.utils` holds for trainers: accuracies, divisions, dicts, cards, tables."""

from __future__ import annotations

import importlib.machinery
import random
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch

from fastrl.legacy import generation
from fastrl.train import card, tables
from fastrl.train.accuracy import compute_accuracy
from fastrl.train.batch_dicts import (
    shuffle_sequence_dict,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)
from fastrl.train.on_policy import OnlineTrainerState, OnPolicyConfig, exact_div
from fastrl.train.prompt_statistics import PerPromptStatTracker

PAIRS = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1], [0.5, 0.5]])
ZEROS = np.zeros(4)


def test_compute_accuracy_of_pairs_leaves_ties_out():
    with pytest.warns(UserWarning, match="1 of 4 pairs have equal rewards and are left out"):
        assert compute_accuracy((PAIRS, ZEROS)) == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize("old", ["0.7", "0.11"])
def test_compute_accuracy_counts_ties_where_the_api_is_pinned(monkeypatch, old):
    monkeypatch.setattr(generation, "_pinned", old)
    with pytest.warns(UserWarning, match="count as the first being larger"):
        assert compute_accuracy((PAIRS, ZEROS)) == {"accuracy": 0.75}


def test_compute_accuracy_of_tokens():
    predictions = np.array([[[1, 0], [0, 1], [0, 1]], [[0, 1], [1, 0], [1, 0]]])
    labels = np.array([[0, 1, -100], [0, 0, -100]])
    assert compute_accuracy((predictions, labels)) == {"accuracy": 0.75}
    assert np.isnan(compute_accuracy((predictions, np.full((2, 3), -100)))["accuracy"])


def test_exact_div_in_both_arities():
    assert exact_div(12, 4, "batch", "parts") == exact_div(12, 4, "told") == exact_div(12, 4) == 3
    with pytest.raises(ValueError, match=r"^batch=13 is no multiple of parts=4"):
        exact_div(13, 4, "batch", "parts")
    with pytest.raises(ValueError, match=r"^too few: batch=13 is no multiple of parts=4"):
        exact_div(13, 4, "batch", "parts", "too few")
    for given in (("too few",), ()):
        with pytest.raises(ValueError, match="too few: " if given else "^the number=13"):
            exact_div(13, 4, *given)
    with pytest.raises(ValueError, match=r"^too few: the number=13"):
        exact_div(13, 4, custom_error_message="too few")


def test_per_prompt_statistics_on_paper():
    tracker = PerPromptStatTracker(buffer_size=3, min_count=2)
    found = tracker.update(["a", "b", "a"], [1.0, 5.0, 3.0])
    # "a" has two rewards, mean 2 and deviation 1; "b" one, so the batch's: mean 3, sqrt(8/3).
    expected = [-1, 2 / (8 / 3) ** 0.5, 1]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    tracker.update(["a", "a"], [7.0, 5.0])
    stats = tracker.get_stats()
    assert stats["a"] == pytest.approx({"mean": 5, "std": (8 / 3) ** 0.5, "count": 3})
    assert stats["b"]["count"] == 1


def test_advantages_of_whole_numbers_are_not_cut():
    whole = PerPromptStatTracker(8, 2).update(["a", "a", "b"], [1, 0, 3])
    # "a" has mean 1/2 and deviation 1/2; "b" is compared with all: mean 4/3, deviation sqrt(14/9).
    expected = [1, -1, (3 - 4 / 3) / (14 / 9) ** 0.5]
    assert whole.tolist() == pytest.approx(expected, rel=1e-5)


def test_dicts_are_split_into_equal_parts():
    columns = {"x": torch.arange(6), "y": None, "z": torch.tensor(7), "w": list("abcdef")}
    parts = split_tensor_dict(columns, 3)
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [part["w"] for part in parts] == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert parts[1]["y"] is None and parts[1]["z"] == 7
    with pytest.raises(ValueError, match="num_chunks=4 does not divide 6 rows"):
        split_tensor_dict(columns, 4)


def test_dicts_are_shuffled_in_step():
    torch.manual_seed(1)
    order = torch.randperm(4).tolist()
    torch.manual_seed(1)
    found = shuffle_sequence_dict(
        {"none": None, "s": torch.tensor(2), "x": torch.arange(4), "y": list("abcd")}
    )
    assert found["x"].tolist() == order
    assert found["y"] == ["abcd"[i] for i in order]
    assert found["none"] is None and found["s"] == 2


def as_lists(batch):
    return {k: [t.tolist() for t in v] if isinstance(v, list) else v for k, v in batch.items()}


PIXELS = torch.arange(12).view(6, 2)
PICTURES = {
    "grid": (
        {
            "num_images": [2, 1],
            "pixel_values": PIXELS,
            "image_grid_thw": torch.tensor([[1, 1, 2], [1, 1, 1], [1, 3, 1]]),
        },
        [3, 3],
    ),
    "positions": (
        {
            "num_images": [4, 2],
            "pixel_values": PIXELS,
            "image_position_ids": torch.arange(6),
        },
        [4, 2],
    ),
    "tiles": (
        {
            "num_images": [1, 1],
            "num_tiles": [5, 1],
            "pixel_values": PIXELS,
            "spatial_shapes": PIXELS,
            "pixel_attention_mask": PIXELS,
        },
        [5, 1],
    ),
    "flat": ({"num_images": [4, 2], "pixel_values": PIXELS, "image_sizes": PIXELS}, [4, 2]),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pixels_are_split_by_sample_and_joined_again(kind):
    batch, sizes = PICTURES[kind]
    split = split_pixel_values_by_grid(batch)
    assert [len(part) for part in split["pixel_values"]] == sizes
    listed = [name for name, value in split.items() if isinstance(value[0], torch.Tensor)]
    assert set(listed) == {name for name in batch if not name.startswith("num_")}
    joined = unsplit_pixel_values_by_grid(split)
    for name in listed:
        assert torch.equal(joined[name], batch[name]), name


def test_pixels_of_one_row_a_sample_stay():
    batch = {"num_images": [2, 2], "pixel_values": torch.ones(2, 3)}
    assert split_pixel_values_by_grid(batch) is batch
    assert split_pixel_values_by_grid({"pixel_values": PIXELS}).keys() == {"pixel_values"}
    batch = PICTURES["grid"][0] | {"pixel_values": PIXELS[:5]}
    with pytest.raises(ValueError, match="describes 6 rows of pixel_values, and there are 5"):
        split_pixel_values_by_grid(batch)


def test_on_policy_config_and_state(tmp_path):
    args = OnPolicyConfig(str(tmp_path), response_length=7)
    found = (args.num_mini_batches, args.total_episodes, args.stop_token, args.temperature)
    assert found == (1, None, None, 0.7) and args.response_length == 7
    assert args.local_rollout_forward_batch_size == 64 and args.missing_eos_penalty is None
    assert OnlineTrainerState(episode=4).episode == 4


def test_generate_model_card():
    made = card.generate_model_card(
        base_model="org/base",
        model_name="mine",
        hub_model_id="me/mine",
        dataset_name="org/data",
        tags=["x"],
        wandb_url="https://example.org/run",
        trainer_name="KTO",
        trainer_citation="@misc{kto}",
        paper_title="A paper",
        paper_id="2402.01306",
    )
    assert made.data.base_model == "org/base" and made.data.datasets == ["org/data"]
    assert set(made.data.tags) == {"generated_from_trainer", "x"}
    text = made.content
    for part in ("# mine", "**KTO**", 'model="me/mine"', "arxiv.org/abs/2402.01306"):
        assert part in text, part
    for part in ("[Weights & Biases](https://example.org/run)", "@misc{kto}"):
        assert part in text, part
    with pytest.raises(ValueError, match=r"template_file='x\.md' belongs to another library"):
        card.generate_model_card(None, "m", "m", None, [], template_file="x.md")


@pytest.mark.parametrize(
    ("given", "tags"),
    [({}, ["trl"]), ({"tags": "a"}, ["a", "trl"]), ({"tags": ["a", "b"]}, ["a", "b", "trl"])],
)
def test_tags_are_added_to_keywords(given, tags):
    assert card.trl_sanitze_kwargs_for_tagging(None, ["trl"], dict(given))["tags"] == tags
    model = types.SimpleNamespace(config=types.SimpleNamespace(unsloth_version="1"))
    found = card.trl_sanitze_kwargs_for_tagging(model, ["trl"], dict(given))["tags"]
    assert found == [*tags, "unsloth"]
    assert card.trl_sanitze_kwargs_for_tagging(None, ["trl"]) is None


def test_tables_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    tables.print_rich_table(pd.DataFrame({"word": ["rain", "roof"], "n": [1, 2.5]}))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("word", "rain", "roof", "1.0", "2.5"))
    chat = [{"role": "user", "content": "hello"}]
    columns = (["The sky", chat], [" is blue", "hi"], {"fits": [0.126, 1]}, [0.5, -1])
    tables.print_prompt_completions_sample(*columns, 42, extra={"source": ["A", "B"]})
    shown = capsys.readouterr().out
    for word in ("Step 42", "The sky", "user: hello", "is blue", "0.13", "-1.00", "source", "B"):
        assert word in shown, word
    random.seed(0)
    tables.print_prompt_completions_sample(*columns[:3], None, 1, num_samples=1)
    shown = capsys.readouterr().out
    assert "Advantage" not in shown and ("The sky" in shown) != ("hello" in shown)
    tables.print_prompt_completions_sample(*columns, 1, num_samples=0)
    assert capsys.readouterr().out == ""


def test_brackets_in_tables_are_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    tables.print_rich_table(pd.DataFrame({"[b]head": ["x [/INST] y", "[red]z"]}))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("[b]head", "x [/INST] y", "[red]z"))
    tables.print_prompt_completions_sample(["[/p]"], ["[/c]"], {"[/r]": [1.0]}, None, 1)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("[/p]", "[/c]", "[/r]"))


def test_tables_without_rich(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (
        lambda: tables.print_rich_table(None),
        lambda: tables.print_prompt_completions_sample([], [], {}, None, 1),
    ):
        with pytest.raises(ImportError, match="pip install rich"):
            call()


def test_comet_is_asked_where_it_runs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tables.get_comet_experiment_url() is None
    with pytest.raises(ModuleNotFoundError, match="pip install comet_ml"):
        tables.log_table_to_comet_experiment("t", None)
    sent = []
    running = types.SimpleNamespace(
        url="https://example.org/e", log_table=lambda **table: sent.append(table)
    )
    comet = types.ModuleType("comet_ml")
    comet.get_running_experiment = lambda: running
    monkeypatch.setitem(sys.modules, "comet_ml", comet)
    spec = importlib.machinery.ModuleSpec("comet_ml", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert tables.get_comet_experiment_url() == "https://example.org/e"
    tables.log_table_to_comet_experiment("answers.csv", "table")
    assert sent == [{"tabular_data": "table", "filename": "answers.csv"}]
    comet.get_running_experiment = lambda: None
    assert tables.get_comet_experiment_url() is None
    tables.log_table_to_comet_experiment("answers.csv", "table")
    assert len(sent) == 1
