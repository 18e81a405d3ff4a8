"""Answers from the geometric mixture of two models: by hand, by whole rows, by either way."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from transformers import GenerationConfig

from fastrl.models.policy import prepare_policy
from fastrl.rollout import mixture
from fastrl.rollout.completion import Request
from fastrl.rollout.mixture import GeometricMixtureWrapper, MixturePlan, mixed
from fastrl.rollout.plan import Plan
from tests.algos.offline_parity.making import model
from tests.algos.online_parity.making import fill_adapters

REQUESTS = [
    Request((7, 9, 30), (11, 12), (6, 6)),
    Request((40,), (13,), (3,)),
    Request((5, 6, 7, 8, 20, 21), (14, 15, 16), (8, 2, 5)),
]


@pytest.fixture(scope="module")
def two():
    policy, reference = model("qwen2"), model("llama").eval()
    for parameter in reference.parameters():
        parameter.data.mul_(1.7)  # else both are nearly even over the tokens
    for one in (policy, reference):
        one.eval()
        prepare_policy(one)
    return policy, reference


def plan_of(policy, reference, coefficient, aside=None, **sampling):
    settings = {"do_sample": True, "temperature": 0.8, "eos_token_id": 1, "pad_token_id": 0}
    plan = Plan.of(policy, None, {**settings, "max_new_tokens": 8, "top_k": 0, **sampling})
    more = {} if aside is None else {"aside": aside}
    return MixturePlan(**vars(plan), reference=reference, coefficient=coefficient, **more)


def whole(one, request, completion):
    """(T, V) logits of an answer's tokens, by one call of the model on the whole row."""
    ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        logits = one(input_ids=ids, use_cache=False).logits[0]
    return logits[len(request.prompt_ids) - 1 : -1]


def test_a_mixture_by_hand():
    """√(0.5 · 0.9) : √(0.5 · 0.1) is 3 : 1."""
    own, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert mixed(own, other, 0.5).exp().tolist() == pytest.approx([0.75, 0.25])
    # 0.5^(3/4) 0.9^(1/4) : 0.5^(3/4) 0.1^(1/4) is 9^(1/4) : 1.
    assert mixed(own, other + 3, 0.25).exp()[0].item() == pytest.approx(1 / (1 + 9**-0.25))
    barred = torch.tensor([0.0, -torch.inf])
    assert mixed(own, barred, 0.0).tolist() == pytest.approx(own.tolist())
    assert mixed(own, barred, 0.5).tolist() == [0.0, -torch.inf]


def test_every_token_is_drawn_from_the_mixture_of_whole_rows(two):
    policy, reference = two
    answers = plan_of(policy, reference, 0.3).answers(REQUESTS)
    assert [len(several) for several in answers] == [2, 1, 3]
    differs = 0.0
    for request, several in zip(REQUESTS, answers, strict=True):
        for completion in several:
            own, other = (whole(one, request, completion) for one in two)
            want = torch.log_softmax((0.7 * own + 0.3 * other) / 0.8, -1)
            taken = torch.tensor(completion.token_ids)[:, None]
            assert list(completion.logp_full) == pytest.approx(
                want.gather(1, taken)[:, 0].tolist(), abs=2e-5
            )
            alone = torch.log_softmax(own / 0.8, -1).gather(1, taken)[:, 0]
            differs += float((alone - torch.tensor(completion.logp_full)).abs().sum())
    assert differs > 0.1


@pytest.mark.parametrize(("coefficient", "which"), [(0.0, 0), (1.0, 1)])
def test_at_its_ends_it_is_one_of_the_models(two, coefficient, which):
    mixture_plan = plan_of(*two, coefficient)
    how = (mixture_plan.config, mixture_plan.others, mixture_plan.sampling, None)
    alone = Plan(two[which], *how)
    ids = [[c.token_ids for c in several] for several in mixture_plan.answers(REQUESTS)]
    assert ids == [[c.token_ids for c in several] for several in alone.answers(REQUESTS)]
    other = Plan(two[1 - which], *how)
    assert ids != [[c.token_ids for c in several] for several in other.answers(REQUESTS)]


def test_an_adapter_steps_aside_for_its_reference():
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(model("qwen2"), LoraConfig(target_modules=["q_proj", "up_proj"]))
    fill_adapters(policy)
    policy.eval()
    prepare_policy(policy)

    @contextmanager
    def aside():
        with policy.disable_adapter():
            yield policy

    answers = plan_of(policy, policy, 0.5, aside, temperature=1.0).answers(REQUESTS)
    for request, several in zip(REQUESTS, answers, strict=True):
        for completion in several:
            own = whole(policy, request, completion)
            with policy.disable_adapter():
                other = whole(policy, request, completion)
            assert (own - other).abs().max() > 1e-3
            want = torch.log_softmax((own + other) / 2, -1)
            taken = torch.tensor(completion.token_ids)[:, None]
            assert list(completion.logp_full) == pytest.approx(
                want.gather(1, taken)[:, 0].tolist(), abs=2e-5
            )


def greedy(two, prompt, count, coefficient):
    """The likeliest tokens, by whole rows."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            own, other = (one(input_ids=torch.tensor([ids])).logits[0, -1] for one in two)
        ids.append(int(((1 - coefficient) * own + coefficient * other).argmax()))
        if ids[-1] == 1:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("reason", ["", "it is not served here"])
def test_the_best_tokens_by_the_engine_and_by_generate(two, monkeypatch, reason):
    told = []
    monkeypatch.setattr(MixturePlan, "say", lambda plan, why: told.append(why))
    if reason:
        monkeypatch.setattr(mixture, "served", lambda _: reason)
    answers = plan_of(*two, 0.6, do_sample=False, temperature=None).answers(REQUESTS)
    assert told == [f"of its reference, {reason}"] * bool(reason)
    for request, several in zip(REQUESTS, answers, strict=True):
        for completion, limit in zip(several, request.limits, strict=True):
            assert list(completion.token_ids) == greedy(two, request.prompt_ids, limit, 0.6)


def test_the_wrapper_generates_from_the_mixture(two):
    config = GenerationConfig(do_sample=False, max_new_tokens=5, pad_token_id=0, eos_token_id=1)
    wrapper = GeometricMixtureWrapper(*two, config, mixture_coef=0.25)
    ids, mask = torch.tensor([[0, 0, 9], [7, 9, 30]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    made = wrapper.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    for row, prompt in zip(made[:, 3:].tolist(), ([9], [7, 9, 30]), strict=True):
        assert row == greedy(two, prompt, 5, 0.25)
    with torch.no_grad():
        own, other = (one(input_ids=ids[1:]).logits for one in two)
    want = torch.log_softmax(0.75 * own + 0.25 * other, -1)
    torch.testing.assert_close(wrapper(input_ids=ids[1:]).logits, want)
    with pytest.raises(ValueError, match=r"mixture_coef must be from 0 to 1, got 1\.5"):
        GeometricMixtureWrapper(*two, config, mixture_coef=1.5)
