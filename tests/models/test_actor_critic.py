"""Values of single tokens, and the frames of responses, against each row by itself."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from fastrl.models.actor_critic import PolicyAndValue, Responses, values
from fastrl.models.policy import logprobs

PROMPTS = [[5, 9, 3, 7], [11], [8, 8, 4]]
RESPONSES = [[6, 2], [7, 13, 21, 4, 9], []]
WIDTH = 5


@pytest.fixture
def responses() -> Responses:
    return Responses.of(PROMPTS, RESPONSES, WIDTH, torch.device("cpu"))


def alone(model: Any, row: int) -> torch.Tensor:
    """(P + L,) what the head says at each token of a row that is fed by itself."""
    ids = torch.tensor([PROMPTS[row] + RESPONSES[row]])
    return model.score(model.base_model(input_ids=ids).last_hidden_state)[0, :, 0]


def test_frames_by_hand(responses: Responses) -> None:
    assert responses.mask.tolist() == [
        [True, True, False, False, False],
        [True] * 5,
        [False] * 5,
    ]
    # One state more than tokens, but for the response that fills the frame.
    assert responses.states == [3, 5, 1]
    assert responses.ends == [5, 5, 2]
    columns = torch.arange(responses.ids.shape[1] - 1.0).expand(3, -1)
    # Column t speaks of token t + 1, so that of the first response token is prompt length - 1.
    assert responses.frame(columns).tolist() == [[3, 4, 0, 0, 0], [0, 1, 2, 3, 4], [0] * 5]
    frame = responses.state_frame(torch.arange(1.0, 10))
    assert frame.tolist() == [[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [9, 0, 0, 0, 0]]
    some = responses.rows([2, 0])
    assert some.lengths == [0, 2]
    assert some.frame(columns[:2]).tolist() == [[0] * 5, [3, 4, 0, 0, 0]]


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2", "gemma2"])
def test_values_and_gradients_are_those_of_rows_alone(
    family: str, responses: Responses, grads: Any, judge: Any
) -> None:
    dtype = torch.float32 if family == "gemma2" else torch.float64
    model = judge(family, dtype)
    plain = copy.deepcopy(model)
    first = [len(prompt) - 1 for prompt in PROMPTS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = values(model, responses.tokens(), first, responses.states)
    want = torch.cat(
        [alone(plain, row)[f : f + n] for row, f, n in zip(range(3), first, [3, 5, 1], strict=True)]
    )
    tolerance = {"rtol": 2e-4, "atol": 2e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(found, want, **tolerance)
    weights = torch.linspace(-1, 2, 9, dtype=dtype)
    (found * weights).sum().backward()
    (want * weights).sum().backward()
    got = grads(model)
    if family in ("qwen2", "llama"):
        # Their norms compute in fp32, the last layer's once more for the tokens that are valued.
        tolerance = {"rtol": 1e-6, "atol": 1e-6}
    for name, gradient in grads(plain).items():
        torch.testing.assert_close(got[name], gradient, msg=name, **tolerance)


def test_a_token_that_a_row_lacks_is_refused(responses: Responses, judge: Any) -> None:
    with pytest.raises(ValueError, match="name 3 tokens from 4 on, but span 0 has 6"):
        values(judge("llama"), responses.tokens(), [4, 0, 0], [3, 1, 1])


def test_both_models_answer_one_call(responses: Responses, judge: Any, tiny: Any) -> None:
    policy, value_model = tiny("llama"), judge("qwen2")
    logp, entropy, valued = PolicyAndValue(policy, value_model)(responses, temperature=0.5)
    found = logprobs(policy, responses.tokens(), 0.5)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        start, length = len(prompt) - 1, len(response)
        for frame, whole in ((logp, found.logp), (entropy, found.entropy)):
            torch.testing.assert_close(frame[row, :length], whole[row, start : start + length])
            assert frame[row, length:].eq(0).all()
        states = min(length + 1, WIDTH)
        want = alone(value_model, row)[start : start + states]
        torch.testing.assert_close(valued[row, :states], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learning", [True, False])
def test_the_last_layer_computes_only_what_is_valued(
    judge: Any, monkeypatch: Any, learning: bool
) -> None:
    model = judge("gpt2")
    long = Responses.of([[5, 9, 3, 7] * 5] * 2, [[6, 2], [7, 13]], 3, torch.device("cpu"))
    first = [prompt - 1 for prompt in long.prompts]
    values(model, long.tokens(), first, long.states)
    norm, seen = model.base_model.h[-1].ln_2, []
    plain = type(norm).forward

    def counted(self: Any, given: torch.Tensor) -> torch.Tensor:
        if self is norm:
            seen.append(given.shape[1])
        return plain(self, given)

    monkeypatch.setattr(type(norm), "forward", counted)
    with torch.set_grad_enabled(learning):
        values(model, long.tokens(), first, long.states)
    assert seen == [sum(long.states)] == [6]  # of 44 tokens
