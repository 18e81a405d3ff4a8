"""The tensor functions of TRL's `core`: against torch's own definitions and numbers on paper."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl.ops import classic

NAN = math.nan


def logits_of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(*shape, generator=generator) * 3).to(dtype)


def both_gradients(ours, theirs, *inputs):
    """(value, gradients) of a function of this package and of its definition in fp64."""
    found = []
    for function, dtype in ((ours, torch.float32), (theirs, torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = function(*leaves)
        weights = torch.arange(1.0, out.numel() + 1, dtype=dtype).view(out.shape)
        (out * weights).sum().backward()
        found.append([out.detach().float(), *(x.grad.float() for x in leaves)])
    return found


@pytest.mark.parametrize("gather", [True, False])
def test_logprobs_from_logits(gather, close):
    logits, labels = logits_of(2, 5, 11), torch.arange(10).view(2, 5)

    def definition(z):
        logp = z - z.exp().sum(-1, keepdim=True).log()
        return logp.gather(2, labels[..., None])[..., 0] if gather else logp

    ours, theirs = both_gradients(
        lambda z: classic.logprobs_from_logits(z, labels, gather), definition, logits
    )
    close(ours, theirs)


def test_logprobs_are_not_rounded_to_the_logits_dtype():
    logits, labels = logits_of(1, 3, 9, dtype=torch.bfloat16), torch.zeros(1, 3, dtype=torch.long)
    for gather in (True, False):
        assert classic.logprobs_from_logits(logits, labels, gather).dtype == torch.float32


@pytest.mark.parametrize("chunk_size", [1, 4, 128])
def test_entropy_from_logits(chunk_size, close):
    def definition(z):
        p = z.softmax(-1)
        return z.logsumexp(-1) - (p * z).sum(-1)

    ours, theirs = both_gradients(
        lambda z: classic.entropy_from_logits(z, chunk_size), definition, logits_of(3, 3, 7)
    )
    close(ours, theirs)


def test_entropy_of_a_fair_choice_among_some():
    logits = torch.tensor([[0.0, -math.inf, 0.0, 0.0, 0.0]])
    assert classic.entropy_from_logits(logits).item() == pytest.approx(math.log(4))


def test_entropy_chunk_size_is_checked():
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        classic.entropy_from_logits(torch.zeros(2, 3), 0)


@pytest.mark.parametrize("several", [False, True])
def test_selective_log_softmax(several, close):
    logits = logits_of(2, 4, 9)
    index = torch.randint(9, (2, 4, 3), generator=torch.Generator().manual_seed(0))
    index = index if several else index[..., 0]

    def definition(z):
        logp = (z / 0.7).log_softmax(-1)
        return logp.gather(-1, index if several else index[..., None]).view(index.shape)

    ours, theirs = both_gradients(
        lambda z: classic.selective_log_softmax(z, index, temperature=0.7), definition, logits
    )
    close(ours, theirs)


def test_masked_rows_are_zero_whatever_their_index():
    logits = logits_of(1, 3, 5).requires_grad_()
    index = torch.tensor([[2, -100, 4]])
    mask = index >= 0
    logp, entropy = classic.selective_log_softmax_and_entropy(logits, index, row_mask=mask)
    alone = logits.detach().log_softmax(-1)
    assert logp[0].tolist() == pytest.approx([alone[0, 0, 2].item(), 0.0, alone[0, 2, 4].item()])
    assert entropy[0, 1] == 0
    torch.testing.assert_close(
        classic.selective_log_softmax(logits, index, row_mask=mask), logp, rtol=0, atol=0
    )
    (logp.sum() + entropy.sum()).backward()
    assert logits.grad[0, 1].abs().max() == 0
    with pytest.raises(ValueError, match="row_mask must have the shape of index"):
        classic.selective_log_softmax(logits, index, row_mask=mask[:, :2])


def test_entropy_without_gradient_leaves_that_of_logp():
    logits, index = logits_of(2, 5), torch.tensor([1, 4])
    found = []
    for wanted in (True, False):
        z = logits.clone().requires_grad_()
        logp, entropy = classic.selective_log_softmax_and_entropy(z, index, wanted)
        (logp.sum() + entropy.sum()).backward()
        assert entropy.requires_grad is wanted
        found.append(z.grad)
    plain = logits.clone().requires_grad_()
    plain.log_softmax(-1).gather(-1, index[:, None]).sum().backward()
    torch.testing.assert_close(found[1], plain.grad, rtol=2e-5, atol=2e-6)
    assert not torch.allclose(*found)


VALUES = torch.tensor([[1.0, 2.0, NAN], [4.0, 9.0, 100.0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_masked_moments_on_paper():
    assert classic.masked_mean(VALUES, MASK).item() == pytest.approx(7 / 3)
    assert classic.masked_mean(VALUES, MASK.bool()).item() == pytest.approx(7 / 3)
    assert classic.masked_mean(VALUES, MASK, 1).tolist() == [1.5, 4.0]
    assert classic.masked_mean(VALUES, MASK, axis=0).tolist()[:2] == [2.5, 2.0]
    # (4/3)² + (1/3)² + (5/3)² = 42/9, over 3 - 1 or over 3
    assert classic.masked_var(VALUES, MASK).item() == pytest.approx(7 / 3)
    assert classic.masked_var(VALUES, MASK, unbiased=False).item() == pytest.approx(14 / 9)


def test_masks_of_masked_moments_broadcast():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]])
    for mask, axes in (
        (torch.tensor([1, 1, 0]), ([2.5, 4.0, NAN], [1.5, 5.0])),
        (torch.tensor([[1], [0]]), ([1.0, 2.0, 3.0], [2.0, NAN])),
    ):
        whole = mask.expand(2, 3)
        counted = values[whole.bool()]
        assert classic.masked_mean(values, mask).item() == pytest.approx(counted.mean().item())
        for axis, expected in enumerate(axes):
            found = classic.masked_mean(values, mask, axis=axis).tolist()
            assert found == pytest.approx(expected, nan_ok=True)
        for unbiased in (True, False):
            expected = counted.var(unbiased=unbiased).item()
            assert classic.masked_var(values, mask, unbiased).item() == pytest.approx(expected)


def test_masked_moments_at_the_edges():
    one = torch.tensor([[0, 0, 0], [1, 0, 0]])
    assert classic.masked_mean(VALUES, torch.zeros_like(MASK)).isnan()
    assert classic.masked_var(VALUES, one).isnan()
    with pytest.raises(ValueError, match="the mask counts no value"):
        classic.masked_var(VALUES, torch.zeros_like(MASK))


def test_masked_gradient_ignores_what_is_left_out():
    values = VALUES.clone().requires_grad_()
    classic.masked_var(values, MASK).backward()
    # d/dv of the unbiased variance: 2 (v - mean) / (n - 1)
    assert values.grad[0].tolist() == pytest.approx([1 - 7 / 3, 2 - 7 / 3, 0])
    assert values.grad[1].tolist() == pytest.approx([4 - 7 / 3, 0, 0])


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_and_masked_whiten(shift_mean):
    kept = torch.tensor([1.0, 2.0, 4.0])
    scale = 1 / math.sqrt(7 / 3 + 1e-8)
    expected = [(v - 7 / 3) * scale + (0 if shift_mean else 7 / 3) for v in (1, 2, 4)]
    assert classic.whiten(kept, shift_mean).tolist() == pytest.approx(expected, rel=1e-6)
    found = classic.masked_whiten(VALUES, MASK, shift_mean)
    assert found[0, :2].tolist() == pytest.approx(expected[:2], rel=1e-6)
    # What the mask leaves out is scaled along.
    outside = (100 - 7 / 3) * scale + (0 if shift_mean else 7 / 3)
    assert found[1, 2].item() == pytest.approx(outside, rel=1e-6)
    with pytest.raises(ValueError, match="mask counts no element"):
        classic.masked_whiten(VALUES, torch.zeros_like(MASK))


def test_clip_by_value_takes_numbers_and_tensors():
    x = torch.tensor([-3.0, 0.5, 3.0])
    assert classic.clip_by_value(x, -1, 1).tolist() == [-1, 0.5, 1]
    low, high = torch.tensor([-4.0, 0.6, 0.0]), torch.tensor([4.0, 0.7, 1.0])
    assert classic.clip_by_value(x, low, high).tolist() == pytest.approx([-3, 0.6, 1])
    assert classic.clip_by_value(x, 2, 1).tolist() == [2, 2, 2]


def test_pad_to_size():
    x = torch.tensor([[1, 2], [3, 4]])
    assert classic.pad_to_size(x, 4).tolist() == [[1, 2, 50256, 50256], [3, 4, 50256, 50256]]
    assert classic.pad_to_size(x, 3, dim=0, padding=0).tolist() == [[1, 2], [3, 4], [0, 0]]
    assert classic.pad_to_size(x, 3, dim=-1, padding=7)[:, 2].tolist() == [7, 7]
    assert classic.pad_to_size(x, 1).tolist() == [[1], [3]]
    assert classic.pad_to_size(x, 2).tolist() == x.tolist()


def test_top_k_top_p_filtering():
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]])
    kept = classic.top_k_top_p_filtering(p.log(), top_k=3).isfinite()
    assert kept[0].tolist() == [False, True, True, True]
    kept = classic.top_k_top_p_filtering(p.log(), top_p=0.6).isfinite()
    assert kept.tolist() == [[False, True, False, True], [True, False, False, False]]
    kept = classic.top_k_top_p_filtering(p.log(), top_p=0.6, min_tokens_to_keep=2).isfinite()
    assert kept.sum(-1).tolist() == [2, 2]
    # 0.4 and 0.3 are left of top_k; renormalised 4/7 reach 0.55
    both = classic.top_k_top_p_filtering(p.log(), top_k=2, top_p=0.55, filter_value=-5.0)
    assert both[0].tolist() == pytest.approx([-5, math.log(0.4), -5, -5])
    assert torch.equal(classic.top_k_top_p_filtering(p.log()), p.log())


def test_randn_tensor_draws_each_row_from_its_own_generator():
    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    both = classic.randn_tensor((2, 3), seeded(1, 2))
    assert torch.equal(both[1:], torch.randn(1, 3, generator=seeded(2)[0]))
    assert torch.equal(
        classic.randn_tensor([2, 3], seeded(4)), torch.randn(2, 3, generator=seeded(4)[0])
    )
    assert classic.randn_tensor((2, 3), seeded(4)[0], dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match="2 of them for a batch of 3"):
        classic.randn_tensor((3, 3), seeded(1, 2))
    with pytest.warns(UserWarning, match="generator is on the CPU"):
        classic.randn_tensor((2,), seeded(1)[0], device="meta")


def test_moments_without_nans():
    x = torch.tensor([3.0, NAN, -1.0, 4.0])
    assert classic.nanmin(x).item() == -1
    assert classic.nanmax(x).item() == 4
    # mean 2, squares 1 + 9 + 4, over 3 - 1
    assert classic.nanstd(x).item() == pytest.approx(math.sqrt(7))
    rows = torch.stack([x, torch.tensor([NAN, 1.0, NAN, NAN])])
    close_to = pytest.approx([math.sqrt(7), NAN], nan_ok=True)
    assert classic.nanstd(rows, dim=1).tolist() == close_to
    assert classic.nanstd(rows, dim=(0, 1)).item() == pytest.approx(math.sqrt(4.916666666666667))
    assert classic.nanstd(rows, dim=1, keepdim=True).shape == (2, 1)
    nothing = torch.tensor([NAN, NAN])
    for function in (classic.nanmin, classic.nanmax, classic.nanstd):
        assert function(nothing).isnan()


def test_cap_exp_does_not_overflow():
    assert classic.get_exp_cap(torch.zeros(1)).item() == pytest.approx(88.7228, abs=1e-5)
    assert classic.get_exp_cap(torch.zeros(1), decimal=1).item() == pytest.approx(88.7, abs=1e-5)
    assert classic.cap_exp(torch.tensor([1000.0, 0.0])).isfinite().all()
    assert classic.cap_exp(torch.tensor([3.0, 0.0]), cap=2).tolist() == pytest.approx(
        [math.exp(2), 1]
    )


@pytest.mark.parametrize("decimal", [0, 4, 7])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_the_cap_is_the_last_whose_exp_is_finite(dtype, decimal):
    cap = classic.get_exp_cap(torch.zeros(1, dtype=dtype), decimal)
    assert cap.dtype == dtype and cap.shape == (1,)
    assert cap.exp().isfinite().all()
    lost = 10.0**-decimal if decimal else 0.0
    following = cap.double() * (1 + torch.finfo(dtype).eps) + lost
    assert (following > math.log(torch.finfo(dtype).max)).all()


def test_entropy_of_a_slice_copies_no_logits(monkeypatch):
    seen = []
    real = classic.token_logprobs

    def watched(logits, targets):
        seen.append(logits)
        return real(logits, targets)

    monkeypatch.setattr(classic, "token_logprobs", watched)
    whole = logits_of(4, 6, 7)
    classic.entropy_from_logits(whole[:, :-1], chunk_size=3)
    assert [len(part) for part in seen] == [3, 2] * 4
    storage = whole.untyped_storage().data_ptr()
    assert {part.untyped_storage().data_ptr() for part in seen} == {storage}
