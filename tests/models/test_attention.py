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
    segments = Segments((7, 1, 12, 4), (-1, -1, 0, 0))
    device = torch.device("cpu")
    assert Segments.of_lengths(LENGTHS) == Segments((7, 1, 12, 4), (-1,) * 4)
    assert not Segments.of_lengths(LENGTHS).shared
    assert segments.shared
    assert segments.key_lengths == [7, 1, 19, 11]
    assert [bounds.tolist() for bounds in segments.bounds(device)] == [
        [0, 7, 8, 20, 24],
        [0, 7, 8, 27, 38],
    ]
    assert segments.bounds(device)[1].dtype == torch.int32
    band = segments.band(4, 4, 2, device)
    assert band.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert segments.band(2, 4, None, device).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert segments.band(2, 4, 3, device).int().tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


def repeated(tensor: torch.Tensor, segments: Segments) -> tuple[torch.Tensor, list[int]]:
    """The segments with what they continue written out before each, and their lengths."""
    own = tensor.split(segments.lengths, dim=2)
    parts = []
    for one, before in zip(own, segments.after, strict=True):
        parts += [one] if before < 0 else [own[before], one]
    return torch.cat(parts, dim=2), segments.key_lengths


@pytest.mark.parametrize("window", [None, 1, 3, 9, 50])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_shared_stretches_equal_repeated_ones(key_heads: int, window: int | None) -> None:
    segments = Segments((7, 1, 12, 4), (-1, 0, 0, -1))
    inputs = heads(key_heads)
    written = [repeated(tensor, segments)[0] for tensor in inputs]
    table = dense(*written, segments.key_lengths, 0.4, window)
    # Of a repeated stretch only the first copy has an output of its own.
    want = torch.cat([table[:, :7], table[:, 14:15], table[:, 22:34], table[:, 34:]], dim=1)
    got = attend_segments(*inputs, segments, 0.4, 0.0, window)
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(got)
    mine = torch.autograd.grad(got, inputs, upstream)
    theirs = torch.autograd.grad(want, inputs, upstream)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


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

    def compute(
        q: Any, k: Any, v: Any, bounds: Any, key_bounds: Any, scale: Any, window: Any
    ) -> torch.Tensor:
        lengths, keys = bounds.diff().tolist(), key_bounds.diff().tolist()
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        # Queries before those given, which `dense` needs and nobody asked for.
        filled = [
            torch.nn.functional.pad(part, (0, 0, more - len(part[0, 0]), 0))
            for part, more in zip(q.split(lengths, dim=2), keys, strict=True)
        ]
        table = dense(torch.cat(filled, dim=2), k, v, keys, scale, window)[0]
        ends = zip(table.split(keys), lengths, strict=True)
        return torch.cat([part[len(part) - length :] for part, length in ends])

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
        assert max_q == cu_seq_q.diff().max()
        assert max_k == cu_seq_k.diff().max()
        left, right = window_size
        assert right == 0
        return compute(query, key, value, cu_seq_q, cu_seq_k, scale, None if left < 0 else left + 1)

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
        return compute(query, key, value, cu_seq_q, cu_seq_k, None, None)

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
    alone = Segments.of_lengths(LENGTHS)
    got = attention._fused(*inputs, alone, scaling, window)
    sharing = Segments((7, 1, 12, 4), (-1, 0, 0, -1))
    shared = attention._fused(*inputs, sharing, scaling, window)
    places = varlen.aligned(torch.device("cpu"), torch.float32, window is not None)
    varlen._parameters.cache_clear()
    varlen.aligned.cache_clear()
    torch.testing.assert_close(got, dense(*inputs, LENGTHS, scaling, window))
    torch.testing.assert_close(shared, attend_segments(*inputs, sharing, scaling, 0.0, window))
    assert places


def test_a_kernel_that_puts_queries_first_is_found_out(monkeypatch: Any) -> None:
    def top_left(q: Any, k: Any, v: Any, *_: Any, window_size: Any, **keywords: Any) -> Any:
        return v[: len(q)].cumsum(0) / torch.arange(1, len(q) + 1)[:, None, None]

    monkeypatch.setattr(varlen, "_parameters", lambda: frozenset({"window_size", "cu_seq_q"}))
    fake = types.ModuleType("torch.nn.attention.varlen")
    fake.varlen_attn = top_left
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", fake)
    varlen.aligned.cache_clear()
    assert not varlen.aligned(torch.device("cpu"), torch.float32, False)
    varlen.aligned.cache_clear()


def test_varlen_serves_only_what_it_can() -> None:
    q = torch.zeros(1, 4, 3, 8)
    assert not varlen.serves(q, q, 0.0, None)
    assert not varlen.serves(q.half(), q.half(), 0.0, None)  # not on a GPU


def test_shared_stretches_go_to_a_kernel_that_aligns_them(monkeypatch: Any) -> None:
    gpu = types.SimpleNamespace(type="cuda")
    q: Any = types.SimpleNamespace(device=gpu, dtype=torch.bfloat16, shape=(1, 4, 3, 64))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "_parameters", lambda: frozenset({"window_size", "cu_seq_q"}))
    for places in (True, False):
        monkeypatch.setattr(varlen, "aligned", lambda *_, places=places: places)
        assert varlen.serves(q, q, 0.0, None)
        assert varlen.serves(q, q, 0.0, None, shared=True) is places


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("after", [(-1, -1, -1, -1), (-1, 0, 0, -1)])
def test_varlen_on_a_gpu(after: tuple[int, ...], key_heads: int, window: int | None) -> None:
    segments = Segments(tuple(LENGTHS), after)
    made = []
    for count in (4, key_heads, key_heads):
        tensor = torch.randn(1, sum(LENGTHS), count, 64, device="cuda", dtype=torch.bfloat16)
        made.append(tensor.transpose(1, 2).requires_grad_())
    assert varlen.serves(*made[:2], 0.0, window, segments.shared)
    got = attend_segments(*made, segments, 0.1, 0.0, window)
    wide = [tensor.detach().float().cpu().requires_grad_() for tensor in made]
    want = attend_segments(*wide, segments, 0.1, 0.0, window)
    torch.testing.assert_close(got.float().cpu(), want, rtol=2e-2, atol=2e-2)
    mine = torch.autograd.grad(got.float().sum(), made)
    for one, other in zip(mine, torch.autograd.grad(want.sum(), wide), strict=True):
        torch.testing.assert_close(one.float().cpu(), other, rtol=5e-2, atol=5e-2)
