"""`fastrl.rollout.generate` against `model.generate`, re-scoring and exact distributions."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from fastrl.models import logprobs
from fastrl.rollout import generate, stops
from fastrl.types import Tokens

SERVED = ("qwen2", "llama", "gpt2", "mistral", "gemma3", "granite", "opt", "mixtral")
TIE = 1e-4  # two best logits closer than this may be taken in either order


def rescored(model, rollout, temperature=1.0):
    """Per answer the log-probabilities that the trainers' own pass gives."""
    found = []
    for answer in rollout.completions:
        ids = torch.tensor([[*rollout.prompt_ids, *answer.token_ids]])
        first = len(rollout.prompt_ids)
        tokens = Tokens(ids, [0], [ids.shape[1]], [first])
        with torch.no_grad():
            found.append(logprobs(model, tokens, temperature).logp[0, first - 1 :])
    return found


@pytest.mark.parametrize("family", SERVED)
def test_greedy_is_that_of_transformers(tiny, tokenizer, prompts, family):
    model = tiny(family)
    peer = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the engine must serve these
        got = generate(
            model,
            tokenizer,
            prompts,
            num_return_sequences=2,
            temperature=0,
            max_new_tokens=24,
            max_rows=5,
        )
    ties = 0
    for prompt, rollout in zip(prompts, got, strict=True):
        want = peer.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for answer in rollout.completions:
            ids = list(answer.token_ids)
            if ids != want:
                part = next(
                    i for i, pair in enumerate(zip(ids, want, strict=False)) if len({*pair}) > 1
                )
                logits = peer(torch.tensor([prompt + want[:part]])).logits[0, -1]
                best = logits.topk(2).values
                assert best[0] - best[1] < TIE, (prompt, ids, want)
                ties += 1
            ended = ids[-1] == 2
            assert answer.finish == ("eos" if ended else "length")
            assert ended or len(ids) == 24
            assert answer.logp == (0.0,) * len(ids)
    print(f"{family}: {ties} ties")
    for rollout in got:
        for answer, want in zip(rollout.completions, rescored(model, rollout), strict=True):
            torch.testing.assert_close(torch.tensor(answer.logp_full), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "mistral"])
def test_logp_full_is_what_rescoring_gives(tiny, tokenizer, prompts, family):
    model = tiny(family)
    settings = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.3}
    got = generate(
        model, tokenizer, prompts, num_return_sequences=3, max_new_tokens=12, seed=5, **settings
    )
    for rollout in got:
        for answer, want in zip(rollout.completions, rescored(model, rollout, 0.7), strict=True):
            torch.testing.assert_close(torch.tensor(answer.logp_full), want, atol=1e-4, rtol=0)


def test_an_answer_depends_on_prompt_and_seed_alone(tiny, tokenizer, prompts):
    model = tiny()
    seeds = [11, 22, 33, 44, 55]
    settings = {"num_return_sequences": 3, "max_new_tokens": 30, "top_p": 0.9}
    full = generate(model, tokenizer, prompts, seed=seeds, **settings)
    ids = [[answer.token_ids for answer in rollout.completions] for rollout in full]
    assert len({row for rows in ids for row in rows}) == 15
    order = [3, 0, 4]
    some = generate(
        model,
        tokenizer,
        [prompts[i] for i in order],
        seed=[seeds[i] for i in order],
        max_rows=2,
        **settings,
    )
    assert [[a.token_ids for a in rollout.completions] for rollout in some] == [
        ids[i] for i in order
    ]
    more = generate(
        model, tokenizer, prompts, seed=seeds, **{**settings, "num_return_sequences": 5}
    )
    assert [[a.token_ids for a in rollout.completions[:3]] for rollout in more] == ids


def exact(model, prompt, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """(V,) probabilities of the first token, filtered in transformers' order."""
    logits = model(torch.tensor([prompt])).logits[0, -1].double()
    seen = torch.tensor(sorted(set(prompt)))
    picked = logits[seen]
    logits[seen] = torch.where(picked < 0, picked * repetition_penalty, picked / repetition_penalty)
    logits = logits / temperature
    if top_k:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    ranked = logits.softmax(-1).sort(descending=True)
    outside = ranked.values.cumsum(0) - ranked.values >= top_p
    logits[ranked.indices[outside]] = -torch.inf
    p = logits.softmax(-1)
    p[p < min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.5},
        {"top_k": 7},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"repetition_penalty": 2.0},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_exact_distribution(tiny, tokenizer, settings):
    model = tiny(std=0.12)
    prompt = [5, 9, 9, 30, 41, 60, 61, 62]
    count = 6000
    (rollout,) = generate(
        model,
        tokenizer,
        [prompt],
        num_return_sequences=count,
        max_new_tokens=1,
        seed=3,
        max_rows=count,
        eos_token_id=-1,
        **settings,
    )
    p = exact(model, prompt, **settings).detach()
    drawn = torch.tensor([answer.token_ids[0] for answer in rollout.completions])
    seen = drawn.bincount(minlength=len(p)).double()
    assert seen[p == 0].sum() == 0
    expected = p * count
    often = expected >= 5
    classes = [*zip(seen[often], expected[often], strict=True)]
    if (rest := expected[~often].sum()) > 0:
        classes.append((seen[~often].sum(), rest))
    statistic = sum((a - b) ** 2 / b for a, b in classes)
    # the chi-square survival function
    assert torch.special.gammaincc(torch.tensor((len(classes) - 1) / 2), statistic / 2) > 1e-4
    logp = torch.tensor([answer.logp[0] for answer in rollout.completions]).double()
    torch.testing.assert_close(logp, p[drawn].log(), atol=1e-4, rtol=0)


def test_each_token_of_an_answer_has_noise_of_its_own(tiny, tokenizer):
    model = tiny(std=0.01)  # nearly uniform, so that the noise decides
    (rollout,) = generate(
        model,
        tokenizer,
        [[5]],
        num_return_sequences=1500,
        max_new_tokens=3,
        seed=1,
        max_rows=1500,
        eos_token_id=-1,
    )
    drawn = torch.tensor([answer.token_ids for answer in rollout.completions])
    for one, other in ((0, 1), (1, 2), (0, 2)):
        same = (drawn[:, one] == drawn[:, other]).sum().item()
        assert abs(same - 1500 / 97) < 20  # 5 standard deviations
    uniform = drawn.flatten().bincount(minlength=97).double()
    statistic = ((uniform - 4500 / 97) ** 2 / (4500 / 97)).sum()
    assert torch.special.gammaincc(torch.tensor(48.0), statistic / 2) > 1e-4


def test_stop_strings_and_several_ends(tiny, tokenizer, prompts):
    model = tiny()
    (free,) = generate(
        model, tokenizer, prompts[:1], temperature=0, max_new_tokens=40, eos_token_id=-1
    )
    (answer,) = free.completions
    assert (len(answer.token_ids), answer.finish) == (40, "length")
    text = answer.text
    stop = text[6:9]
    ends = text.index(stop) + 3
    (stopped,) = generate(
        model,
        tokenizer,
        prompts[:1],
        temperature=0,
        max_new_tokens=40,
        eos_token_id=-1,
        stop=["never", stop],
    )
    (answer,) = stopped.completions
    assert (answer.text, answer.finish) == (text[:ends], "stop")
    ids = free.completions[0].token_ids
    several = [ids[12], ids[8], 96]
    (ended,) = generate(
        model, tokenizer, prompts[:1], temperature=0, max_new_tokens=40, eos_token_id=several
    )
    (answer,) = ended.completions
    first = min(ids.index(i) for i in several if i in ids)
    assert (answer.token_ids, answer.finish) == (ids[: first + 1], "eos")


def test_what_the_models_own_config_says_is_honoured(tiny, tokenizer, prompts):
    model = tiny()
    (free,) = generate(
        model, tokenizer, prompts[:1], temperature=0, max_new_tokens=20, eos_token_id=-1
    )
    ids = free.completions[0].token_ids
    model.generation_config.eos_token_id = [95, ids[5]]
    model.generation_config.max_new_tokens = 20
    model.generation_config.top_k = 1
    (got,) = generate(model, tokenizer, prompts[:1])
    assert got.completions[0].token_ids == ids[: ids.index(ids[5]) + 1]
    assert got.completions[0].logp == (0.0,) * len(got.completions[0].token_ids)
    (wide,) = generate(model, tokenizer, prompts[:1], top_k=0, seed=1, num_return_sequences=8)
    assert any(answer.token_ids != got.completions[0].token_ids for answer in wide.completions)


def test_seeds_without_one_come_from_torch(tiny, tokenizer, prompts):
    model = tiny()

    def ids(**settings):
        got = generate(model, tokenizer, prompts, max_new_tokens=8, **settings)
        return [rollout.completions[0].token_ids for rollout in got]

    torch.manual_seed(7)
    first, second = ids(), ids()
    torch.manual_seed(7)
    assert ids() == first != second
    before = torch.get_rng_state()
    assert ids(seed=4) == ids(seed=4) != ids(seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_texts_and_conversations(tiny, tokenizer):
    model = tiny()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    asked = ["abc:", [{"role": "user", "content": "abc"}], tokenizer("abc:")["input_ids"]]
    got = generate(model, tokenizer, asked, max_new_tokens=6, seed=[1, 1, 1])
    assert got[0] == got[1] == got[2]
    answer = got[0].completions[0]
    spelt = [i for i in answer.token_ids if i > 2]
    assert answer.text == "".join(chr(30 + i) for i in spelt)


def test_what_is_refused(tiny, tokenizer, prompts):
    model = tiny()
    for wrong, message in [
        ([], "prompts is empty"),
        ([[5], []], r"prompts\[1\] is empty"),
        ([[5] * 128], r"prompts\[0\] has 128 tokens, and the model has 128 positions"),
        ([[5], [5, 97]], r"prompts\[1\] holds token 97, outside the model's vocabulary of 97"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(model, tokenizer, wrong, max_new_tokens=4)
    for settings, message in [
        ({}, "max_new_tokens is given neither here nor"),
        ({"max_new_tokens": 4, "seed": [1, 2]}, "seed has 2 entries for 5 prompts"),
        ({"max_new_tokens": 4, "num_return_sequences": 0}, "num_return_sequences must be at"),
        ({"max_new_tokens": 4, "repetition_penalty": -1.0}, "repetition_penalty|penalty"),
        ({"max_new_tokens": 4, "stop": [""]}, "stop strings must be non-empty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(model, tokenizer, prompts, **settings)


def test_without_an_end_of_sequence_every_answer_runs_on(tiny, tokenizer, prompts):
    model = tiny()
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.warns(UserWarning, match="neither tokenizer nor model names an end"):
        got = generate(model, tokenizer, prompts, max_new_tokens=9)
    assert {len(rollout.completions[0].token_ids) for rollout in got} == {9}


def test_a_table_of_positions_ends_answers(tiny, tokenizer):
    model = tiny("gpt2")
    with pytest.warns(UserWarning, match="an answer ends where the model's 128 positions do"):
        (got,) = generate(model, tokenizer, [[5] * 120], max_new_tokens=50, eos_token_id=-1)
    assert (len(got.completions[0].token_ids), got.completions[0].finish) == (8, "length")


def test_an_answer_has_the_same_bits_in_any_company(tiny, tokenizer, prompts):
    model = tiny()
    settings = {"num_return_sequences": 12, "max_new_tokens": 20, "seed": [7]}
    together = generate(model, tokenizer, prompts[:1], **settings)
    for rows in (1, 5, 7):
        assert generate(model, tokenizer, prompts[:1], max_rows=rows, **settings) == together


def test_linear_layers_are_theirs_again_after_a_rollout(tiny, tokenizer, prompts, monkeypatch):
    model = tiny()
    inside = []

    def ends(self, ids):
        inside.append([name for name, one in model.named_modules() if "forward" in vars(one)])
        raise RuntimeError("a tokenizer that fails")

    monkeypatch.setattr(stops.StopStrings, "__call__", ends)
    with pytest.raises(RuntimeError, match="a tokenizer that fails"):
        generate(model, tokenizer, prompts, max_new_tokens=4, stop="x")
    linears = {n for n, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    assert linears <= set(inside[0])
    assert not any("forward" in vars(one) for n, one in model.named_modules() if n in linears)
