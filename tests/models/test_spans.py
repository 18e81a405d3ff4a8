"""Several spans in a row, chosen tokens, statistics, the router's loss: against spans alone."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from fastrl.models import door, policy
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.types import Shared, Tokens

CLOSE = {torch.float64: {"rtol": 1e-6, "atol": 1e-9}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}
DTYPE = {"gemma2": torch.float32, "mamba": torch.float32, "mixtral": torch.float32}
DTYPE |= {"qwen2-moe": torch.float32}  # routers are fp32 in any model


@pytest.fixture
def packed_rows() -> Tokens:
    """Five spans in three rows: ends, middles and nothing scored."""
    ids = torch.randint(3, 97, (3, 20), generator=torch.Generator().manual_seed(7))
    scored = [4, np.array([1, 3, 4]), 8, np.array([], dtype=np.int64), np.array([2, 11])]
    return Tokens(ids, [0, 9, 2, 0, 6], [9, 11, 8, 5, 14], scored, rows=[0, 0, 2, 1, 1])


def wanted(tokens: Tokens) -> list[tuple[int, int, list[int]]]:
    """(row, column of the first token, indices of the scored tokens) of every span."""
    listed = []
    rows = tokens.rows or range(len(tokens.starts))
    for row, start, length, which in zip(
        rows, tokens.starts, tokens.lengths, tokens.scored, strict=True
    ):
        chosen = range(which, length) if isinstance(which, int) else which.tolist()
        listed.append((row, start, list(chosen)))
    return listed


def alone(model: Any, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """(logp, entropy) in (B, T - 1) frames from one plain call per span, and the logits used."""
    frames = torch.zeros(2, tokens.ids.shape[0], tokens.ids.shape[1] - 1, dtype=torch.float64)
    used = []
    for (row, start, chosen), length in zip(wanted(tokens), tokens.lengths, strict=True):
        ids = tokens.ids[row : row + 1, start : start + length]
        logits = model(input_ids=ids).logits[0]
        table = logits.log_softmax(-1)
        for token in chosen:
            line = table[token - 1]
            frames[0, row, start + token - 1] = line[ids[0, token]]
            frames[1, row, start + token - 1] = -(line.exp() * line).sum()
            used.append(logits[token - 1])
    return frames[0], frames[1], used


FAMILIES = ["qwen2", "llama", "gpt2", "mistral", "gemma2", "mixtral", "qwen2-moe", "mamba"]


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_equal_each_alone(
    family: str, tiny: Any, packed_rows: Tokens, twin: Any, score: Any, grads: Any
) -> None:
    dtype = DTYPE.get(family, torch.float64)
    model = tiny(family, dtype)
    plain = twin(model)
    logp, entropy, used = alone(plain, packed_rows)
    weights = torch.linspace(-1, 1, logp.numel()).view(logp.shape).double()
    (weights * logp - weights.flip(0) * entropy).sum().backward()
    got = score(model, packed_rows)
    (weights * got.logp - weights.flip(0) * got.entropy).sum().backward()
    torch.testing.assert_close(got.logp.double(), logp, **CLOSE[dtype])
    torch.testing.assert_close(got.entropy.double(), entropy, **CLOSE[dtype])
    assert int(got.mask.sum()) == len(used) == 5 + 3 + 0 + 0 + 2
    assert torch.equal(got.mask, logp != 0)
    assert got.stats is None
    assert got.aux_loss is None
    mine, theirs = grads(model), grads(plain)
    assert mine.keys() == theirs.keys()
    for name, want in theirs.items():
        limit = CLOSE[dtype]["rtol"] * max(want.abs().max().item(), 1e-3)
        torch.testing.assert_close(mine[name], want, rtol=0, atol=limit)


def test_only_scored_tokens_reach_the_head(
    tiny: Any, packed_rows: Tokens, monkeypatch: Any
) -> None:
    model = tiny("llama")
    prepare_policy(model)
    seen, fed = [], []
    op = door.linear_token_logprobs

    def spy(hidden: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        seen.append(len(hidden))
        return op(hidden, *args, **keywords)

    monkeypatch.setattr(door, "linear_token_logprobs", spy)
    model.get_input_embeddings().register_forward_hook(lambda m, i, o: fed.append(o.shape[1]))
    logprobs(model, packed_rows)
    assert seen == [10]
    # Up to the token before the last one scored: 8, 4, none of two spans, 11.
    assert fed == [8 + 4 + 11]


def test_pieces_hold_whole_spans(tiny: Any, packed_rows: Tokens, monkeypatch: Any) -> None:
    model = tiny("qwen2")
    want = logprobs(model, packed_rows)
    monkeypatch.setitem(policy.PACK_TOKENS, "cpu", 12)
    fed = []
    model.get_input_embeddings().register_forward_hook(lambda m, i, o: fed.append(o.shape[1]))
    with torch.no_grad():
        got = logprobs(model, packed_rows, stats=("top1",))
    assert fed == [8 + 4, 11]
    torch.testing.assert_close(got.logp, want.logp.detach(), **CLOSE[torch.float64])
    assert torch.equal(got.mask, want.mask)
    assert got.stats["top1"].shape == want.logp.shape


@pytest.mark.parametrize("changes", [{}, {"packed": False}, {"head": None}])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_statistics(
    changes: dict[str, Any], temperature: float, tiny: Any, packed_rows: Tokens, twin: Any
) -> None:
    model = tiny("qwen2")
    _, _, used = alone(twin(model), packed_rows)
    z = torch.stack(used).detach() / temperature
    places = [(row, start + j - 1) for row, start, chosen in wanted(packed_rows) for j in chosen]
    tokens = torch.stack([packed_rows.ids[row, column + 1] for row, column in places])
    probabilities = z.softmax(-1)
    want = {
        "log_sum_sq": probabilities.square().sum(-1).log(),
        "top1": (z.argmax(-1) == tokens).double(),
        "mean_logit": z.mean(-1),
    }
    model.__dict__["_fastrl_plan"] = dataclasses.replace(prepare_policy(model), **changes)
    got = logprobs(model, packed_rows, temperature, stats=tuple(want))
    assert list(got.stats) == list(want)
    for name, table in got.stats.items():
        assert not table.requires_grad
        found = torch.stack([table[place] for place in places])
        torch.testing.assert_close(found, want[name], rtol=1e-6, atol=1e-9)
        assert (table[~got.mask] == 0).all()
    with pytest.raises(ValueError, match="stats has 'accuracy'; choose among top1"):
        logprobs(model, packed_rows, stats=("accuracy",))


def padded(tokens: Tokens) -> dict[str, torch.Tensor]:
    """The spans as right-padded rows, as transformers would be given them."""
    width = max(tokens.lengths)
    ids = torch.zeros(len(tokens.starts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for span, length in enumerate(tokens.lengths):
        row, start = tokens.rows[span], tokens.starts[span]
        ids[span, :length] = tokens.ids[row, start : start + length]
        mask[span, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("changes", [{}, {"packed": False}, {"head": None}])
@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_router_loss_is_that_of_the_padded_rows(
    family: str, changes: dict[str, Any], tiny: Any, packed_rows: Tokens, twin: Any, grads: Any
) -> None:
    model = tiny(family, torch.float32)
    plain = twin(model)
    want = plain(**padded(packed_rows), output_router_logits=True).aux_loss
    want.backward()
    theirs = grads(plain)
    without = logprobs(model, packed_rows)
    assert without.aux_loss is None
    model.__dict__["_fastrl_plan"] = dataclasses.replace(prepare_policy(model), **changes)
    got = logprobs(model, packed_rows, aux_loss=True)
    torch.testing.assert_close(got.aux_loss, want, rtol=1e-6, atol=0)
    torch.testing.assert_close(got.logp, without.logp, **CLOSE[torch.float32])
    got.aux_loss.backward()
    mine = grads(model)
    gates = [name for name in theirs if theirs[name].abs().max() > 0]
    assert any("gate" in name for name in gates)
    for name in gates:
        limit = 2e-4 * theirs[name].abs().max().item()
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=limit)
    assert not model.config.output_router_logits


def test_router_loss_of_pieces_and_of_models_without_a_router(
    tiny: Any, packed_rows: Tokens, monkeypatch: Any
) -> None:
    model = tiny("mixtral", torch.float32)
    want = logprobs(model, packed_rows, aux_loss=True).aux_loss
    monkeypatch.setitem(policy.PACK_TOKENS, "cpu", 12)
    with torch.no_grad():
        got = logprobs(model, packed_rows, aux_loss=True).aux_loss
    torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=0)
    assert logprobs(tiny("llama"), packed_rows, aux_loss=True).aux_loss is None


def test_a_config_that_asks_for_router_logits_is_no_obstacle(
    tiny: Any, packed_rows: Tokens
) -> None:
    want = logprobs(tiny("mixtral", torch.float32), packed_rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny("mixtral", torch.float32, output_router_logits=True)
        got = logprobs(model, packed_rows)
    assert got.aux_loss is None
    assert torch.equal(got.logp, want.logp)


def test_bad_spans_are_named(tiny: Any, packed_rows: Tokens) -> None:
    model = tiny("llama")
    given = packed_rows
    alike = dataclasses.replace(given, ids=torch.full_like(given.ids, 5))

    def put(span: int, which: Any) -> list[Any]:
        return [*given.scored[:span], which, *given.scored[span + 1 :]]

    bad = {
        "starts has 5 entries for 4 entries of tokens.rows": {"rows": [0, 0, 2, 1]},
        "span 2: row 3 is not one of 3 rows": {"rows": [0, 0, 3, 1, 1]},
        "spans 0 and 1 overlap in row 0": {"starts": [0, 8, 2, 0, 6]},
        "span 1: scored must rise within 1 ... 10": {"scored": put(1, np.array([3, 11]))},
        "span 4: scored must rise": {"scored": put(4, np.array([3, 3]))},
        "span 0: scored must rise": {"scored": put(0, np.array([0, 3]))},
        "span 0: scored must be a list of integer": {"scored": put(0, np.array([0.5]))},
        "do not begin with the same 2 tokens": {"shared": (Shared((0, 1), 2),)},
        "targets must have the shape of the ids, .3, 20.": {"targets": given.ids[:, :5]},
        "names span 5 of 5": {"shared": (Shared((0, 5), 2),)},
    }
    for message, change in bad.items():
        with pytest.raises(ValueError, match=message):
            logprobs(model, dataclasses.replace(given, **change))
    also = {
        "names span 1 more than once": {"shared": (Shared((0, 1), 2), Shared((1, 2), 2))},
        "span 3 has 5 tokens, but is said to share 6": {"shared": (Shared((0, 3), 6),)},
        "position_offsets differ between spans": {
            "shared": (Shared((0, 1), 2),),
            "position_offsets": [0, 1, 0, 0, 0],
        },
    }
    for message, change in also.items():
        with pytest.raises(ValueError, match=message):
            logprobs(model, dataclasses.replace(alike, **change))


def test_targets_may_differ_from_the_ids(packed_rows, tiny):
    model = tiny("qwen2")
    prepare_policy(model)
    other = packed_rows.ids.roll(5, dims=1)
    got = logprobs(model, dataclasses.replace(packed_rows, targets=other))
    for (row, start, chosen), length in zip(wanted(packed_rows), packed_rows.lengths, strict=True):
        ids = packed_rows.ids[row : row + 1, start : start + length]
        table = model(input_ids=ids).logits[0].log_softmax(-1)
        for token in chosen:
            expected = table[token - 1, other[row, start + token]]
            torch.testing.assert_close(
                got.logp[row, start + token - 1].double(), expected.double(), rtol=1e-4, atol=1e-5
            )
