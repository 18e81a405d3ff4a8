"""The best of several answers: TRL 0.7.11's texts, forms of queries, ranking, seeds, errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

import fastrl
from fastrl import AutoModelForCausalLMWithValueHead
from fastrl.rollout.best_of_n import BestOfNSampler
from fastrl.rollout.engine import Engine
from tests.rollout.classic_peer import classic_cases as cases

PEER = Path(__file__).with_name("classic_peer")
LIBRARY = SimpleNamespace(
    AutoModelForCausalLMWithValueHead=AutoModelForCausalLMWithValueHead,
    BestOfNSampler=BestOfNSampler,
)
RECORDED = json.loads((PEER / "recorded.json").read_text())["best_of_n"]
DRAWN = {"do_sample": True, "top_k": 0, "pad_token_id": cases.PAD, "eos_token_id": cases.EOS}


@pytest.fixture(scope="module")
def gpt2():
    return cases.model(LIBRARY, "gpt2", liking=1.0)


@pytest.fixture
def words():
    return cases.tokenizer()


def sampler(model, tokenizer, scores=cases.reward, length=lambda: 6, **given):
    return BestOfNSampler(model, tokenizer, scores, length, **given)


@pytest.mark.parametrize("name", cases.SAMPLERS)
def test_texts_are_those_of_trl(name):
    assert cases.sample(LIBRARY, name) == RECORDED[name]


def test_the_best_are_kept_best_first(gpt2, words):
    seen = []

    def scores(texts):
        seen.append(texts)
        return [1.0, 5.0, -2.0, 3.0, 4.0]

    made = sampler(gpt2, words, scores, sample_size=5, n_candidates=3, seed=3)
    (first, second) = made.generate([[20, 30], [40]], **DRAWN)
    assert first == [seen[0][i] for i in (1, 4, 3)]
    assert second == [seen[1][i] for i in (1, 4, 3)]
    assert all(text.startswith(words.decode([20, 30])) for text in seen[0])
    assert len(set(seen[0])) > 1


def test_each_prompt_is_fed_once_and_all_are_answered_in_one_rollout(monkeypatch, gpt2, words):
    fed, ran = [], []
    prefill, run = Engine._prefill, Engine.run
    monkeypatch.setattr(
        Engine, "_prefill", lambda self, fresh: (fed.extend(fresh), prefill(self, fresh))[1]
    )
    monkeypatch.setattr(Engine, "run", lambda self: (ran.append(self), run(self))[1])
    sampler(gpt2, words, sample_size=6).generate([[20, 30], [40], [50, 51, 52]], **DRAWN)
    assert (len(fed), len(ran)) == (3, 1)
    assert [len(request.seeds) for request in ran[0].requests] == [6, 6, 6]


def test_a_length_is_drawn_for_each_query(gpt2, words):
    lengths = iter([2, 7, 4])
    made = sampler(gpt2, words, lambda texts: [0.0] * len(texts), lambda: next(lengths))
    best = made.generate([[20]] * 3, do_sample=False, eos_token_id=-1, pad_token_id=cases.PAD)
    answers = [len(words(text).input_ids) - 1 for (text,) in best]
    assert answers == [2, 7, 4]


def test_a_seed_gives_the_same_texts_and_answers_differ(gpt2, words):
    def texts(seed):
        made = sampler(gpt2, words, sample_size=4, n_candidates=4, seed=seed)
        return made.generate([[20, 30], [20, 30]], **DRAWN)

    first = texts(5)
    assert first == texts(5) != texts(6)
    assert len({text for answers in first for text in answers}) == 8


def test_one_sample_is_enough(gpt2, words):
    # TRL 0.7.11 took the tokens of a single sample for samples of their own.
    (best,) = sampler(gpt2, words, sample_size=1).generate([20, 30], do_sample=False)
    assert len(best) == 1 and best[0].startswith(words.decode([20, 30]))


def test_dropout_is_off_while_sampling_and_the_mode_is_kept(words):
    model = cases.model(LIBRARY, "gpt2", liking=1.0)
    greedy = sampler(model, words).generate([20, 30], do_sample=False)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    for beams in (1, 2):  # the engine, and the model's own generate
        more = {"num_beams": beams, "do_sample": False}
        first = sampler(model, words).generate([20, 30], **more)
        assert first == sampler(model, words).generate([20, 30], **more)
        assert beams > 1 or first == greedy
        assert model.training and model.pretrained_model.transformer.drop.training


def test_padding_in_a_query_is_masked(gpt2, words):
    bare = sampler(gpt2, words).generate([[20, 30]], do_sample=False, pad_token_id=cases.PAD)
    given = {"do_sample": False, "pad_token_id": cases.PAD}
    assert sampler(gpt2, words).generate([[cases.PAD, cases.PAD, 20, 30]], **given) == bare


def test_an_encoder_decoder_gives_its_answer_alone(words):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(words),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        pad_token_id=cases.PAD,
        eos_token_id=cases.EOS,
        decoder_start_token_id=cases.PAD,
    )
    inner = transformers.T5ForConditionalGeneration(config).eval()
    model = fastrl.AutoModelForSeq2SeqLMWithValueHead.from_pretrained(inner)
    (best,) = sampler(model, words, sample_size=2).generate([40, 41, 42], do_sample=False)
    own = inner.generate(torch.tensor([[40, 41, 42]]), do_sample=False, max_new_tokens=6)
    assert best == words.batch_decode(own, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "gpt2"}, "model must be a value-head model, got str"),
        ({"tokenizer": 3}, "tokenizer must be a tokenizer, got int"),
        ({"scores": [1.0]}, "queries_to_scores must be callable, got list"),
        ({"length": 6}, "length_sampler must be callable, got int"),
        ({"sample_size": 0}, "sample_size must be a whole number of at least 1, got 0"),
        ({"n_candidates": 5}, "n_candidates=5 is more than sample_size=4"),
        ({"n_candidates": True}, "n_candidates must be a whole number"),
    ],
)
def test_arguments_that_are_refused(gpt2, words, given, message):
    with pytest.raises(ValueError, match=message):
        sampler(**{"model": gpt2, "tokenizer": words, **given})


def test_a_bare_model_is_refused_with_the_mend(gpt2, words):
    with pytest.raises(ValueError, match=r"AutoModelForCausalLMWithValueHead\.from_pretrained"):
        sampler(gpt2.pretrained_model, words)


@pytest.mark.parametrize(
    ("query", "more", "message"),
    [
        ([], {}, "tokenized_query must be"),
        ("text", {}, "tokenized_query must be"),
        (torch.ones(2, 3, dtype=torch.int64), {}, r"of shape \(2, 3\).*list\(tokenized_query\)"),
        ([torch.tensor([0.5])], {}, r"tokenized_query\[0\] must hold token ids"),
        ([[3], []], {}, r"prompts\[1\] is empty"),
        ([3, 105], {}, "token 105, outside the model's vocabulary"),
        ([3], {"device": "cuda:0"}, "but the model is on cpu"),
        ([3], {"max_new_tokens": 3}, "max_new_tokens is what length_sampler gives"),
    ],
)
def test_queries_that_are_refused(gpt2, words, query, more, message):
    with pytest.raises(ValueError, match=message):
        sampler(gpt2, words).generate(query, **more)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0, 2.0], r"shape \(2,\) to 4 texts"), ([1.0, 2.0, 3.0, float("nan")], "gave NaN")],
)
def test_scores_that_are_refused(gpt2, words, scores, message):
    with pytest.raises(ValueError, match=message):
        sampler(gpt2, words, lambda texts: scores).generate([3], do_sample=False)


def test_scores_may_be_tensors(gpt2, words):
    made = sampler(gpt2, words, lambda texts: [torch.tensor(float(i)) for i in range(4)])
    assert len(made.generate([3], do_sample=False, device="cpu")) == 1
    assert len(sampler(gpt2, words, lambda texts: torch.arange(4)).generate([3])) == 1
