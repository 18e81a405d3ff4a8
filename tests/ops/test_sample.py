"""sample: known answers of the generator, exact distributions, transformers' filters, edges."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastrl import ops
from fastrl.ops import use_backend
from fastrl.ops._dispatch import backend_missing
from fastrl.ops.sample import philox

OPTIONS = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_k": 150},
    {"top_p": 0.9},
    {"top_p": 0.3, "top_k": 50},
    {"top_p": 0.999999},
    {"top_p": 0.0},
    {"min_p": 0.1},
    {"top_p": 0.95, "min_p": 0.05, "top_k": 100, "temperature": 1.3},
]


def words(values):
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    "counter, key, expected",
    [  # kat_vectors of Random123 1.14, philox4x32 10
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert [int(word) for word in philox(words(counter), words(key))] == expected


def test_noise_is_the_documented_function_of_seed_and_step():
    # Key 0 and counter 0 are seed 0, step 0, tokens 0 to 3: the first known answer above.
    noise = ops.gumbel_noise(torch.tensor([0]), 0, 4)[0].double()
    word = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], dtype=torch.float64)
    expected = -torch.log(-torch.log1p(-(word + 0.5) / 2**32))
    torch.testing.assert_close(noise, expected, rtol=1e-6, atol=1e-6)


def test_noise_has_the_same_bits_on_every_instruction_set(instruction_set):
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randint(-(2**63), 2**63 - 1, (9,), generator=generator)
    steps = torch.randint(0, 2**40, (9,), generator=generator)
    for vocabulary in (1, 3, 64, 65, 1003):
        with use_backend("reference"):
            expected = ops.gumbel_noise(seeds, steps, vocabulary)
        with use_backend("cpp"):
            assert torch.equal(ops.gumbel_noise(seeds, steps, vocabulary), expected)


def test_noise_is_gumbel_distributed(backend):
    """Kolmogorov-Smirnov: sqrt(n) D > 1.95 has probability 0.001."""
    noise = ops.gumbel_noise(torch.arange(50), 3, 4000).flatten().double().sort().values
    n = len(noise)
    ideal = torch.exp(-torch.exp(-noise))
    rank = torch.arange(n, dtype=torch.float64)
    distance = torch.maximum(ideal - rank / n, (rank + 1) / n - ideal).max()
    assert float(distance) * math.sqrt(n) < 1.95


def assert_frequencies(tokens, probabilities):
    """Pearson's chi-square below mean + 4.5 standard deviations; nothing drawn where p = 0."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * len(tokens)
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    freedom = int(possible.sum()) - 1
    assert statistic < freedom + 4.5 * math.sqrt(2 * freedom), (statistic, freedom)


LOGITS = torch.tensor([0.5, -1.0, 2.0, -math.inf, 1.9, 0.0, -3.0, 1.0])
P = LOGITS.double().softmax(0)


@pytest.mark.parametrize("along", ["seeds", "steps"])
def test_draws_have_the_exact_probabilities(backend, along):
    count = 40_000
    many, one = torch.arange(count), torch.full((count,), 7)
    seeds, steps = (many, one) if along == "seeds" else (one, many)
    tokens, logp, logp_full = ops.sample(LOGITS.expand(count, -1), seeds, steps)
    assert_frequencies(tokens, P)
    torch.testing.assert_close(logp.double(), P.log()[tokens], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logp, logp_full)


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"top_k": 3}, [2, 4, 7]),
        ({"top_p": 0.5}, [2, 4]),  # p[2] = 0.37 < 0.5 <= p[2] + p[4]
        ({"min_p": 0.3}, [2, 4, 7]),  # e^-1 >= 0.3 > e^-1.5
        ({"top_k": 4, "top_p": 0.95, "min_p": 0.3}, [2, 4, 7]),
    ],
)
def test_filtered_draws_have_the_renormalised_probabilities(backend, options, kept):
    count = 40_000
    logits = LOGITS.expand(count, -1)
    tokens, logp, logp_full = ops.sample(logits, torch.arange(count), 0, **options)
    share = torch.zeros_like(P)
    share[kept] = P[kept] / P[kept].sum()
    assert_frequencies(tokens, share)
    torch.testing.assert_close(logp.double(), share.log()[tokens], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logp_full.double(), P.log()[tokens], rtol=1e-6, atol=1e-6)


def test_a_large_flat_vocabulary_is_drawn_evenly():
    """Noise of too few bits would favour low ids here: with 24 bits about 1 in 100 maxima tie."""
    count, vocabulary = 3000, 40_000
    seeds = torch.arange(100)
    logits = torch.zeros(100, vocabulary)
    with use_backend("cpp" if backend_missing("cpp") is None else None):
        draws = [ops.sample(logits, seeds, step)[0] for step in range(count // 100)]
    tokens = torch.cat(draws)
    assert_frequencies(tokens // 4000, torch.full((10,), 0.1, dtype=torch.float64))


def warped(logits, options):
    scores = logits.float()
    if options.get("temperature", 1.0) != 1.0:
        scores = TemperatureLogitsWarper(options["temperature"])(None, scores)
    if options.get("top_k"):
        scores = TopKLogitsWarper(options["top_k"])(None, scores)
    if options.get("top_p", 1.0) < 1.0:
        scores = TopPLogitsWarper(options["top_p"])(None, scores)
    if options.get("min_p"):
        scores = MinPLogitsWarper(options["min_p"])(None, scores)
    return scores


@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("temperature") != 0.0])
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_keeps_what_transformers_keeps(backend, options, spread):
    """logp names the size of the kept set's mass, so one token too many or few would show."""
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(3)) * spread
    tokens, logp, logp_full = ops.sample(logits, torch.arange(64), 5, **options)
    theirs = warped(logits, options).double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logp.double(), theirs, rtol=1e-5, atol=2e-6)
    full = (logits.double() / options.get("temperature", 1.0)).log_softmax(-1)
    torch.testing.assert_close(
        logp_full.double(), full.gather(1, tokens[:, None])[:, 0], rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_cpp_draws_the_reference_tokens(instruction_set, options):
    generator = torch.Generator().manual_seed(4)
    seeds = torch.randint(-(2**62), 2**62, (24,), generator=generator)
    for vocabulary, dtype in [
        (1, torch.float32),
        (63, torch.float16),
        (64, torch.float32),
        (513, torch.bfloat16),
        (5001, torch.float32),
    ]:
        for spread in (0.0, 4.0):
            logits = (torch.randn(24, vocabulary, generator=generator) * spread).to(dtype)
            with use_backend("reference"):
                expected = ops.sample(logits, seeds, 11, **options)
            with use_backend("cpp"):
                actual = ops.sample(logits, seeds, 11, **options)
            assert torch.equal(actual[0], expected[0])
            torch.testing.assert_close(actual[1:], expected[1:], rtol=2e-6, atol=2e-6)


def test_equal_logits_are_kept_or_dropped_together(backend):
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]).expand(500, -1)
    seeds = torch.arange(500)
    p = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]).softmax(0)  # 0.46 0.17 0.17 0.17 0.03
    for options in ({"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.3}):
        tokens, logp, _ = ops.sample(logits, seeds, 0, **options)
        assert sorted(set(tokens.tolist())) == [0, 1, 2, 3]
        torch.testing.assert_close(logp, (p[:4] / p[:4].sum()).log()[tokens])
    tokens, logp, _ = ops.sample(logits[:, 1:4], seeds, 0, top_k=1)
    assert set(tokens.tolist()) == {0, 1, 2}
    torch.testing.assert_close(logp, torch.full_like(logp, -math.log(3)))


def test_temperature_zero_takes_the_first_largest(backend):
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, -math.inf, 0.0]])
    tokens, logp, logp_full = ops.sample(
        logits, torch.tensor([5, 6]), 0, temperature=0.0, top_k=1, top_p=0.1
    )
    assert tokens.tolist() == [1, 0]
    assert logp.tolist() == [0.0, 0.0]
    torch.testing.assert_close(logp_full, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])


def test_probability_near_one_keeps_its_digits(backend):
    tokens, logp, logp_full = ops.sample(torch.tensor([[0.0, -20.0]]), torch.tensor([1]), 0)
    assert tokens.tolist() == [0]
    exact = torch.tensor([-math.log1p(math.exp(-20.0))])
    torch.testing.assert_close(logp, exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(logp_full, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.9}, {"temperature": 1e-30}])
def test_extreme_rows(backend, options):
    infinity = math.inf
    logits = torch.tensor(
        [
            [3e4, -3e4, 0.0, -3e4],
            [-infinity, -infinity, -5.0, -infinity],
            [-3e4, -3.1e4, -infinity, -3.2e4],
            [-3e38, 3e38, -3e38, 0.0],
        ]
    )
    tokens, logp, logp_full = ops.sample(logits, torch.arange(4), 9, **options)
    assert tokens.tolist() == [0, 2, 0, 1]
    assert logp.tolist() == logp_full.tolist() == [0.0] * 4


def test_forbidden_tokens_stay_forbidden_when_k_reaches_past_them(backend):
    logits = torch.full((300, 9), -math.inf)
    logits[:, 4:6] = 0.0
    tokens, logp, _ = ops.sample(logits, torch.arange(300), 0, top_k=7, top_p=0.9999)
    assert set(tokens.tolist()) == {4, 5}
    torch.testing.assert_close(logp, torch.full((300,), -math.log(2)))


def test_one_token_and_no_rows(backend):
    tokens, logp, logp_full = ops.sample(torch.tensor([[-7.0]]), torch.tensor([3]), 0, top_p=0.5)
    assert (tokens.tolist(), logp.tolist(), logp_full.tolist()) == ([0], [0.0], [0.0])
    for result in ops.sample(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 0):
        assert result.shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_rows_are_named(backend, bad):
    logits = torch.zeros(4, 200)
    logits[2, 150] = bad
    logits[3, 1] = bad
    with pytest.raises(ValueError, match="row 2"):
        ops.sample(logits, torch.arange(4), 0)
    logits[1] = -math.inf
    with pytest.raises(ValueError, match="row 1"):
        ops.sample(logits, torch.arange(4), 0, temperature=0.0)


def test_step_is_a_number_or_one_a_row(backend):
    logits = torch.zeros(3, 1000)
    seeds = torch.tensor([1, 1, 1])
    same = ops.sample(logits, seeds, 2**33 + 1)[0]
    assert len(set(same.tolist())) == 1
    each = ops.sample(logits, seeds, torch.tensor([2**33 + 1, 1, 2**33]))[0]
    assert each[0] == same[0]
    assert len(set(each.tolist())) == 3


def test_layout_dtype_and_threads_do_not_matter(backend):
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(5))
    seeds = torch.arange(6)
    expected = ops.sample(logits, seeds, 1)
    for same in (logits.double(), logits.T.contiguous().T, logits.clone().requires_grad_()):
        actual = ops.sample(same, seeds, 1)
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])
        assert not actual[1].requires_grad
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    single = ops.sample(logits.repeat(100, 1), seeds.repeat(100), 1)
    torch.set_num_threads(before)
    assert torch.equal(single[0], expected[0].repeat(100))


def test_the_registered_operation_is_sound():
    arguments = (torch.randn(3, 50), torch.arange(3), torch.arange(3), 1.0, 5, 0.9, 0.0)
    torch.library.opcheck(torch.ops.fastrl.sample.default, arguments)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "logits"),
        ({"logits": torch.zeros(3)}, ValueError, "logits"),
        ({"logits": torch.zeros(2, 0)}, ValueError, "logits"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, ValueError, "seeds"),
        ({"seeds": torch.zeros(2)}, TypeError, "seeds"),
        ({"seeds": 5}, TypeError, "seeds"),
        ({"step": torch.zeros(1, dtype=torch.int64)}, ValueError, "step"),
        ({"step": 1.5}, TypeError, "step"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"temperature": math.inf}, ValueError, "temperature"),
        ({"top_k": -1}, ValueError, "top_k"),
        ({"top_k": 2.0}, TypeError, "top_k"),
        ({"top_p": 1.5}, ValueError, "top_p"),
        ({"top_p": math.nan}, ValueError, "top_p"),
        ({"min_p": -0.1}, ValueError, "min_p"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"logits": torch.zeros(2, 3), "seeds": torch.arange(2), "step": 0, **change}
    with pytest.raises(error, match=message):
        ops.sample(**arguments)
