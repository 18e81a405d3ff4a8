"""decode_attention: torch's own attention of each row over its keys laid side by side."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fastrl.ops.decode_attention import Decoding, decode_attention

ROWS = {  # prompt of each row, tokens of its answer before the new one, tokens of the prompts
    "groups": ([0, 0, 1, 0, 1, 2], [3, 0, 7, 2, 2, 9], [5, 1, 12]),
    "alone": ([0, 1, 2], [4, 0, 1], [3, 8, 2]),
    "one": ([0], [0], [1]),
    "other order": ([2, 0, 1], [1, 1, 1], [4, 4, 4]),
    "long": ([0, 1, 1], [150, 33, 0], [200, 17]),
}


def made(rows, dtype, heads=4, kv_heads=2, width=20):
    prompt_of, answers, prompts = ROWS[rows]
    generator = torch.Generator().manual_seed(len(answers))

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    at = Decoding.of(prompt_of, answers, prompts, torch.device("cpu"))
    query = draw(len(answers), heads, width)
    # with more slots and room than are used, filled with what must not be read
    common = draw(2, len(prompts) + 1, kv_heads, max(prompts) + 3, width) * 100
    own = draw(2, len(answers) + 2, kv_heads, max(answers) + 4, width) * 100
    for slot, length in enumerate(prompts):
        common[:, slot, :, :length] /= 100
    for slot, length in enumerate(answers):
        own[:, slot, :, : length + 1] /= 100
    return at, query, common, own


def row_by_row(rows, query, common, own, scaling, window):
    prompt_of, answers, prompts = ROWS[rows]
    out = []
    for i, (slot, length) in enumerate(zip(prompt_of, answers, strict=True)):
        parts = (common[:, slot, :, : prompts[slot]], own[:, i, :, : length + 1])
        key, value = torch.cat(parts, dim=2).double()[..., -(window or 10**6) :, :]
        q = query[i, :, None].double()
        mixed = scaled_dot_product_attention(
            q[None], key[None], value[None], scale=scaling, enable_gqa=True
        )
        out.append(mixed[0, :, 0])
    return torch.stack(out)


@pytest.mark.parametrize("window", [None, 1, 4, 11])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_attention_of_each_row(backend, rows, dtype, window):
    if dtype is torch.float64 and backend == "cpp":
        dtype = torch.float16
    at, query, common, own = made(rows, dtype)
    got = decode_attention(query, common, own, at, 0.3, window)
    assert got.dtype == dtype and got.shape == query.shape
    want = row_by_row(rows, query, common, own, 0.3, window)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-6}.get(dtype, 2e-2)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (6, 3, 64), (8, 1, 16), (5, 5, 33), (40, 1, 8)])
def test_heads_and_widths(instruction_set, cpp, sizes):
    at, query, common, own = made("groups", torch.float32, *sizes)
    got = decode_attention(query, common, own, at)
    want = row_by_row("groups", query, common, own, sizes[2] ** -0.5, None)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)


def test_threads_change_nothing(cpp):
    at, query, common, own = made("long", torch.float32, 16, 8, 64)
    torch.set_num_threads(1)
    once = decode_attention(query, common, own, at)
    torch.set_num_threads(2)
    assert torch.equal(decode_attention(query, common, own, at), once)


def test_large_scores_and_a_query_that_need_not_be_contiguous(backend):
    at, query, common, own = made("groups", torch.float32)
    query *= 300
    strided = torch.empty(4, 6, 20).copy_(query.transpose(0, 1)).transpose(0, 1)
    got = decode_attention(strided, common, own, at)
    assert got.isfinite().all()
    want = row_by_row("groups", query, common, own, 20**-0.5, None)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_a_nan_stays_in_its_row(backend):
    at, query, common, own = made("groups", torch.float32)
    query[2] = math.nan
    got = decode_attention(query, common, own, at)
    assert got[2].isnan().all() and got[[0, 1, 3, 4, 5]].isfinite().all()


def test_what_is_refused():
    at, query, common, own = made("groups", torch.float32)
    with pytest.raises(TypeError, match=r"prompts are torch\.float64, the query is torch.float32"):
        decode_attention(query, common.double(), own, at)
    with pytest.raises(ValueError, match=r"answers of shape .* do not hold \(2, 6, Hkv, 10, 20\)"):
        decode_attention(query, common, own[:, :3], at)
    with pytest.raises(ValueError, match="for 5 heads"):
        decode_attention(query[:, [0, 1, 2, 3, 0]], common, own, at)
    with pytest.raises(ValueError, match="window must be at least 1"):
        decode_attention(query, common, own, at, window=0)
