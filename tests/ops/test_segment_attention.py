"""segment_attention: one dense masked softmax, by hand, gradients, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl.ops import _native, use_backend
from fastrl.ops.segment_attention import Segments, segment_attention

# lengths, after, asking, heads, key heads, width, window
CASES = {
    "small": ((7, 1, 12, 4), (-1, -1, -1, -1), None, 4, 2, 8, None),
    "shared": ((7, 1, 12, 4), (-1, 0, 0, -1), None, 4, 4, 8, None),
    "window over a shared part": ((7, 1, 12, 4), (-1, 0, 0, -1), None, 4, 1, 8, 3),
    "last tokens ask": ((7, 1, 12, 4), (-1, 0, 0, -1), (0, 1, 5, 2), 4, 2, 8, None),
    "asking in a window": ((20, 9, 70), (-1, 0, 0), (1, 9, 40), 2, 1, 16, 6),
    "many blocks": ((130, 70, 200, 1), (-1, 0, 0, -1), None, 4, 2, 64, None),
    "window of some blocks": ((130, 170), (-1, 0), None, 3, 1, 20, 90),
    "odd width": ((65, 49, 48), (-1, -1, 1), None, 3, 3, 13, 17),
    "a group": ((90, 40, 33, 96, 5), (-1, 0, 0, 0, 0), (0, 40, 33, 50, 1), 6, 2, 32, None),
    "what is continued comes behind": ((9, 30, 66), (1, -1, 1), None, 2, 2, 8, None),
}
Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(case: tuple, dtype: torch.dtype) -> tuple[Three, Segments, torch.Tensor]:
    """Query, key and value laid out as models give them; segments; a gradient of the output."""
    lengths, after, asking, heads, key_heads, width, _ = case
    segments = Segments(lengths, after, asking)
    generator = torch.Generator().manual_seed(0)

    def made(tokens: int, count: int) -> torch.Tensor:
        return torch.randn(1, tokens, count, width, generator=generator).to(dtype)

    queries, tokens = sum(segments.query_lengths), sum(lengths)
    given = (made(queries, heads), made(tokens, key_heads), made(tokens, key_heads))
    upstream = made(queries, heads)
    return tuple(one.transpose(1, 2).requires_grad_() for one in given), segments, upstream


def dense(query, key, value, case, scaling=None):
    """Every pair of tokens asked whether it is seen; fp64; (1, N, H, Dh)."""
    lengths, after, asking, heads, key_heads, width, window = case
    asking = lengths if asking is None else asking
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    seen = torch.zeros(sum(asking), sum(lengths), dtype=torch.bool)
    row = 0
    for segment, (length, other, count) in enumerate(zip(lengths, after, asking, strict=True)):
        before = [] if other < 0 else list(range(starts[other], starts[other] + lengths[other]))
        for t in range(length - count, length):
            keys = before + list(range(starts[segment], starts[segment] + t + 1))
            seen[row, keys if window is None else keys[-window:]] = True
            row += 1
    q, k, v = (one.double() for one in (query, key, value))
    k, v = (one.repeat_interleave(heads // key_heads, dim=1) for one in (k, v))
    scores = q @ k.mT * (width**-0.5 if scaling is None else scaling)
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)


def agree(case, dtype, close, scaling=None):
    """Output and gradients are those of `dense`."""
    given, segments, upstream = inputs(case, dtype)
    got = segment_attention(*given, segments, scaling, window=case[-1])
    want = dense(*given, case, scaling)
    assert got.dtype == dtype
    assert got.shape == upstream.shape
    mine = torch.autograd.grad(got, given, upstream)
    theirs = torch.autograd.grad(want, given, upstream.double())
    for one, other in zip((got, *mine), (want, *theirs), strict=True):
        close(one, other.to(one.dtype), dtype)


@pytest.mark.parametrize("name", CASES)
def test_equals_a_dense_mask(backend, name, close):
    agree(CASES[name], torch.float32, close)


@pytest.mark.parametrize("name", ["shared", "many blocks", "odd width"])
def test_every_instruction_set(instruction_set, name, close):
    with use_backend("cpp"):
        agree(CASES[name], torch.float32, close, scaling=0.2)


@pytest.mark.parametrize("name", ["shared", "window of some blocks"])
def test_double_precision(name, close):
    agree(CASES[name], torch.float64, close)


def test_half_precision_is_rounded_once_or_twice():
    case = CASES["many blocks"]
    given, segments, _ = inputs(case, torch.bfloat16)
    got = segment_attention(*given, segments)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), dense(*given, case), rtol=2e-2, atol=2e-2)


def test_by_hand(backend):
    # Scores of the last query: ln 1, ln 2 from the segment before, ln 3 and ln 6 of its own.
    logs = torch.tensor([1.0, 2.0, 3.0, 6.0]).log()
    key = logs.view(1, 1, 4, 1)
    value = torch.tensor([12.0, 24.0, 36.0, 48.0]).view(1, 1, 4, 1)
    got = segment_attention(torch.ones(1, 1, 4, 1), key, value, Segments((2, 2), (-1, 0)))
    want = [12.0, (12 + 48) / 3, (12 + 48 + 108) / 6, (12 + 48 + 108 + 288) / 12]
    torch.testing.assert_close(got.flatten(), torch.tensor(want))


def test_the_number_of_threads_changes_no_bit(cpp):
    given, segments, upstream = inputs(CASES["a group"], torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        got = segment_attention(*given, segments)
        found.append((got, *torch.autograd.grad(got, given, upstream)))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_nothing_crosses_into_another_segment(backend):
    given, segments, _ = inputs(CASES["small"], torch.float32)
    first = segment_attention(*given, segments)[:, :7].sum()
    for gradient in torch.autograd.grad(first, given):
        assert gradient[:, :, 7:].abs().max() == 0
        assert gradient[:, :, :7].abs().max() > 0


@pytest.mark.parametrize("big", [300.0, -300.0])
def test_large_scores_neither_overflow_nor_vanish(backend, big):
    query = torch.full((1, 1, 80, 8), big)
    key = torch.linspace(-1, 1, 80).view(1, 1, 80, 1).expand(1, 1, 80, 8).contiguous()
    value = torch.arange(80.0).view(1, 1, 80, 1).expand(1, 1, 80, 8).contiguous()
    got = segment_attention(query, key, value, Segments((80,), (-1,)), 1.0)[0, :, 0, 0]
    want = torch.arange(80.0) if big > 0 else torch.zeros(80)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("lengths", [(), (1,), (1, 1)])
def test_no_tokens_and_one(backend, lengths):
    tokens = sum(lengths)
    given = [torch.randn(1, 2, tokens, 4, requires_grad=True) for _ in range(3)]
    got = segment_attention(*given, Segments(lengths, (-1,) * len(lengths)))
    assert torch.equal(got, given[2].transpose(1, 2))  # each sees itself alone
    if tokens:
        (gradient,) = torch.autograd.grad(got.sum(), given[2])
        assert torch.equal(gradient, torch.ones_like(gradient))


def test_no_query_at_all(backend):
    given, _, _ = inputs(CASES["small"], torch.float32)
    query = given[0][:, :, :0]
    got = segment_attention(query, *given[1:], Segments((7, 1, 12, 4), (-1,) * 4, (0,) * 4))
    assert got.shape == (1, 0, 4, 8)


def test_strides_of_any_kind(backend, close):
    case = CASES["shared"]
    given, segments, _ = inputs(case, torch.float32)
    want = segment_attention(*given, segments)
    spread = [torch.stack([one, one], dim=-1)[..., 0] for one in given]  # last stride 2
    close(segment_attention(*spread, segments), want)
    joined = torch.cat([one.transpose(1, 2) for one in given], dim=2)  # as of one projection
    parts = [one.transpose(1, 2) for one in joined.split(4, dim=2)]
    close(segment_attention(*parts, segments), want)


def test_a_nan_stays_in_its_row(cpp):
    given, segments, _ = inputs(CASES["small"], torch.float32)
    query = given[0].detach().clone()
    query[0, 1, 3] = math.nan
    got = segment_attention(query, *given[1:], segments)
    bad = got.isnan().any(-1)[0]
    assert bad.nonzero().tolist() == [[3, 1]]


def test_dropout_leaves_weights_out():
    given, segments, _ = inputs(CASES["many blocks"], torch.float32)
    torch.manual_seed(1)
    kept = segment_attention(*given, segments, dropout=0.5)
    torch.manual_seed(1)
    again = segment_attention(*given, segments, dropout=0.5)
    assert torch.equal(kept, again)
    assert not torch.allclose(kept, segment_attention(*given, segments))


def test_a_second_derivative_is_refused(cpp):
    given, segments, _ = inputs(CASES["small"], torch.float32)
    total = segment_attention(*given, segments).sum()
    gradient = torch.autograd.grad(total, given, create_graph=True)[2]
    with pytest.raises(RuntimeError, match="segment_attention has no second derivative"):
        gradient.sum().backward()


def test_keys_are_not_written_out(cpp, monkeypatch):
    given, segments, _ = inputs(CASES["a group"], torch.float32)
    monkeypatch.setattr(Segments, "keys", None)
    segment_attention(*given, segments).sum().backward()
    assert _native.missing("cpu") is None


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"query": torch.zeros(1, 2, 5, 4, dtype=torch.int64)}, TypeError, "query"),
        ({"query": torch.zeros(2, 5, 4)}, ValueError, "query"),
        ({"query": torch.zeros(1, 3, 5, 4)}, ValueError, "Hkv dividing 3"),
        ({"query": torch.zeros(1, 2, 4, 4)}, ValueError, "5 queries and 5 keys, got 4 and 5"),
        ({"key": torch.zeros(1, 2, 5, 3)}, ValueError, "key and value"),
        ({"value": torch.zeros(2, 2, 5, 4)}, ValueError, "value"),
        ({"segments": Segments((5, 1), (-1, -1))}, ValueError, "6 queries and 6 keys"),
        ({"segments": Segments((3, 2), (-1, 2))}, ValueError, "after"),
        ({"segments": Segments((3, 1, 1), (-1, 0, 1))}, ValueError, "after"),
        ({"segments": Segments((3, 2), (-1, -1), (3, 3))}, ValueError, "asking"),
        ({"scaling": 0.0}, ValueError, "scaling"),
        ({"scaling": math.nan}, ValueError, "scaling"),
        ({"dropout": 1.5}, ValueError, "dropout"),
        ({"window": 0}, ValueError, "window"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {
        "query": torch.zeros(1, 2, 5, 4),
        "key": torch.zeros(1, 2, 5, 4),
        "value": torch.zeros(1, 2, 5, 4),
        "segments": Segments((3, 2), (-1, -1)),
        **change,
    }
    with pytest.raises(error, match=message):
        segment_attention(**arguments)
