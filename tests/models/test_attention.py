"""Packed attention against one dense masked softmax, and the adapter to torch's fused kernel."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import torch

from fastrl.models import attention, varlen
from fastrl.models.attention import PackingRefused, Segments, attend_segments

LENGTHS = [7, 1, 12, 4]


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: list[int],
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """One (N, N) mask for everything; (1, N, H, Dh)."""
    groups = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(segment))
    back = place[:, None] - place[None]
    seen = (segment[:, None] == segment[None]) & (back >= 0)
    if window is not None:
        seen &= back < window
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)


def heads(key_heads: int = 4) -> list[torch.Tensor]:
    """Queries, keys and values laid out as models give them: (1, H, N, Dh) views."""
    made = []
    for count in (4, key_heads, key_heads):
        tensor = torch.randn(1, sum(LENGTHS), count, 8, dtype=torch.float64)
        made.append(tensor.transpose(1, 2).requires_grad_())
    return made


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_segments_equal_a_dense_mask(
    key_heads: int, window: int | None, scaling: float | None
) -> None:
    inputs = heads(key_heads)
    got = attend_segments(*inputs, Segments.of_lengths(LENGTHS), scaling, 0.0, window)
    want = dense(*inputs, LENGTHS, scaling, window)
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(got)
    mine = torch.autograd.grad(got, inputs, upstream)
    theirs = torch.autograd.grad(want, inputs, upstream)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_segments_describe_themselves() -> None:
    segments = Segments.of_lengths(LENGTHS)
    assert segments.q == ((0, 7), (7, 8), (8, 20), (20, 24))
    assert segments.lengths == LENGTHS
    assert segments.bounds(torch.device("cpu")).tolist() == [0, 7, 8, 20, 24]
    band = segments.band(4, 2, torch.device("cpu"))
    assert band.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    with pytest.raises(PackingRefused, match="keys differ"):
        Segments(((0, 2), (2, 3)), ((0, 2), (0, 3)))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "not causal"),
        ({"some_new_thing": 1}, "some_new_thing"),
    ],
)
def test_what_is_not_computed_is_refused(keywords: dict[str, Any], message: str) -> None:
    attend = attention._dispatcher("sdpa")
    segments = Segments.of_lengths(LENGTHS)
    module = torch.nn.Module()
    with pytest.raises(PackingRefused, match=message):
        attend(module, *heads(), None, fastrl_segments=segments, **keywords)
    neutral = {"softcap": None, "position_ids": torch.arange(3), "use_cache": False}
    out, weights = attend(module, *heads(), None, fastrl_segments=segments, **neutral)
    assert out.shape == (1, sum(LENGTHS), 4, 8)
    assert weights is None


def test_two_rows_are_refused() -> None:
    q = torch.zeros(2, 4, 3, 8)
    with pytest.raises(PackingRefused, match="one row"):
        attention._dispatcher("sdpa")(
            torch.nn.Module(), q, q, q, None, fastrl_segments=Segments.of_lengths([3])
        )


def _fake_varlen(newest: bool) -> Any:
    """`varlen_attn` with the signature of a newer or an older torch, computed densely."""

    def compute(q: Any, k: Any, v: Any, bounds: Any, scale: Any, window: Any) -> torch.Tensor:
        lengths = bounds.diff().tolist()
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        return dense(q, k, v, lengths, scale, window)[0]

    def new(
        query: Any,
        key: Any,
        value: Any,
        cu_seq_q: Any,
        cu_seq_k: Any,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert enable_gqa == (query.shape[1] != key.shape[1])
        assert max_q == max_k == max(LENGTHS)
        left, right = window_size
        assert right == 0
        return compute(query, key, value, cu_seq_q, scale, None if left < 0 else left + 1)

    def old(
        query: Any,
        key: Any,
        value: Any,
        cu_seq_q: Any,
        cu_seq_k: Any,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
    ) -> torch.Tensor:
        assert is_causal
        assert query.shape[1] == key.shape[1]
        return compute(query, key, value, cu_seq_q, None, None)

    return new if newest else old


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("newest", "window"), [(True, None), (True, 3), (False, None)])
def test_varlen_adapter(
    newest: bool, window: int | None, scaling: float | None, monkeypatch: Any
) -> None:
    fake = types.ModuleType("torch.nn.attention.varlen")
    fake.varlen_attn = _fake_varlen(newest)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", fake)
    varlen._parameters.cache_clear()
    inputs = heads(2)
    bounds = Segments.of_lengths(LENGTHS).bounds(torch.device("cpu"))
    got = varlen.attend(*inputs, bounds, max(LENGTHS), scaling, window)
    varlen._parameters.cache_clear()
    torch.testing.assert_close(got, dense(*inputs, LENGTHS, scaling, window))


def test_varlen_serves_only_what_it_can() -> None:
    q = torch.zeros(1, 4, 3, 8)
    assert not varlen.serves(q, q, 0.0, None)
    assert not varlen.serves(q.half(), q.half(), 0.0, None)  # not on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_varlen_on_a_gpu(key_heads: int, window: int | None) -> None:
    made = []
    for count in (4, key_heads, key_heads):
        tensor = torch.randn(1, sum(LENGTHS), count, 64, device="cuda", dtype=torch.bfloat16)
        made.append(tensor.transpose(1, 2).requires_grad_())
    assert varlen.serves(*made[:2], 0.0, window)
    got = attend_segments(*made, Segments.of_lengths(LENGTHS), 0.1, 0.0, window)
    wide = [tensor.detach().float().cpu().requires_grad_() for tensor in made]
    want = dense(*wide, LENGTHS, 0.1, window)
    torch.testing.assert_close(got.float().cpu(), want, rtol=2e-2, atol=2e-2)
    mine = torch.autograd.grad(got.float().sum(), made)
    for one, other in zip(mine, torch.autograd.grad(want.sum(), wide), strict=True):
        torch.testing.assert_close(one.float().cpu(), other, rtol=5e-2, atol=5e-2)
