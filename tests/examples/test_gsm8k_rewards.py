"""examples/scripts/gsm8k_rewards.py: rewards worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "scripts"
GOOD = "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nThat is $<<9*2=18>>18.\nA: 18"
QUESTION = "Her ducks lay 16 eggs. She eats 3, bakes with 4 and sells each other for $2."


@pytest.fixture
def rewards(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gsm8k_rewards

    return gsm8k_rewards


def said(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("16-3-4", 9),
        ("2*(3+4)", 14),
        ("-3 + .5", -2.5),
        ("7/2", 3.5),
        ("7/0", None),
        ("2**9", None),
        ("True+1", None),
        ("open('f')", None),
        ("3+", None),
        ("07", None),
        ("", None),
    ],
)
def test_only_plain_arithmetic_has_a_value(rewards, expression, value):
    assert rewards.value_of(expression) == value


def test_the_answer_line_is_the_last_and_the_only_one(rewards):
    texts = (GOOD, "A: 1,250.5", "A: 3\nA: 3", "A: 3\n", "A: 3 eggs", "so A: 3", "A: ", "3")
    assert rewards.answer_line(said(*texts)) == [1, 1, 0, 0, 0, 0, 0, 0]
    assert rewards.final("A: 1,250.5") == 1250.5
    assert rewards.final("A: -4") == -4


def test_calculations_count_once_each(rewards):
    repeated = "<<1+1=2>>2 <<1+1=2>>2 <<1+1=3>>3"
    open_mark = "<<1+1=2 and nothing closes it"
    texts = (GOOD, repeated, "<<10/3=3.33>>", "<<10/3=3.3>>", open_mark, "no sums\nA: 2")
    assert rewards.arithmetic(said(*texts)) == [1, 0.5, 1, 0, 0, 0]


def test_numbers_come_from_the_problem_or_from_before(rewards):
    invented = "<<16-5=11>>11 <<11*2=22>>22"  # 16 given, 5 not, 11 calculated, 2 given
    too_early = "<<9*2=18>>18 <<16-3-4=9>>9"  # 9 is known only after the second
    wrong = "<<16-3=5>>5 <<5*2=10>>10"  # 5 is the result of a calculation that does not hold
    found = rewards.grounded(said(GOOD, invented, too_early, wrong, "A: 2"), [QUESTION] * 5)
    assert found == [1, 3 / 4, 4 / 5, 3 / 4, 0]


def test_the_right_number(rewards):
    texts = (GOOD, "A: 18.0", "A: 19", "18", "A: 1,800")
    assert rewards.right_number(said(*texts), [18.0, 18.0, 18.0, 18.0, 1800.0]) == [1, 1, 0, 0, 1]
