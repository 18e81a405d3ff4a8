"""shaped_rewards: by hand, row by row as TRL 0.7.11 defines it, and at the edges."""

from __future__ import annotations

import pytest
import torch

from fastrl import ops

PENALTY = {"kl": lambda d: d, "abs": abs, "mse": lambda d: d * d / 2}


def row_by_row(scores, logp, ref_logp, mask, kl_coef, kind):
    """One Python float at a time."""
    kl = [
        [PENALTY[kind](a - b) for a, b in zip(*rows, strict=True)]
        for rows in zip(logp.double().tolist(), ref_logp.double().tolist(), strict=True)
    ]
    rewards = [[-kl_coef * k for k in row] for row in kl]
    for row, (score, flags) in enumerate(zip(scores.tolist(), mask.tolist(), strict=True)):
        rewards[row][max(t for t, flag in enumerate(flags) if flag)] += score
    return torch.tensor(rewards).float(), torch.tensor(kl).float()


def case(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape[0], generator=generator)
    logp, ref_logp = -torch.rand((2, *shape), generator=generator) * 5
    mask = torch.rand(shape, generator=generator) > 0.5
    mask[torch.arange(shape[0]), torch.arange(shape[0]) % shape[1]] = True
    return scores, logp, ref_logp, mask


def test_by_hand(backend, close):
    # d = (-1, 2, -.5); the last counted column is 1, though column 2 holds a penalty as well.
    scores = torch.tensor([10.0])
    logp = torch.tensor([[-2.0, -1.0, -1.5]])
    ref_logp = torch.tensor([[-1.0, -3.0, -1.0]])
    mask = torch.tensor([[0, 1, 0]])
    rewards, kl = ops.shaped_rewards(scores, logp, ref_logp, mask, 0.5)
    close(kl, torch.tensor([[-1.0, 2.0, -0.5]]))
    close(rewards, torch.tensor([[0.5, 9.0, 0.25]]))
    rewards, kl = ops.shaped_rewards(scores, logp, ref_logp, mask, 0.5, kind="mse")
    close(kl, torch.tensor([[0.5, 2.0, 0.125]]))
    close(rewards, torch.tensor([[-0.25, 9.0, -0.0625]]))


@pytest.mark.parametrize("kind", ["kl", "abs", "mse"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 33), (200, 400)])
def test_matches_row_by_row(backend, shape, kind, close):
    arguments = (*case(shape), 0.2, kind)
    for actual, expected in zip(
        ops.shaped_rewards(*arguments), row_by_row(*arguments), strict=True
    ):
        assert actual.dtype == torch.float32
        close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_other_score_and_logp_dtypes(backend, dtype, close):
    scores, logp, ref_logp, mask = case((6, 20))
    scores = (scores * 3).to(dtype)
    half = logp.to(torch.bfloat16)
    expected = row_by_row(scores.float(), half.float(), ref_logp, mask, 0.2, "kl")
    actual = ops.shaped_rewards(scores, half, ref_logp, mask.long(), 0.2, "kl")
    close(actual[0], expected[0])
    close(actual[1], expected[1])


def test_strided_inputs(backend, close):
    scores, logp, ref_logp, mask = case((20, 20))
    expected = row_by_row(scores[::2], logp.T[::2], ref_logp[::2], mask.T[::2], 0.2, "abs")
    actual = ops.shaped_rewards(scores[::2], logp.T[::2], ref_logp[::2], mask.T[::2], 0.2, "abs")
    close(actual[0], expected[0])
    close(actual[1], expected[1])


def test_neither_output_is_masked(backend):
    scores, logp, ref_logp, mask = case((2, 6))
    mask[:] = False
    mask[:, 2] = True
    logp[0, 5] = float("nan")
    rewards, kl = ops.shaped_rewards(scores, logp, ref_logp, mask, 0.2)
    assert kl.isnan().sum() == 1
    assert rewards.isnan().sum() == 1
    assert rewards[0, 5].isnan()
    assert kl[1].ne(0).all()


def test_an_infinite_score_reaches_one_token_only(backend):
    scores, logp, ref_logp, mask = case((2, 6))
    scores[1] = float("inf")
    rewards, _ = ops.shaped_rewards(scores, logp, ref_logp, mask, 0.0)
    assert rewards.isinf().sum() == 1
    assert not rewards.isnan().any()


def test_a_row_that_counts_nothing_is_named(backend):
    scores, logp, ref_logp, mask = case((5, 6))
    mask[3] = False
    with pytest.raises(ValueError, match="row 3 of mask counts no token"):
        ops.shaped_rewards(scores, logp, ref_logp, mask, 0.2)
    with pytest.raises(ValueError, match="row 0 of mask"):
        ops.shaped_rewards(
            torch.zeros(2), torch.zeros(2, 0), torch.zeros(2, 0), torch.ones(2, 0), 1
        )


def test_no_rows(backend):
    rewards, kl = ops.shaped_rewards(
        torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 4), torch.ones(0, 4), 0.2
    )
    assert rewards.shape == kl.shape == (0, 4)


@pytest.mark.parametrize("kind", ["kl", "abs", "mse"])
def test_gradient_comes_from_the_reference(kind):
    scores, logp, ref_logp, mask = case((3, 5))
    inputs = tuple(t.double().requires_grad_() for t in (scores, logp, ref_logp))
    assert torch.autograd.gradcheck(
        lambda s, a, b: ops.shaped_rewards(s, a, b, mask, 0.3, kind), inputs
    )


def test_compiled_equals_eager():
    arguments = case((4, 30))
    compiled = torch.compile(
        lambda *a: ops.shaped_rewards(*a, 0.2, "mse")[0] + 1, backend="eager", fullgraph=True
    )
    assert torch.equal(compiled(*arguments), ops.shaped_rewards(*arguments, 0.2, "mse")[0] + 1)
    torch.library.opcheck(torch.ops.fastrl.shaped_rewards.default, (*arguments, 0.2, "abs"))


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"scores": torch.zeros(3)}, ValueError, r"scores must be \(2,\)"),
        ({"scores": torch.zeros(2, 1)}, ValueError, r"scores must be \(2,\)"),
        ({"ref_logp": torch.zeros(2, 4)}, ValueError, "ref_logp has shape"),
        ({"mask": torch.ones(2, 4)}, ValueError, "mask has shape"),
        ({"logp": torch.zeros(2)}, ValueError, r"logp must be \(B, T\)"),
        ({"logp": torch.zeros(2, 3).long()}, TypeError, "logp must be floating"),
        ({"scores": [1.0, 2.0]}, TypeError, "scores must be a torch.Tensor"),
        ({"kind": "full"}, ValueError, "kind must be one of kl, abs, mse, not 'full'"),
        ({"scores": torch.zeros(2, device="meta")}, ValueError, "scores is on meta"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {
        "scores": torch.zeros(2),
        "logp": torch.zeros(2, 3),
        "ref_logp": torch.zeros(2, 3),
        "mask": torch.ones(2, 3),
        "kl_coef": 0.2,
    } | change
    with pytest.raises(error, match=words):
        ops.shaped_rewards(**arguments)
