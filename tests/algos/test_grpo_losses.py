"""GRPO's losses against TRL's, against the papers' formulas one token at a time, and regrouped."""

import json
import math
from pathlib import Path

import pytest
import torch

from fastrl.algos.grpo_losses import (
    CORRECTIONS,
    LOSSES,
    Answers,
    Settings,
    Step,
    clipped_surrogate,
    engine_ratio,
    high_entropy,
    on_policy,
    token_losses,
    weighted_sum,
)

PEER = json.loads((Path(__file__).parent / "grpo_peer" / "losses.json").read_text())
DEFAULTS = {
    "importance_sampling_level": "token",
    "beta": 0.0,
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "sapo_temperature_neg": 1.05,
    "sapo_temperature_pos": 1.0,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "off_policy_mask_threshold": None,
    "use_bias_correction_kl": True,
}
# TRL's key: the figure of ours whose mean over tokens (or answers) it is
METRICS = {
    "clip_ratio/low_mean": "clipped_low",
    "clip_ratio/high_mean": "clipped_high",
    "clip_ratio/region_mean": "clipped",
    "cispo_clip_ratio": "clipped",
    "vespo/phi_seq_mean": "phi",
}


def settings(loss, **changes):
    return Settings(loss_type=loss, **(DEFAULTS | changes))


# The peer


def recorded_case(name):
    """(the answers, the settings and the step that TRL was given, what it returned)"""
    loss, variant = name.split("/")
    changes = dict(PEER["variants"][variant])
    x = {key: torch.tensor(value) for key, value in PEER["answers"].items()}
    mask = x["mask"].bool()
    kept = None
    if "top_entropy_quantile" in changes:
        kept = high_entropy(x["entropy"], mask, changes.pop("top_entropy_quantile"))
    ratios = {"engine": "ratio_of_tokens", "engine_answers": "ratio_of_answers"}
    answers = Answers(
        logp=x["logp"].requires_grad_(),
        mask=mask,
        advantages=x["advantages"],
        old_logp=None if variant == "on_policy" else x["old_logp"],
        ref_logp=x["ref_logp"],
        sampled_logp=x["sampled_logp"] if variant == "masks" else None,
        engine_ratio=x[ratios[variant]] if variant in ratios else None,
        kept=kept,
    )
    cycle = {"accumulation": 1, "slices_per_generation": 1} if variant == "evaluated" else {}
    lengths = mask.sum(1)
    step = Step(lengths=lengths, slices=torch.zeros_like(lengths), **(PEER["step"] | cycle))
    return answers, settings(loss, **changes), step, PEER["cases"][name]


@pytest.mark.parametrize("name", PEER["cases"])
def test_equals_trl(name):
    answers, chosen, step, expected = recorded_case(name)
    found = token_losses(answers, chosen)
    loss = weighted_sum(found.loss, LOSSES[chosen.loss_type].weight(step))
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5, abs=1e-7)
    gradient = torch.tensor(expected["gradient"]).view_as(answers.logp)
    torch.testing.assert_close(answers.logp.grad, gradient, rtol=2e-5, atol=1e-7)
    for key, value in expected["metrics"].items():
        if key == "kl":
            assert (found.kl.sum() / answers.mask.sum()).item() == pytest.approx(value, rel=1e-5)
        elif key in METRICS:
            figure = found.figures[METRICS[key]].float()
            counted = figure if figure.shape[1] == 1 else figure[answers.mask]
            assert counted.mean().item() == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_every_loss_was_recorded_in_every_variant():
    assert {name.split("/")[0] for name in PEER["cases"]} == set(LOSSES)
    assert len(PEER["cases"]) == len(LOSSES) * len(PEER["variants"]) - 1


# The papers, one token at a time


def literal_token(s, advantage, r, logp, log_w):
    """The loss of one token; r its ratio, log_w the log of its answer's whole ratio."""
    above = s.epsilon if s.epsilon_high is None else s.epsilon_high
    if s.loss_type == "cispo":
        return -min(r.item(), above) * advantage * logp
    if s.loss_type == "sapo":
        tau = s.sapo_temperature_pos if advantage > 0 else s.sapo_temperature_neg
        return -advantage * 4 / tau / (1 + (-tau * (r - 1)).exp())
    if s.loss_type == "vespo":
        sign = "pos" if advantage >= 0 else "neg"
        k, lam = getattr(s, f"vespo_k_{sign}"), getattr(s, f"vespo_lambda_{sign}")
        w = math.exp(log_w)
        return -(w**k) * math.exp(lam * (1 - w)) * advantage * logp
    bounded = r if s.delta is None else torch.minimum(r, torch.tensor(s.delta).double())
    clipped = r.clamp(1 - s.epsilon, 1 + above)
    return -torch.minimum(bounded * advantage, clipped * advantage)


def literal_answer(s, row):
    """The losses of an answer's tokens, in a list; row: logp, old, ref and the advantage."""
    logp, old, ref, advantage = row
    apart = [new - before for new, before in zip(logp, old, strict=True)]
    log_w = sum(apart).item()
    losses = []
    for t, difference in enumerate(apart):
        whole = s.importance_sampling_level == "sequence"
        r = (sum(apart) / len(apart) if whole else difference).exp()
        token = literal_token(s, advantage, r, logp[t], log_w)
        if s.beta:
            kl = (ref[t] - logp[t]).exp() - (ref[t] - logp[t]) - 1
            token = token + s.beta * (kl * r if s.use_bias_correction_kl else kl)
        losses.append(token)
    return losses


def literal_slice(s, rows, step):
    """The loss of one micro-batch as the papers (and TRL) reduce it, not yet accumulated."""
    sums = [sum(literal_answer(s, row)) for row in rows]
    lengths = [len(row[0]) for row in rows]
    match s.loss_type:
        case "grpo" | "sapo":
            means = [total / n for total, n in zip(sums, lengths, strict=True)]
            return sum(means) / len(rows) / step["accumulation"]
        case "bnpo":
            return sum(sums) / sum(lengths) / step["accumulation"]
        case "dr_grpo":
            return sum(sums) / (len(rows) * step["max_completion_length"]) / step["accumulation"]
        case "luspo":
            return sum(sums) / len(rows) / step["accumulation"]
        case "dapo" | "cispo" | "vespo":
            share = step["slices_per_generation"] / step["accumulation"]
            return sum(sums) / step["generation_tokens"] * step["ranks"] * share


def drawn_rows(seed, lengths):
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for n in lengths:
        logp = -3 * torch.rand(n, generator=draw, dtype=torch.float64)
        old, ref = (
            logp + 0.3 * torch.randn(n, generator=draw, dtype=torch.float64) for _ in range(2)
        )
        rows.append((logp, old, ref, float(torch.randn((), generator=draw))))
    return rows


def padded(rows, leaves):
    """The rows as `Answers` of their own longest length, NaN beyond each row's end."""

    def column(parts):
        return torch.nn.utils.rnn.pad_sequence(
            parts, batch_first=True, padding_value=torch.nan
        ).float()

    logp = column(leaves)
    lengths = torch.tensor([len(row[0]) for row in rows])
    return Answers(
        logp=logp,
        mask=torch.arange(logp.shape[1]) < lengths[:, None],
        advantages=torch.tensor([row[3] for row in rows]),
        old_logp=column([row[1] for row in rows]),
        ref_logp=column([row[2] for row in rows]),
    )


LENGTHS = [3, 9, 1, 6, 2, 7, 4, 4, 5, 8, 1, 3]
SLICES = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]  # of 3, 4 and 5 answers
CYCLE = {
    "accumulation": 3,
    "slices_per_generation": 6,
    "generation_tokens": 131,
    "ranks": 2,
    "max_completion_length": 9,
}
GROUPINGS = {
    "as drawn": [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11]],
    "by length": [[2, 10, 4], [0, 11, 6, 7], [8, 3, 5], [9, 1]],
    "all at once": [list(range(12))],
    "one by one": [[i] for i in reversed(range(12))],
}
CHANGES = {
    "token": {},
    "sequence": {"importance_sampling_level": "sequence"},
    "kl": {"beta": 0.2, "epsilon_high": 0.4, "delta": 1.5},
    "plain kl": {"beta": 0.2, "use_bias_correction_kl": False},
}


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("loss", LOSSES)
def test_weighted_sum_is_the_sum_of_the_slices_however_rows_are_grouped(loss, changes):
    chosen = settings(loss, **CHANGES[changes])
    rows = drawn_rows(len(loss), LENGTHS)
    for row in rows:
        row[0].requires_grad_()
    expected = sum(
        literal_slice(chosen, [r for r, of in zip(rows, SLICES, strict=True) if of == k], CYCLE)
        for k in range(3)
    )
    expected.backward()
    gradient = torch.cat([row[0].grad for row in rows]).float()
    step = Step(lengths=torch.tensor(LENGTHS), slices=torch.tensor(SLICES) + 3, **CYCLE)
    weights = LOSSES[loss].weight(step)
    for grouping in GROUPINGS.values():
        assert sorted(i for part in grouping for i in part) == list(range(12))
        leaves = [row[0].detach().clone().requires_grad_() for row in rows]
        total = 0.0
        for part in grouping:
            answers = padded([rows[i] for i in part], [leaves[i] for i in part])
            value = weighted_sum(token_losses(answers, chosen).loss, weights[part])
            value.backward()
            total += value.item()
        assert total == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        found = torch.cat([leaf.grad for leaf in leaves]).float()
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_slices_that_differ_weigh_differently():
    """The test above would pass for weights that ignore the slice only if they did not matter."""
    step = Step(lengths=torch.tensor(LENGTHS), slices=torch.tensor(SLICES), **CYCLE)
    assert LOSSES["grpo"].weight(step)[[2, 10]].tolist() == pytest.approx([1 / 9, 1 / 15])
    assert LOSSES["bnpo"].weight(step)[[0, 3]].tolist() == pytest.approx([1 / 39, 1 / 57])
    assert LOSSES["luspo"].weight(step)[[0, 3]].tolist() == pytest.approx([1 / 9, 1 / 12])
    assert LOSSES["dr_grpo"].weight(step)[[0, 3]].tolist() == pytest.approx([1 / 81, 1 / 108])
    assert LOSSES["dapo"].weight(step)[[0, 3]].tolist() == pytest.approx([2 * 6 / 3 / 131] * 2)


def test_answers_without_tokens_weigh_nothing_and_break_nothing():
    """Truncated completions that mask_truncated_completions empties, a whole slice of them."""
    lengths = torch.tensor([0, 0, 2])
    step = Step(lengths=lengths, slices=torch.tensor([0, 0, 1]), **CYCLE | {"generation_tokens": 0})
    logp = torch.full((3, 2), -1.0, requires_grad=True)
    answers = Answers(
        logp=logp,
        mask=torch.arange(2) < lengths[:, None],
        advantages=torch.ones(3),
        old_logp=torch.full((3, 2), -1.1),
        ref_logp=torch.full((3, 2), -1.2),
    )
    for name, loss in LOSSES.items():
        for level in ("token", "sequence"):
            chosen = settings(name, beta=0.1, importance_sampling_level=level)
            weights = loss.weight(step)
            assert weights.isfinite().all()
            (gradient,) = torch.autograd.grad(
                weighted_sum(token_losses(answers, chosen).loss, weights), logp
            )
            assert gradient[:2].eq(0).all() and gradient[2].ne(0).all(), (name, level)


def test_advantages_of_tokens():
    """A subclass may give each token its own: the same as one answer of each."""
    x = {key: torch.tensor(value) for key, value in PEER["answers"].items()}
    answers = Answers(
        logp=x["logp"],
        mask=x["mask"].bool(),
        advantages=x["advantages"][:, None].expand_as(x["logp"]),
        old_logp=x["old_logp"],
    )
    by_row = Answers(x["logp"], x["mask"].bool(), x["advantages"], x["old_logp"])
    for name in LOSSES:
        found = token_losses(answers, settings(name, off_policy_mask_threshold=0.1)).loss
        expected = token_losses(by_row, settings(name, off_policy_mask_threshold=0.1)).loss
        assert found.equal(expected)


def test_vespo_of_answers_far_off_policy_is_nothing_rather_than_nan():
    old = torch.tensor([[-60.0, -60.0], [0.0, 0.0], [-1.0, -1.0]])
    new = torch.tensor([[0.0, 0.0], [-60.0, -60.0], [-1.0, -1.0]])
    answers = Answers(new, torch.ones(3, 2).bool(), torch.ones(3), old)
    phi = token_losses(answers, settings("vespo")).figures["phi"]
    # W = e^20; W = 1e-8: e^3 1e-16; W = 1
    assert phi[:, 0].tolist() == pytest.approx([0.0, math.exp(3) * 1e-16, 1.0], abs=1e-18)


def test_a_reference_is_asked_for():
    answers = Answers(torch.zeros(1, 1), torch.ones(1, 1).bool(), torch.ones(1))
    with pytest.raises(ValueError, match=r"beta=0.1.*ref_logp"):
        token_losses(answers, settings("grpo", beta=0.1))


# The parts


@pytest.mark.parametrize("bounds", [(None, 1.5), (0.6, None), (0.6, 1.5)])
@pytest.mark.parametrize("mode", CORRECTIONS)
def test_engine_ratio_one_answer_at_a_time(mode, bounds):
    x = {key: torch.tensor(value) for key, value in PEER["answers"].items()}
    mask = x["mask"].bool()
    found = engine_ratio(x["old_logp"], x["sampled_logp"], mask, mode, *bounds)
    low, high = (math.nan if b is None else b for b in bounds)

    def bounded(ratio):
        if ratio < low:
            return low if "truncate" in mode else 0.0
        if ratio > high:
            return high if "truncate" in mode else 0.0
        return ratio

    touched = 0
    for i in range(len(mask)):
        apart = []
        for t in range(mask.shape[1]):
            old, sampled = x["old_logp"][i, t].item(), x["sampled_logp"][i, t].item()
            apart.append(old - sampled if mask[i, t] and not math.isnan(sampled) else 0.0)
        if mode.startswith("sequence"):
            apart = [sum(apart)]
        expected = [bounded(math.exp(d)) for d in apart]
        touched += sum(e != math.exp(d) for e, d in zip(expected, apart, strict=True))
        assert found[i].tolist() == pytest.approx(expected, rel=1e-5)
    assert touched


def test_engine_ratio_refuses_other_modes():
    with pytest.raises(ValueError, match="'token' is none of token_truncate, token_mask"):
        engine_ratio(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool(), "token", 0, 1)


def test_off_policy_answers_are_dropped():
    old = torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]])
    new = torch.tensor([[-2.0, -1.2], [-2.0, -1.2], [-2.0, 0.0], [-1.0, 9.0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]]).bool()
    answers = Answers(new, mask, torch.tensor([-1.0, 1.0, -1.0, -1.0]), old)
    # means of old - new: 0.6 (A < 0: dropped), 0.6 (A > 0), 0, and 0 where only one token counts
    assert on_policy(answers, 0.5)[:, 0].tolist() == [False, True, True, True]
    sampled = torch.tensor([[torch.nan, -1.0]]).expand(4, 2)
    seen = Answers(new, mask, answers.advantages, old, sampled_logp=sampled)
    assert on_policy(seen, 0.05)[:, 0].tolist() == [False, True, True, True]
    assert on_policy(seen, 0.11)[:, 0].tolist() == [True, True, True, True]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 0.55, 0.8, 0.99])
def test_high_entropy_is_a_quantile(share):
    draw = torch.Generator().manual_seed(1)
    for size in (1, 2, 11, 101):
        entropy = torch.rand(3, size, generator=draw).mul(20).round() / 20  # with ties
        mask = torch.rand(3, size, generator=draw) < 0.7
        mask[0, 0] = True
        bar = torch.quantile(entropy[mask], 1 - share)
        assert high_entropy(entropy, mask, share).equal((entropy >= bar) & mask)
        pool = torch.cat([entropy[mask], torch.full((50,), 2.0)])
        bar = torch.quantile(pool, 1 - share)
        assert high_entropy(entropy, mask, share, pool).equal((entropy >= bar) & mask)
    nothing = torch.zeros(2, 3).bool()
    assert not high_entropy(torch.ones(2, 3), nothing, share).any()


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5])
    advantage = torch.tensor([1.0, -1.0, 2.0, -2.0])
    # pessimistic: -min(r A, clip(r) A)
    expected = [-0.5, 0.8, -2.6, 3.0]
    assert clipped_surrogate(ratio, advantage, 0.2, 0.3).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_outside_the_mask_reaches_loss_or_gradient(name, level):
    x = {key: torch.tensor(value) for key, value in PEER["answers"].items()}
    mask = x["mask"].bool()
    chosen = settings(
        name, beta=0.2, off_policy_mask_threshold=0.1, importance_sampling_level=level
    )
    outcome = []
    for outside in (0.0, torch.nan, -torch.inf):
        fill = {k: x[k].masked_fill(~mask, outside) for k in ("old_logp", "ref_logp")}
        logp = x["logp"].masked_fill(~mask, outside).requires_grad_()
        found = token_losses(Answers(logp, mask, x["advantages"], **fill), chosen)
        found.loss.sum().backward()
        outcome.append((found.loss, found.kl, logp.grad))
    for other in outcome[1:]:
        assert all(a.equal(b) for a, b in zip(outcome[0], other, strict=True))
