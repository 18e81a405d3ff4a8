"""gae: by hand, against a loop written for the test, and at the edges."""

from __future__ import annotations

import pytest
import torch

from fastrl import ops

SHAPES = [(1, 1), (3, 5), (4, 128), (5, 129), (7, 300), (33, 257), (300, 1000)]


def by_definition(rewards, values, mask, gamma, lam):
    """Each advantage as the sum it stands for, in float64: sum_k (gamma lam)^k delta_{t+k}."""
    r = torch.where(mask, rewards.double(), 0.0)
    v = torch.where(mask, values.double(), 0.0)
    after = torch.cat([v[:, 1:], v.new_zeros(len(v), 1)], dim=1)
    delta = r + gamma * after - v
    columns = torch.arange(r.shape[1])
    gap = columns[None, :] - columns[:, None]  # (t, s) = s - t
    power = torch.where(gap >= 0, (gamma * lam) ** gap.clamp(min=0).double(), 0.0)
    advantages = delta @ power.T
    return advantages.float(), (advantages + v).float()


def case(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) > 0.3
    return rewards, values, mask


def test_three_steps_by_hand(backend, close):
    # gamma 0.5, lam 0.5. Row 0 counts every column:
    #   delta = (1 + .5*4 - 2, 2 + .5*6 - 4, 3 - 6) = (1, 1, -3)
    #   A_2 = -3, A_1 = 1 + .25*-3 = .25, A_0 = 1 + .25*.25 = 1.0625
    # Row 1 does not count column 1, so r_1 = V_1 = 0 and the recursion passes through:
    #   delta = (1 + 0 - 2, 0 + .5*6 - 0, 3 - 6) = (-1, 3, -3); A = (-1 + .25*2.25, 3 - .75, -3)
    rewards = torch.tensor([[1.0, 2, 3], [1, 2, 3]])
    values = torch.tensor([[2.0, 4, 6], [2, 4, 6]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    advantages, returns = ops.gae(rewards, values, mask, 0.5, 0.5)
    close(advantages, torch.tensor([[1.0625, 0.25, -3], [-0.4375, 2.25, -3]]))
    close(returns, torch.tensor([[3.0625, 4.25, 3], [1.5625, 2.25, 3]]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.0), (0.99, 1.0)])
def test_is_the_discounted_sum(backend, shape, gamma, lam):
    rewards, values, mask = case(shape)
    advantages, returns = ops.gae(rewards, values, mask, gamma, lam)
    expected, expected_returns = by_definition(rewards, values, mask, gamma, lam)
    # A sum of up to 1000 terms of either sign: relative to the largest advantage.
    scale = float(expected.abs().max())
    torch.testing.assert_close(advantages, expected, rtol=2e-5, atol=2e-6 * max(scale, 1.0))
    torch.testing.assert_close(returns, expected_returns, rtol=2e-5, atol=2e-6 * max(scale, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_not_rounded_again(backend, dtype, close):
    rewards, values, mask = case((9, 70))
    rewards, values = rewards.to(dtype), values.to(dtype)
    for actual, expected in zip(
        ops.gae(rewards, values, mask, 0.9, 0.9),
        by_definition(rewards.float(), values.float(), mask, 0.9, 0.9),
        strict=True,
    ):
        assert actual.dtype == torch.float32
        close(actual, expected, dtype)


def test_mixed_dtypes_and_mask_types(backend, close):
    rewards, values, mask = case((6, 40))
    expected = by_definition(rewards, values.half().float(), mask, 1.0, 0.95)
    for kind in (torch.bool, torch.int64, torch.float32, torch.uint8):
        actual = ops.gae(rewards, values.half(), mask.to(kind), 1.0, 0.95)
        close(actual[0], expected[0])
        close(actual[1], expected[1])


def test_strided_inputs(backend, close):
    rewards, values, mask = case((40, 30))
    expected = by_definition(rewards.T, values.T, mask.T, 1.0, 0.95)
    close(ops.gae(rewards.T, values.T, mask.T, 1.0, 0.95)[0], expected[0])
    wide = torch.randn(40, 60)
    expected = by_definition(wide[:, ::2], wide[:, 1::2], mask, 1.0, 0.95)
    close(ops.gae(wide[:, ::2], wide[:, 1::2], mask, 1.0, 0.95)[0], expected[0])
    row = values[:1].expand(40, 30)
    close(ops.gae(rewards, row, mask, 1.0, 0.9)[0], by_definition(rewards, row, mask, 1.0, 0.9)[0])


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0)])
def test_empty(backend, shape):
    empty = torch.zeros(shape)
    advantages, returns = ops.gae(empty, empty, empty.bool(), 1.0, 0.95)
    assert advantages.shape == returns.shape == shape


def test_what_the_mask_leaves_out_may_be_anything(backend, close):
    rewards, values, mask = case((5, 64))
    mask[2] = False
    expected = by_definition(rewards, values, mask, 0.99, 0.95)
    for junk in (float("nan"), float("inf")):
        dirty_rewards = torch.where(mask, rewards, junk)
        dirty_values = torch.where(mask, values, junk)
        advantages, returns = ops.gae(dirty_rewards, dirty_values, mask, 0.99, 0.95)
        close(advantages, expected[0])
        close(returns, expected[1])
        assert advantages[2].eq(0).all()
        assert returns[2].eq(0).all()


def test_nan_that_counts_stays_in_its_row(backend):
    rewards, values, mask = case((6, 20))
    mask[:] = True
    rewards[4, 10] = float("nan")
    advantages, _ = ops.gae(rewards, values, mask, 0.99, 0.95)
    nan = advantages.isnan()
    assert nan[4, :11].all()
    assert nan.sum() == 11


def test_inputs_are_left_alone(backend):
    arguments = case((6, 20))
    copies = [t.clone() for t in arguments]
    ops.gae(*arguments, 0.99, 0.95)
    for argument, copy in zip(arguments, copies, strict=True):
        assert torch.equal(argument, copy)


def test_same_bits_for_any_number_of_threads():
    rewards, values, mask = case((300, 700))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.gae(rewards, values, mask, 0.99, 0.95)
        torch.set_num_threads(2)
        two = ops.gae(rewards, values, mask, 0.99, 0.95)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_gradients_come_from_the_reference(close):
    rewards, values, mask = (t[:, :6] for t in case((3, 8)))
    rewards = rewards.double().requires_grad_()
    values = values.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda r, v: ops.gae(r, v, mask, 0.9, 0.8), (rewards, values))
    fast = ops.gae(rewards.detach().float(), values.detach().float(), mask, 0.9, 0.8)[0]
    slow = ops.gae(rewards.float(), values.float(), mask, 0.9, 0.8)[0]
    assert slow.requires_grad
    close(fast, slow.detach())


def test_a_forced_backend_without_gradient_says_so():
    rewards, values, mask = case((2, 3))
    with ops.use_backend("cpp"), pytest.raises(ops.BackendUnavailable, match="requires grad"):
        ops.gae(rewards.requires_grad_(), values, mask, 1.0, 0.95)


def test_compiled_equals_eager():
    rewards, values, mask = case((4, 30))
    compiled = torch.compile(
        lambda r, v, m: ops.gae(r * 2, v, m, 1.0, 0.95)[0] + 1, backend="eager", fullgraph=True
    )
    assert torch.equal(
        compiled(rewards, values, mask), ops.gae(rewards * 2, values, mask, 1.0, 0.95)[0] + 1
    )
    torch.library.opcheck(torch.ops.fastrl.gae.default, (rewards, values, mask, 1.0, 0.95))


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"values": torch.zeros(2, 4)}, ValueError, r"values has shape \(2, 4\).*\(2, 3\)"),
        ({"mask": torch.ones(3)}, ValueError, r"mask has shape"),
        ({"rewards": torch.zeros(2, 3, 1)}, ValueError, r"rewards must be \(B, T\)"),
        ({"rewards": torch.zeros(2, 3).long()}, TypeError, r"rewards must be floating"),
        ({"values": [[1.0]]}, TypeError, r"values must be a torch.Tensor, not list"),
        ({"mask": None}, TypeError, r"mask must be a torch.Tensor"),
        ({"values": torch.zeros(2, 3, device="meta")}, ValueError, r"values is on meta"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {
        "rewards": torch.zeros(2, 3),
        "values": torch.zeros(2, 3),
        "mask": torch.ones(2, 3),
        "gamma": 1.0,
        "lam": 0.95,
    } | change
    with pytest.raises(error, match=words):
        ops.gae(**arguments)
