"""PPOTrainer: packed equals padded, overriding, accumulation, errors, saving."""

import numpy as np
import pytest
import torch

from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

SCALARS = 27  # of the 40 statistics, those that are one number and no time


class OwnForward(PPOTrainer):
    """Overrides a method of the padded contract without changing it."""

    def batched_forward_pass(self, *args, **kwargs):
        return super().batched_forward_pass(*args, **kwargs)


def scalars(stats):
    return {k: v for k, v in stats.items() if isinstance(v, float) and not k.startswith("time/")}


def weights(trainer):
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def assert_same(first, second, rtol=2e-4, atol=2e-6):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_allclose(first[key], second[key], rtol, atol, err_msg=key)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [{}, {"position_ids": True}, {"gradient_accumulation_steps": 2}, {"whiten_rewards": True}],
    ids=str,
)
def test_packed_step_equals_padded_step(make_trainer, rows, side, options):
    packed = make_trainer(padding_side=side, **options)
    padded = make_trainer(cls=OwnForward, padding_side=side, **options)
    assert packed._is_packed()
    assert not padded._is_packed()
    start = weights(packed)
    for seed in range(2):
        stats = []
        for trainer in (packed, padded):
            np.random.seed(seed)  # the order of the minibatches
            stats.append(scalars(trainer.step(*rows(seed=seed))))
        assert_same(*stats)
    for key, value in weights(padded).items():
        if key.endswith("attn.c_attn.bias"):
            continue  # holds the key bias, whose gradient is rounding alone, enlarged by Adam
        moved = (value - start[key]).norm()
        assert (packed.model.state_dict()[key] - value).norm() <= 1e-3 * moved + 1e-9, key


def test_prompt_positions_are_zero_only_when_packed(make_trainer, rows):
    queries, responses, scores = rows()
    first = make_trainer().step(queries, responses, scores)["objective/logprobs"]
    second = make_trainer(cls=OwnForward).step(queries, responses, scores)["objective/logprobs"]
    for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
        span = slice(len(query) - 1, len(query) - 1 + len(response))
        np.testing.assert_allclose(first[i, span], second[i, span], rtol=1e-4, atol=1e-5)
        assert not first[i, : len(query) - 1].any()
    assert second[:, 0].all()


@pytest.mark.parametrize(
    "name", ["prepare_model_inputs", "batched_forward_pass", "train_minibatch", "loss"]
)
def test_a_method_replaced_on_the_instance_is_called(make_trainer, rows, name):
    trainer = make_trainer()
    called = []
    original = getattr(trainer, name)
    setattr(trainer, name, lambda *a, **k: called.append(1) or original(*a, **k))
    trainer.step(*rows())
    assert called


def test_overridden_loss_gets_logits_of_every_position(make_trainer, rows):
    class OwnLoss(PPOTrainer):
        def loss(self, old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns):
            assert logits.shape == (*mask.shape, 48)
            assert logprobs.shape == vpreds.shape == advantages.shape == returns.shape == mask.shape
            policy, value, stats = super().loss(
                old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns
            )
            return 0 * policy, 0 * value, stats

    trainer = make_trainer(cls=OwnLoss)
    start = weights(trainer)
    trainer.step(*rows())
    assert all((value == start[key]).all() for key, value in weights(trainer).items())


def test_compute_rewards_of_two_values_is_accepted(make_trainer, rows):
    class Old(PPOTrainer):
        def compute_rewards(self, scores, logprobs, ref_logprobs, masks):
            return super().compute_rewards(scores, logprobs, ref_logprobs, masks)[:2]

    assert_same(scalars(make_trainer(cls=Old).step(*rows())), scalars(make_trainer().step(*rows())))


def test_forty_statistics_of_the_stated_types(make_trainer, rows):
    stats = make_trainer().step(*rows())
    assert len(stats) == 40
    assert len(scalars(stats)) == SCALARS
    arrays = {k: v for k, v in stats.items() if isinstance(v, np.ndarray)}
    assert all(v.dtype == np.float32 for v in arrays.values())
    assert sorted(arrays) == sorted(
        [
            "objective/kl_dist",
            "objective/logprobs",
            "objective/ref_logprobs",
            "ppo/policy/advantages",
            "ppo/policy/ratio",
            "tokens/queries_dist",
            "tokens/responses_dist",
        ]
    )


def test_accumulation_equals_one_larger_minibatch_of_equal_rows(make_trainer):
    rng = np.random.default_rng(3)
    queries = [torch.from_numpy(rng.integers(0, 40, 5)) for _ in range(8)]
    responses = [torch.from_numpy(rng.integers(0, 40, 7)) for _ in range(8)]
    scores = [torch.tensor(float(s)) for s in rng.normal(size=8)]
    large = make_trainer(mini_batch_size=8)
    small = make_trainer(mini_batch_size=2, gradient_accumulation_steps=4)
    start = weights(large)
    large.step(queries, responses, scores)
    small.step(queries, responses, scores)
    for key, value in weights(large).items():
        moved = (value - start[key]).norm()
        assert (small.model.state_dict()[key] - value).norm() <= 1e-3 * moved + 1e-9, key


def test_accumulation_holds_on_the_last_batch_of_the_dataloader(make_trainer, rows):
    queries, responses, _ = rows()
    data = [{"query": q, "response": r} for q, r in zip(queries, responses, strict=True)]

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return data[i]

    trainer = make_trainer(
        mini_batch_size=2,
        gradient_accumulation_steps=4,
        ppo_epochs=1,
        dataset=Data(),
        data_collator=lambda items: {k: [item[k] for item in items] for k in items[0]},
    )
    steps = []
    inner = trainer.optimizer.optimizer
    original = inner.step
    inner.step = lambda *a, **k: steps.append(1) or original(*a, **k)
    for batch in trainer.dataloader:
        trainer.step(batch["query"], batch["response"], [torch.tensor(1.0)] * 8)
    assert len(steps) == 1


def test_gradients_are_zero_not_none_after_a_step(make_trainer, rows):
    trainer = make_trainer()
    trainer.step(*rows())
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_reference_stays_and_policy_moves(make_trainer, rows):
    trainer = make_trainer(ref_model=None)
    start = {k: v.clone() for k, v in trainer.ref_model.state_dict().items()}
    assert trainer.step(*rows())["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert trainer.step(*rows())["objective/kl"] != pytest.approx(0, abs=1e-4)
    assert all((v == start[k]).all() for k, v in trainer.ref_model.state_dict().items())


def test_early_stopping_ends_the_epochs(make_trainer, rows):
    stopped = make_trainer(early_stopping=True, target_kl=-1.0, ppo_epochs=4, mini_batch_size=8)
    ratios = stopped.step(*rows())["ppo/policy/ratio"]
    whole = make_trainer(ppo_epochs=4, mini_batch_size=8).step(*rows())["ppo/policy/ratio"]
    assert ratios.size * 4 == whole.size


def test_ratio_threshold_leaves_the_weights(make_trainer, rows):
    optimizer_free = make_trainer(ratio_threshold=0.5, optimizer=None)
    start = weights(optimizer_free)
    with pytest.warns(UserWarning, match="over ratio_threshold=0.5"):
        stats = optimizer_free.step(*rows())
    assert stats["ppo/loss/total"] == 0
    assert all((v == start[k]).all() for k, v in weights(optimizer_free).items())


def test_max_grad_norm_clips_every_step(make_model, make_trainer, rows):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = make_trainer(model=model, optimizer=optimizer, max_grad_norm=1e-3, mini_batch_size=8)
    for seed in range(2):
        before = [p.clone() for p in trainer.model_params]
        trainer.step(*rows(seed=seed))
        pairs = zip(trainer.model_params, before, strict=True)
        moved = sum((p - b).square().sum() for p, b in pairs).sqrt()
        assert moved <= 2 * 1e-3 * 1.001  # two epochs of one clipped SGD step each


def test_scheduler_steps_once_per_step(make_model, make_trainer, rows):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    trainer = make_trainer(model=model, optimizer=optimizer, lr_scheduler=scheduler)
    rates = [trainer.step(*rows())["ppo/learning_rate"] for _ in range(3)]
    np.testing.assert_allclose(rates, [0.1, 0.09, 0.081])


def test_the_guides_batch_of_one_with_sgd_and_no_pad_token(make_model, tokenizer):
    tokenizer.pad_token = None
    model = make_model()
    config = PPOConfig(batch_size=1, learning_rate=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    with pytest.warns(UserWarning):
        trainer = PPOTrainer(config, model, make_model(), tokenizer, optimizer=optimizer)
    query, response = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    stats = trainer.step([query], [response], [torch.tensor(1.0)])
    assert np.isfinite(stats["ppo/loss/total"])
    assert len(trainer.generate([query], max_new_tokens=3)) == 1


BAD = [
    ("config", {"batch_size": 1}, "config must be a PPOConfig, got dict"),
    ("model", torch.nn.Linear(1, 1), "model must be an AutoModelForCausalLMWithValueHead"),
    ("ref_model", "gpt2", "ref_model must be an"),
    ("tokenizer", None, "tokenizer must be a transformers tokenizer"),
    ("lr_scheduler", 3, "lr_scheduler must be a torch LRScheduler"),
    ("dataset", 3, "dataset is a int"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[row[0] for row in BAD])
def test_wrong_parts(make_model, tokenizer, name, value, message):
    parts = {"config": PPOConfig(batch_size=2), "model": make_model(), "tokenizer": tokenizer}
    with pytest.raises(ValueError, match=message):
        PPOTrainer(**(parts | {name: value}))


def test_bad_rows_change_nothing(make_trainer, rows):
    trainer = make_trainer(use_score_scaling=True)
    start = weights(trainer)
    queries, responses, scores = rows()
    scores[3] = torch.tensor(float("nan"))
    with pytest.raises(ValueError, match=r"scores\[3\] is nan"):
        trainer.step(queries, responses, scores)
    responses[2] = torch.tensor([48])
    with pytest.raises(ValueError, match=r"responses\[2\]\[0\] is 48"):
        trainer.step(queries, responses, scores)
    assert trainer.running.mean == 0
    assert all((v == start[k]).all() for k, v in weights(trainer).items())


def test_nan_logits_stop_before_training(make_trainer, rows):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.v_head.summary.bias.fill_(float("nan"))
    start = weights(trainer)
    with pytest.raises(FloatingPointError, match="a value is not finite before training"):
        trainer.step(*rows())
    after = weights(trainer)
    assert all(torch.equal(v.nan_to_num(), start[k].nan_to_num()) for k, v in after.items())


def test_nan_loss_takes_no_step(make_trainer, rows):
    trainer = make_trainer()
    start = weights(trainer)
    trainer.compute_advantages = lambda values, rewards, mask: (
        values,
        rewards * float("nan"),
        rewards,
    )
    with pytest.raises(FloatingPointError, match=r"loss nan .* this optimizer step was not taken"):
        trainer.step(*rows())
    assert all((v == start[k]).all() for k, v in weights(trainer).items())
    assert all(not p.grad.any() for p in trainer.model_params if p.grad is not None)


def test_response_masks_take_tokens_out(make_trainer, rows):
    queries, responses, scores = rows()
    ones = [torch.ones_like(r) for r in responses]
    same = make_trainer().step(queries, responses, scores, response_masks=ones)
    assert_same(scalars(same), scalars(make_trainer().step(queries, responses, scores)))
    masks = [m.clone() for m in ones]
    masks[0][:2] = 0
    for side in ("right", "left"):
        fewer = make_trainer(padding_side=side).step(queries, responses, scores, masks)
        full = make_trainer(padding_side=side).step(queries, responses, scores)
        change = full["objective/kl_dist"] - fewer["objective/kl_dist"]
        logp, ref = full["objective/logprobs"][0], full["objective/ref_logprobs"][0]
        first = int(np.flatnonzero(logp)[0])
        expected = (logp - ref)[first : first + 2].sum()
        assert change[0] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert not change[1:].any()


def test_save_and_load_round_trip(make_trainer, rows, tmp_path):
    trainer = make_trainer()
    trainer.step(*rows())
    with pytest.warns(UserWarning, match="no model card"):
        trainer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    expected = weights(trainer)
    assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    assert (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("prompt", [True, False])
def test_generate_a_list_and_one(make_trainer, prompt):
    trainer = make_trainer(padding_side="right")
    queries = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7, 8])]
    kwargs = {"return_prompt": prompt, "do_sample": False, "max_new_tokens": 4}
    together = trainer.generate(queries, batch_size=2, **kwargs)
    assert trainer.tokenizer.padding_side == "right"
    for query, got in zip(queries, together, strict=True):
        (alone,) = trainer.generate(query, **kwargs)
        assert alone[: len(query)].tolist() == query.tolist() or not prompt
        eos = (alone == 47).nonzero()
        cut = alone[: int(eos[0]) + 1] if len(eos) else alone
        assert got.tolist() == cut.tolist()


def test_generate_with_the_reference_and_a_length_sampler(make_trainer):
    trainer = make_trainer()
    lengths = iter([3, 5, 3, 5])
    queries = [torch.tensor([1, 2]), torch.tensor([3, 4])]
    own, ref = trainer.generate(
        queries,
        length_sampler=lambda: next(lengths),
        batch_size=1,
        generate_ref_response=True,
        do_sample=False,
        eos_token_id=-1,
    )
    assert [len(r) for r in own] == [len(r) for r in ref] == [5, 7]
    direct = trainer.ref_model.generate(queries[0][None], max_new_tokens=3, do_sample=False)
    assert ref[0].tolist() == direct[0].tolist()


def test_generate_refuses_a_batch_tensor(make_trainer):
    with pytest.raises(ValueError, match=r"query_tensor\[0\] must be 1-D, got shape \(2, 3\)"):
        make_trainer().generate(torch.ones(2, 3, dtype=torch.long))
