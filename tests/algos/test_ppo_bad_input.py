"""What a user gets wrong at night: named, before anything is changed, and nothing half-done."""

import random
import warnings

import numpy as np
import pytest
import torch

from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model
from fastrl.models.embeddings import position_limit


def state(trainer):
    """All that a step moves, as plain data."""
    states = trainer.optimizer.state_dict()["state"].items()
    moments = {i: {k: torch.as_tensor(v).tolist() for k, v in s.items()} for i, s in states}
    running = trainer.running
    generator = np.random.get_state()
    return {
        "weights": [p.tolist() for p in trainer.model.state_dict().values()],
        "optimizer": moments,
        "running": (float(running.mean), float(running.std), running.count),
        "coefficient": trainer.kl_ctl.value,
        "generators": (torch.get_rng_state().tolist(), generator[1].tolist(), random.getstate()),
        "mode": trainer.model.training,
        "gradients": any(p.grad is not None and p.grad.any() for p in trainer.model_params),
    }


def assert_nothing_changed(trainer, before):
    after = state(trainer)
    assert [key for key in before if before[key] != after[key]] == []


def replaced(rows, index, row):
    return [*rows[:index], row, *rows[index + 1 :]]


BAD_ROWS = {
    "queries must be a list.*: list": lambda q, r, s: (tuple(q), r, s),
    r"responses\[0\] must be a tensor, got list": lambda q, r, s: (q, [x.tolist() for x in r], s),
    r"scores\[0\] must be a tensor, got float": lambda q, r, s: (q, r, [0.0] * 8),
    r"scores\[2\] is nan": lambda q, r, s: (q, r, replaced(s, 2, torch.tensor(float("nan")))),
    r"responses\[5\]\[0\] is 48": lambda q, r, s: (q, replaced(r, 5, torch.tensor([48])), s),
    r"queries\[1\] and responses\[1\] have .* the model takes 64": lambda q, r, s: (
        replaced(q, 1, torch.ones(63, dtype=torch.long)),
        r,
        s,
    ),
    "response_masks.* 0 and 1 only": lambda q, r, s: (
        q,
        r,
        s,
        [0.5 * torch.ones(len(x)) for x in r],
    ),
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_rows_that_do_not_fit(make_trainer, rows, message):
    trainer = make_trainer(use_score_scaling=True)
    before = state(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.step(*BAD_ROWS[message](*rows()))
    assert_nothing_changed(trainer, before)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients(make_trainer, rows, off):
    trainer = make_trainer()
    before = state(trainer)
    with off(), pytest.raises(RuntimeError, match="call it outside no_grad"):
        trainer.step(*rows())
    assert_nothing_changed(trainer, before)


def test_a_step_that_fails_while_collecting_can_be_tried_again(make_trainer, rows):
    trainer, same = (make_trainer(use_score_scaling=True) for _ in range(2))
    before = state(trainer)
    right = trainer.compute_rewards

    def wrong(*arguments):
        raise KeyboardInterrupt

    trainer.compute_rewards = wrong
    with pytest.raises(KeyboardInterrupt):
        trainer.step(*rows())
    assert_nothing_changed(trainer, before)
    trainer.compute_rewards = right
    np.random.seed(1)
    again = trainer.step(*rows())
    np.random.seed(1)
    assert again["ppo/mean_scores"] == same.step(*rows())["ppo/mean_scores"]
    for first, second in zip(trainer.model_params, same.model_params, strict=True):
        assert torch.equal(first, second)


def test_half_an_accumulation_is_forgotten(make_trainer, rows):
    """Gradients and the count of a minibatch that failed would otherwise enter the next step."""
    settings = {"mini_batch_size": 2, "gradient_accumulation_steps": 4, "ppo_epochs": 1}
    trainer, same = (make_trainer(**settings) for _ in range(2))
    before = state(trainer)
    right, calls = trainer._train_packed, []

    def third_fails(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory")
        return right(*arguments)

    trainer._train_packed = third_fails
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step(*rows())
    assert_nothing_changed(trainer, before)
    for each in (trainer, same):
        np.random.seed(1)
        each.step(*rows())
    for first, second in zip(trainer.model_params, same.model_params, strict=True):
        assert torch.equal(first, second)


def test_ids_of_small_dtypes_are_the_same_ids(make_trainer, rows):
    queries, responses, scores = rows()
    small = [row.to(torch.uint8) for row in queries], [row.to(torch.int16) for row in responses]
    np.random.seed(0)
    expected = make_trainer().step(queries, responses, scores)["ppo/loss/total"]
    np.random.seed(0)
    assert make_trainer().step(*small, scores)["ppo/loss/total"] == expected


def other_optimizer(model):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)


def scheduler(model, kind=torch.optim.lr_scheduler.ExponentialLR, **arguments):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, kind(optimizer, **arguments)


BAD_PARTS = {
    "optimizer must be a torch optimizer.* got SGD": lambda m: {"optimizer": torch.optim.SGD},
    "optimizer must be a torch optimizer.* got float": lambda m: {"optimizer": 1e-3},
    "optimizer holds none of the model's": lambda m: {"optimizer": other_optimizer(m)},
    "does not use .none was given": lambda m: {"lr_scheduler": scheduler(m, gamma=0.9)[1]},
    "does not use .another one": lambda m: {
        "optimizer": scheduler(m, gamma=0.9)[0],
        "lr_scheduler": scheduler(m, gamma=0.9)[1],
    },
    "ReduceLROnPlateau": lambda m: dict(
        zip(
            ("optimizer", "lr_scheduler"),
            scheduler(m, torch.optim.lr_scheduler.ReduceLROnPlateau),
            strict=True,
        )
    ),
    "no parameter that requires a gradient": lambda m: {"model": m.requires_grad_(False)},
}


@pytest.mark.parametrize("message", BAD_PARTS)
def test_parts_that_do_not_fit(make_model, tokenizer, message):
    model, reference = make_model(), make_model(seed=1)
    parts = {"model": model, "ref_model": reference, "tokenizer": tokenizer}
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        PPOTrainer(PPOConfig(batch_size=8), **(parts | BAD_PARTS[message](model)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_reference_that_is_trained_along_is_told(make_model, make_trainer):
    model = make_model()
    shared = AutoModelForCausalLMWithValueHead(model.pretrained_model)
    for reference in (model, shared):
        with pytest.warns(UserWarning, match="ref_model shares trained parameters"):
            make_trainer(model=model, ref_model=reference)
    model = make_model()
    frozen = create_reference_model(model, num_shared_layers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer(model=model, ref_model=frozen)


def test_the_smaller_vocabulary_of_the_two_counts(make_model, make_trainer, rows):
    reference = make_model(seed=1)
    reference.pretrained_model.resize_token_embeddings(40)
    queries, responses, scores = rows()
    responses[0] = torch.tensor([41])
    with pytest.raises(ValueError, match="outside the vocabulary of 40"):
        make_trainer(ref_model=reference).step(queries, responses, scores)


def test_a_missing_tracker_is_told(make_trainer, monkeypatch, tmp_path):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(ImportError, match=r"the package tensorboard: pip install tensorboard$"):
        make_trainer(log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path)})


def test_a_padding_token_that_the_model_lacks(make_trainer, tokenizer, rows):
    class Padded(PPOTrainer):
        def loss(self, *arguments):
            return super().loss(*arguments)

    tokenizer.add_special_tokens({"pad_token": "<new>"})
    message = "pad_token_id is 48, outside the model's vocabulary of 48: call .*resize_token"
    with pytest.raises(ValueError, match=message):
        make_trainer(cls=Padded).step(*rows())
    trainer = make_trainer()
    trainer.step(*rows())  # packed rows hold no padding
    with pytest.raises(ValueError, match=message):
        trainer.generate(rows()[0], max_new_tokens=2)
    assert len(trainer.generate(rows()[0][:1], max_new_tokens=2)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_tensor": "hello"}, r"query_tensor\[0\] must be a tensor, got str"),
        ({"query_tensor": [torch.ones(2)]}, r"query_tensor\[0\] must hold token ids"),
        ({"query_tensor": torch.tensor([3, 48])}, r"query_tensor\[0\]\[1\] is 48, outside"),
        ({"batch_size": -1}, "batch_size=-1: a whole number"),
        ({"batch_size": None}, "batch_size=None: a whole number"),
        ({"length_sampler": 5}, "length_sampler must be callable, got int"),
    ],
)
def test_generating_from_what_is_wrong(make_trainer, arguments, message):
    prompts = [torch.tensor([1, 2]), torch.tensor([3])]
    with pytest.raises(ValueError, match=message):
        make_trainer().generate(**({"query_tensor": prompts, "max_new_tokens": 2} | arguments))


def test_prompts_of_any_whole_dtype_generate_the_same(make_trainer):
    trainer = make_trainer()
    prompts = [torch.tensor([1, 2]), torch.tensor([3])]
    options = {"max_new_tokens": 3, "do_sample": False}
    small = [row.to(torch.uint8) for row in prompts]
    for first, second in zip(
        trainer.generate(prompts, **options), trainer.generate(small, **options), strict=True
    ):
        assert first.tolist() == second.tolist()
    assert trainer.generate(small[0], **options).shape == (1, 5)


def test_only_a_learned_table_limits_the_positions(make_model):
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    assert position_limit(make_model().pretrained_model) == 64
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 48}
    llama = LlamaConfig(**sizes, intermediate_size=16, max_position_embeddings=32)
    assert position_limit(LlamaForCausalLM(llama)) is None
    opt = OPTConfig(**sizes, ffn_dim=16, max_position_embeddings=32, word_embed_proj_dim=16)
    assert position_limit(OPTForCausalLM(opt)) == 32
