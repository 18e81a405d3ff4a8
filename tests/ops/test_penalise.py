"""penalise: transformers' repetition penalty, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from fastrl import ops


@pytest.mark.parametrize("penalty", [1.3, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_transformers_penalty(backend, penalty, dtype, close):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 40, generator=generator).to(dtype)
    seen = torch.randint(0, 40, (5, 30), generator=generator)  # with repeats
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.float())
    before = logits.clone()
    actual = ops.penalise(logits, seen, penalty)
    assert actual.dtype == torch.float32
    close(actual, theirs)
    assert torch.equal(logits, before)


def test_by_hand_with_padding(backend):
    logits = torch.tensor([[4.0, -4.0, 0.0, -math.inf], [1.0, 2.0, 3.0, 4.0]])
    seen = torch.tensor([[-1, 0, 1, 2, 3, 0], [-1, -1, -1, -1, -1, -1]])
    expected = torch.tensor([[2.0, -8.0, 0.0, -math.inf], [1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(ops.penalise(logits, seen, 2.0), expected)
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    assert torch.equal(ops.penalise(logits, nothing, 2.0), logits)
    empty = ops.penalise(torch.zeros(0, 4), torch.zeros(0, 3, dtype=torch.int64), 2.0)
    assert empty.shape == (0, 4)


def test_gradient_comes_from_the_reference():
    logits = torch.tensor([[4.0, -4.0, 1.0]], requires_grad=True)
    ops.penalise(logits, torch.tensor([[0, 1]]), 2.0).sum().backward()
    assert logits.grad.tolist() == [[0.5, 2.0, 1.0]]


def test_the_registered_operation_is_sound():
    arguments = (torch.randn(3, 50), torch.randint(-1, 50, (3, 7)), 1.5)
    torch.library.opcheck(torch.ops.fastrl.penalise.default, arguments)


@pytest.mark.parametrize("bad", [-2, 4, 2**40])
def test_ids_outside_the_vocabulary_are_named(backend, bad):
    seen = torch.tensor([[0, 1], [0, bad], [0, 1], [bad, 0]])
    with pytest.raises(ValueError, match="row 1"):  # the first of them
        ops.penalise(torch.zeros(4, 4), seen, 1.2)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "logits"),
        ({"logits": torch.zeros(3)}, ValueError, "logits"),
        ({"seen": torch.zeros(2, 3)}, TypeError, "seen"),
        ({"seen": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, "seen"),
        ({"seen": [[1]]}, TypeError, "seen"),
        ({"penalty": 0.0}, ValueError, "penalty"),
        ({"penalty": math.nan}, ValueError, "penalty"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {
        "logits": torch.zeros(2, 3),
        "seen": torch.zeros(2, 1, dtype=torch.int64),
        "penalty": 1.2,
        **change,
    }
    with pytest.raises(error, match=message):
        ops.penalise(**arguments)
