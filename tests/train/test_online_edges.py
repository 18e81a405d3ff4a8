"""Online trainers at their edges: what is refused early, and what must not go wrong silently."""

from __future__ import annotations

import math
import warnings

import pandas as pd
import pytest
import torch
from datasets import Dataset, IterableDataset

from fastrl import GRPOConfig, GRPOTrainer
from fastrl.train.experience import Experience, joined
from tests.algos.offline_parity.making import model, tokenizer
from tests.train.online_runs import PROMPTS, arguments, grpo, losses, same, vowels, weights


def rows(trainer, key="reward"):
    return [row for row in trainer.state.log_history if key in row]


def on(folder, dataset, rewards=vowels, kind=GRPOTrainer, **given):
    config = GRPOConfig(**arguments(folder, **given))
    return kind(model(), rewards, config, dataset, processing_class=tokenizer())


def as_chat(prompt):
    return [{"role": "user", "content": prompt}]


# --- prompts and columns -------------------------------------------------------------------------

MANY = ["a question"] * 60
BAD_PROMPTS = {
    "none behind long ones": ([*MANY, None], "row 60: prompt must be a text.*got None"),
    "empty behind long ones": ([*MANY, ""], "row 60: its prompt is empty"),
    "numbers": (list(range(8)), "row 0: prompt must be a text or a list of messages, got 0"),
    "token ids": ([[1, 2, 3]] * 8, r"row 0: prompt must be a text.*got \[1, 2, 3\]"),
    "none before messages": ([None, *map(as_chat, PROMPTS)], "row 0: prompt.*got None"),
    "no messages": ([*map(as_chat, MANY), []], r"row 60: prompt must be.*got \[\]"),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_prompts_nobody_can_answer_are_refused_at_construction(tmp_path, case):
    prompts, message = BAD_PROMPTS[case]
    with pytest.raises(ValueError, match=f"(?s)train_dataset {message}"):
        grpo(tmp_path, rows=prompts)


def test_a_stream_that_ends_before_max_steps_begins_again(tmp_path):
    stream = Dataset.from_dict({"prompt": PROMPTS[:5]}).to_iterable_dataset()
    trainer = on(tmp_path, stream, max_steps=5)  # two prompts a step, so two steps each time
    trainer.train()
    assert trainer.state.global_step == len(losses(trainer)) == 5


def test_a_stream_too_short_for_one_batch_is_told_before_the_first_step(tmp_path):
    stream = Dataset.from_dict({"prompt": PROMPTS[:1]}).to_iterable_dataset()
    trainer = on(tmp_path, stream)
    before = weights(trainer)
    with pytest.raises(ValueError, match="train_dataset ended before it gave 2 prompts"):
        trainer.train()
    same(before, weights(trainer), rtol=0, atol=0)


@pytest.mark.parametrize("held", [{"question": "a"}, {"prompt": None}])
def test_a_streams_row_without_prompt_is_shown(tmp_path, held):
    stream = IterableDataset.from_generator(lambda: iter([held] * 16))
    trainer = on(tmp_path, stream)
    with pytest.raises(ValueError, match="its prompt must be a text or a list of messages"):
        trainer.train()


def test_rows_may_be_made_as_they_are_asked_for(tmp_path):
    seen = []

    def judge(prompts, completions, **_):
        seen.extend(prompts)
        return vowels(completions)

    raw = Dataset.from_dict({"question": PROMPTS})
    made = raw.with_transform(lambda rows: {"prompt": [q.upper() for q in rows["question"]]})
    on(tmp_path, made, judge, max_steps=1).train()
    assert len(seen) == 8 and set(seen) < {prompt.upper() for prompt in PROMPTS}


@pytest.mark.parametrize("name", ["prompts", "completions", "trainer_state"])
def test_columns_called_as_arguments_of_rewards_are_refused_at_construction(tmp_path, name):
    held_out = Dataset.from_dict({"prompt": PROMPTS, name: PROMPTS})
    with pytest.raises(ValueError, match=f"column '{name}'.*rename_column"):
        on(tmp_path, held_out)
    with pytest.raises(ValueError, match=f"column '{name}'.*rename_column"):
        grpo(tmp_path, more={"eval_dataset": {"a": held_out}})
    assert on(tmp_path, held_out, remove_unused_columns=True)  # it is not given to them


def test_columns_may_be_called_as_a_batchs_own(tmp_path):
    seen = []

    def judge(completions, slices, advantages, step, **_):
        seen.append((slices, advantages, step))
        return vowels(completions)

    own = {"slices": [7] * 8, "advantages": [2.5] * 8, "step": [3] * 8, "input_ids": [[1]] * 8}
    trainer = on(tmp_path, Dataset.from_dict({"prompt": PROMPTS, **own}), judge, max_steps=1)
    trainer.train()
    assert seen == [([7] * 8, [2.5] * 8, [3] * 8)]


# --- drawing -------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "unknown": ({"generation_kwargs": {"tempreature": 0.5}}, "generation_kwargs.*tempreature"),
    "several": ({"generation_kwargs": {"num_return_sequences": 2}}, "num_generations says"),
    "list": ({"generation_kwargs": ["top_k"]}, "generation_kwargs must be a dict, got list"),
    "nan": ({"temperature": math.nan}, "temperature must be positive, got nan"),
    "print": ({"num_completions_to_print": -1}, "num_completions_to_print must be 0 or more"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_cannot_work_are_refused_at_construction(tmp_path, case):
    given, message = BAD_SETTINGS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        grpo(tmp_path, **given)


def test_no_top_k_is_all_tokens(tmp_path):
    assert GRPOConfig(**arguments(tmp_path, top_k=None)).top_k == 0


@pytest.mark.parametrize(
    "given", [{"eos_token_id": [1, *range(5, 40)]}, {"stop_strings": list("W5QGHJxyz09")}]
)
def test_answers_ended_by_generation_kwargs_are_not_cut_off(tmp_path, given):
    """With the limit as mask: only those of full length that nothing ended are left out."""
    ended = []

    def judge(completions, completion_ids, **_):
        ids, stops = given.get("eos_token_id", [1]), given.get("stop_strings", ())
        texts = [text.replace(" ", "") for text in completions]
        ended.extend(
            own[-1] in ids or text.endswith(tuple(stops) or ("\0",))
            for own, text in zip(completion_ids, texts, strict=True)
        )
        return vowels(completions)

    trainer = grpo(
        tmp_path,
        judge,
        max_steps=1,
        max_completion_length=12,
        generation_kwargs=given,
        mask_truncated_completions=True,
    )
    trainer.train()
    (row,) = rows(trainer)
    assert any(ended)
    assert row["completions/clipped_ratio"] == pytest.approx(1 - sum(ended) / len(ended))
    assert row["entropy"] > 0  # something was learnt from


# --- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_evaluation_that_would_part_a_prompts_answers_is_refused(tmp_path, method):
    trainer = grpo(tmp_path, per_device_eval_batch_size=3)
    with pytest.raises(ValueError, match=r"per_device_eval_batch_size .* = 3 is no multiple"):
        getattr(trainer, method)(Dataset.from_dict({"prompt": PROMPTS}))


def test_predict_answers_each_prompt_of_a_stream_several_times(tmp_path):
    seen = []

    def judge(prompts, completions, **_):
        seen.extend(prompts)
        return vowels(completions)

    trainer = grpo(tmp_path, judge, per_device_eval_batch_size=4)
    trainer.predict(Dataset.from_dict({"prompt": PROMPTS[:3]}).to_iterable_dataset())
    assert sorted(seen) == sorted(PROMPTS[:3] * 4)


# --- subclasses ----------------------------------------------------------------------------------


def test_a_compute_loss_of_the_users_own_gets_slices_as_they_were_drawn(tmp_path):
    seen = []

    class Own(GRPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            mask = inputs["completion_mask"]
            seen.append((len(mask), int(inputs["num_items_in_batch"]), inputs["slices"].tolist()))
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            whole = torch.cat([inputs["prompt_mask"], mask], 1)
            width = mask.shape[1]
            logits = model(input_ids=ids, attention_mask=whole).logits[:, -width - 1 : -1]
            logp = logits.log_softmax(-1).gather(2, inputs["completion_ids"][..., None])[..., 0]
            loss = -(logp * inputs["advantages"][:, None] * mask).sum()
            return loss / inputs["num_items_in_batch"]

    # prompts of unlike length and answers that end early: as passes, rows would be regrouped
    given = {"gradient_accumulation_steps": 4, "optim": "sgd", "learning_rate": 0.1, "max_steps": 2}
    dataset = Dataset.from_dict({"prompt": PROMPTS})
    own = on(tmp_path, dataset, kind=Own, **given)
    own.train()
    assert [part[0] for part in seen] == [4] * 8
    assert [set(part[2]) for part in seen] == [{i} for i in range(4)] * 2
    # On-policy, dapo's loss is this one: what it gives is the oracle.
    plain = on(tmp_path, dataset, **given)
    plain.train()
    same(weights(plain), weights(own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["_compute_loss", "_generate_and_score_completions"])
def test_overrides_of_what_is_never_called_are_refused(tmp_path, name):
    kind = type("Mine", (GRPOTrainer,), {name: lambda self, *given: None})
    with pytest.raises(TypeError, match=rf"Mine\.{name} would never be called"):
        on(tmp_path, Dataset.from_dict({"prompt": PROMPTS}), kind=kind)


def test_balancing_ranks_is_refused_where_rows_may_not_move(tmp_path):
    with pytest.raises(ValueError, match="balance_ranks moves answers between passes"):
        grpo(tmp_path, balance_ranks=True, top_entropy_quantile=0.5)


# --- resuming ------------------------------------------------------------------------------------

CHANGES = {
    "per_device_train_batch_size": 8,
    "steps_per_generation": 2,
    "num_generations": 2,
    "beta": 0.1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_resumed_under_other_settings_draws_fresh_answers_and_says_so(tmp_path, name):
    given = {"steps_per_generation": 8, "num_iterations": 2, "max_steps": 3, "rows": PROMPTS * 2}
    grpo(tmp_path, save_strategy="steps", save_steps=3, **given).train()
    calls = []

    def judge(completions, **_):
        calls.append(len(completions))
        return vowels(completions)

    again = grpo(tmp_path, judge, **{**given, "max_steps": 4, name: CHANGES[name]})
    with pytest.warns(UserWarning, match=f"rollouts_0.pt.*{name}=.*, now {CHANGES[name]}"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert calls == [again.args.generation_batch_size] and len(losses(again)) == 4


def test_a_checkpoint_of_the_model_alone_has_no_answers(tmp_path):
    grpo(tmp_path, save_strategy="steps", save_steps=1, max_steps=1, save_only_model=True).train()
    assert not list((tmp_path / "checkpoint-1").glob("rollouts_*"))


# --- the table of completions --------------------------------------------------------------------


def test_columns_logged_now_and_then_stand_beside_their_own_completions(tmp_path):
    steps = []

    def judge(completions, log_extra, **_):
        steps.append(list(completions))
        if len(steps) == 2:
            for text in completions:  # one at a time
                log_extra("copy", [text])
        return vowels(completions)

    grpo(tmp_path, judge, log_completions=True, num_completions_to_print=0, max_steps=3).train()
    tables = [
        pd.read_parquet(tmp_path / "completions" / f"completions_{n:05d}.parquet")
        for n in (1, 2, 3)
    ]
    assert ["copy" in table for table in tables] == [False, True, False]
    assert tables[1]["copy"].tolist() == tables[1]["completion"].tolist() == steps[1]


BAD_COLUMNS = {
    "advantage": (8, "the table has a column of that name"),
    "judge": (8, "the table has a column of that name"),
    "mine": (7, "got 7 values for 8 completions"),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_columns_the_table_has_no_place_for_are_refused_before_the_step(tmp_path, name):
    count, message = BAD_COLUMNS[name]

    def judge(completions, log_extra, **_):
        log_extra(name, ["x"] * count)
        return vowels(completions)

    trainer = grpo(tmp_path, judge, log_completions=True)
    before = weights(trainer)
    with pytest.raises(ValueError, match=rf"log_extra\('{name}', …\): {message}"):
        trainer.train()
    same(before, weights(trainer), rtol=0, atol=0)
    with warnings.catch_warnings():  # nobody looks at them: as TRL
        warnings.simplefilter("error", UserWarning)
        grpo(tmp_path, judge, max_steps=1).train()


STRANGE_VALUES = {
    "tensors": ([torch.ones(1)] * 8, "Tensor: "),
    "objects": ([object()] * 8, "object: "),
    "empty dicts": ([{}] * 8, "dict: "),
    "numbers and texts": ([1, "x"] * 4, "int, str: "),
}


@pytest.mark.parametrize("name", STRANGE_VALUES)
def test_values_the_table_cannot_hold_are_refused_before_the_step(tmp_path, name):
    values, kinds = STRANGE_VALUES[name]

    def judge(completions, log_extra, **_):
        log_extra("mine", values)
        return vowels(completions)

    trainer = grpo(tmp_path, judge, log_completions=True)
    before = weights(trainer)
    message = rf"log_extra\('mine', …\): parquet cannot hold these values in one column \({kinds}"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    same(before, weights(trainer), rtol=0, atol=0)


def test_a_language_model_is_no_reward_model(tmp_path):
    with pytest.raises(ValueError, match=r"reward_funcs\[1\] is a .*, a language model"):
        on(tmp_path, Dataset.from_dict({"prompt": PROMPTS}), [vowels, model()])


def test_a_model_without_generation_config_answers_as_one_with_its_configs(tmp_path):
    found = []
    for own in (True, False):
        policy = model()
        if not own:
            policy.generation_config = None
        config = GRPOConfig(**arguments(tmp_path, max_steps=2))
        rows = Dataset.from_dict({"prompt": PROMPTS})
        trainer = GRPOTrainer(policy, vowels, config, rows, processing_class=tokenizer())
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1] and len(found[0]) == 2


# --- rows ----------------------------------------------------------------------------------------


def test_a_number_for_each_answer_survives_slices_of_one_token():
    def part(length, ratio):
        ids = torch.full((1, length), 9)
        tensors = {
            "prompt_ids": torch.tensor([[5, 6]]),
            "prompt_mask": torch.ones(1, 2, dtype=torch.int64),
            "completion_ids": ids,
            "completion_mask": torch.ones_like(ids),
            "importance_sampling_ratio": torch.tensor([[ratio]]),
        }
        return Experience(tensors, [2], [length], [torch.arange(length).numpy()], [0])

    for lengths in ([1, 3], [3, 1], [1, 1]):
        whole = joined([part(n, float(i)) for i, n in enumerate(lengths)], pad_token_id=0)
        assert whole.tensors["importance_sampling_ratio"].tolist() == [[0.0], [1.0]]
        assert whole.tensors["completion_mask"].sum(1).tolist() == lengths


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "not labels that could be smoothed"),
        ({"train_sampling_strategy": "group_by_length"}, "shuffle_dataset=False"),
    ],
)
def test_what_would_do_nothing_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(str(tmp_path), use_cpu=True, **given)
