"""Judges: whose reply is better, in whichever order it is shown, and what is no verdict."""

from __future__ import annotations

import importlib.machinery
import inspect
import math
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest

from fastrl.rewards import judges

PROMPTS = ["a?", "b?", "c?", "d?", "e?", "f?", "g?", "h?"]
PAIRS = [[f"{p} good", f"{p} bad"] if i % 3 else [f"{p} bad", f"{p} good"]
         for i, p in enumerate(PROMPTS)]  # fmt: skip
RIGHT = [0 if i % 3 else 1 for i in range(len(PROMPTS))]


def reply(text):
    return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])


class Client:
    """Finds the good reply in the question; behaves as both clients do."""

    def __init__(self, answer=None):
        self.asked = []
        self.answer = answer
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, *, model, messages, max_tokens):
        assert model == "judge-1"
        return self.chat_completion(messages, max_tokens=max_tokens)

    def chat_completion(self, messages, max_tokens):
        assert max_tokens == 1
        (message,) = messages
        assert message["role"] == "user"
        self.asked.append(message["content"])
        if self.answer is not None:
            return reply(self.answer(message["content"]))
        first = message["content"].index(" good") < message["content"].index(" bad")
        return reply("0" if first else "1")


@pytest.fixture
def installed(monkeypatch):
    """installed(name, **attributes): an importable stand-in for a package."""

    def add(name, **attributes):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    return add


@pytest.fixture
def asking(installed):
    """asking(kind, **given): a judge with a `Client`."""

    def make(kind, answer=None, **given):
        client = Client(answer)
        installed("openai", OpenAI=lambda: client)
        if kind == "openai":
            return judges.OpenAIPairwiseJudge(model="judge-1", **given)
        judge = judges.HfPairwiseJudge(**given)
        judge.client = client
        return judge

    return make


# --- judges that ask -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hf", "openai"])
@pytest.mark.parametrize("shuffle_order", [True, False])
def test_the_better_reply_wins_wherever_it_is_shown(asking, kind, shuffle_order):
    np.random.seed(0)
    judge = asking(kind)
    assert judge.judge(PROMPTS, PAIRS, shuffle_order) == RIGHT
    shown = [asked.index(" good") < asked.index(" bad") for asked in sorted(judge.client.asked)]
    as_given = [place == 0 for place in RIGHT]
    assert (shown == as_given) is not shuffle_order


@pytest.mark.parametrize("kind", ["hf", "openai"])
def test_a_judge_that_prefers_a_place_is_told_apart_by_shuffling(asking, kind):
    np.random.seed(0)
    flips = np.random.choice([True, False], size=len(PROMPTS)).tolist()
    np.random.seed(0)
    got = asking(kind, lambda asked: "0").judge(PROMPTS, PAIRS)
    assert got == [int(flip) for flip in flips] and 0 < sum(got) < len(got)
    assert asking(kind, lambda asked: "0").judge(PROMPTS, PAIRS, False) == [0] * len(PROMPTS)


@pytest.mark.parametrize("said", ["2", "", " 1", "A", None])
def test_what_is_no_verdict_is_a_failure_shown_either_way(asking, said):
    judge = asking("hf", lambda asked: said)
    assert judge.judge(PROMPTS, PAIRS) == [-1] * len(PROMPTS)


def test_the_question_holds_prompt_and_replies(asking):
    judge = asking("hf")
    judge.judge(["what is {x}?"], [["it is good", "it is {bad} bad"]], shuffle_order=False)
    (asked,) = judge.client.asked
    places = [asked.index(part) for part in ("what is {x}?", "it is good", "it is {bad} bad")]
    assert places == sorted(places)
    assert asked.count("0") >= 2 and asked.count("1") >= 2  # both names, in the text and asked for


def test_a_question_of_ones_own(asking):
    own = "Q {prompt} A {response0} B {response1} {{0 or 1}} good bad"
    judge = asking("openai", system_prompt=own, answer=lambda asked: "1")
    assert judge.judge(["p"], [("x", "y")], shuffle_order=False) == [1]
    assert judge.client.asked == ["Q p A x B y {0 or 1} good bad"]
    with pytest.raises(ValueError, match=r"has no \{prompt\}, \{response1\}"):
        judges.HfPairwiseJudge(system_prompt="which? {response0}")


def test_requests_are_limited_and_it_is_said_once(asking, recwarn):
    judge = asking("openai", max_requests=5)
    assert judge.judge(PROMPTS[:3], PAIRS[:3], False) == RIGHT[:3]
    assert judge.judge(PROMPTS[3:6], PAIRS[3:6], False) == [*RIGHT[3:5], -1]
    assert judge.judge(PROMPTS, PAIRS) == [-1] * len(PROMPTS)
    assert (judge.num_requests, len(judge.client.asked)) == (5, 5)
    told = [str(w.message) for w in recwarn if "max_requests=5" in str(w.message)]
    assert len(told) == 1
    assert asking("openai", max_requests=None).judge(PROMPTS, PAIRS) == RIGHT


def test_the_client_is_told_model_and_token(monkeypatch):
    made = []
    monkeypatch.setattr(judges, "InferenceClient", lambda **given: made.append(given))
    judges.HfPairwiseJudge("some/model", token="secret")
    judges.HfPairwiseJudge()
    default = "meta-llama/Meta-Llama-3-70B-Instruct"
    assert made == [{"model": "some/model", "token": "secret"}, {"model": default, "token": None}]


# --- PairRM --------------------------------------------------------------------------------------


class Blender:
    """Scores a reply by its length; ranks begin at 1."""

    def loadranker(self, name, device):
        assert name == "llm-blender/PairRM" and str(device) == "cpu"

    def rank(self, prompts, completions, return_scores, disable_tqdm):
        self.shown = [list(pair) for pair in completions]
        scores = np.array([[float(len(text)) for text in pair] for pair in completions])
        if return_scores:
            return scores
        return 1 + (scores < scores[:, ::-1])


@pytest.fixture
def pair_rm(installed):
    installed("llm_blender", Blender=Blender)
    return judges.PairRMJudge()


@pytest.mark.parametrize("shuffle_order", [True, False])
def test_pair_rm_ranks_and_gives_probabilities(pair_rm, shuffle_order):
    np.random.seed(1)
    pairs = [["x" * 3, "x"], ["x", "x" * 4], ["x" * 2, "x" * 3], ["x" * 5, "x"]]
    assert pair_rm.judge(PROMPTS[:4], pairs, shuffle_order) == [0, 1, 1, 0]
    assert (pair_rm.blender.shown == pairs) is not shuffle_order
    got = pair_rm.judge(PROMPTS[:4], pairs, shuffle_order, return_scores=True, temperature=2.0)
    margins = (2, -3, -1, 4)
    assert got == pytest.approx([1 / (1 + math.exp(-m / 2)) for m in margins], rel=1e-12)


def test_pair_rm_refuses(pair_rm):
    with pytest.raises(ValueError, match=r"completions\[1\] must be 2 texts"):
        pair_rm.judge(["a", "b"], [["x", "y"], ["x", "y", "z"]])
    with pytest.raises(ValueError, match="2 prompts need as many pairs, got 1"):
        pair_rm.judge(["a", "b"], [["x", "y"]])
    with pytest.raises(ValueError, match="temperature must be positive"):
        pair_rm.judge(["a"], [["x", "y"]], return_scores=True, temperature=0)


# --- packages that are missing -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "module", "line"),
    [
        (judges.PairRMJudge, "llm_blender", "pip install llm-blender"),
        (judges.OpenAIPairwiseJudge, "openai", "pip install openai"),
    ],
)
def test_a_missing_package_is_named_at_use(monkeypatch, kind, module, line):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == module else find(name)
    )
    with pytest.raises(ValueError, match=f"{kind.__name__} needs.*{line}"):
        kind()


def test_a_package_that_does_not_import_is_named(monkeypatch, tmp_path):
    (tmp_path / "llm_blender.py").write_text("from transformers.utils.hub import GONE_FROM_HERE")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_blender", raising=False)
    with pytest.raises(RuntimeError, match=r"llm-blender is installed but .*GONE_FROM_HERE"):
        judges.PairRMJudge()


# --- by chance, and together ---------------------------------------------------------------------


def test_random_judges_give_orders_and_places():
    orders = judges.RandomRankJudge().judge(["a"] * 40, [["x", "y", "z"]] * 39 + [["x"]])
    assert {tuple(sorted(order)) for order in orders[:-1]} == {(0, 1, 2)} and orders[-1] == [0]
    assert len({tuple(order) for order in orders}) > 4
    places = judges.RandomPairwiseJudge().judge(["a"] * 40, [["x", "y"]] * 40)
    assert set(places) == {0, 1}


class Says(judges.BaseBinaryJudge):
    def __init__(self, *verdicts):
        self.verdicts = list(verdicts)

    def judge(self, prompts, completions, gold_completions=None, shuffle_order=True):
        assert (completions, gold_completions, shuffle_order) == (["x"] * 5, ["g"] * 5, False)
        return self.verdicts


def test_all_must_agree():
    judge = judges.AllTrueJudge([Says(1, 1, 0, 0, -1), Says(1, 0, 0, -1, 1)])
    assert judge.judge(["p"] * 5, ["x"] * 5, ["g"] * 5, False) == [1, 0, 0, -1, -1]
    wrong = judges.AllTrueJudge([Says(1, 2, 1, 1, 1)])
    with pytest.raises(ValueError, match=r"\(2,\) of completion 1"):
        wrong.judge(["p"] * 5, ["x"] * 5, ["g"] * 5, False)
    with pytest.raises(ValueError, match="judges is empty"):
        judges.AllTrueJudge([])


def test_kinds_and_what_a_subclass_owes():
    for kind in (judges.BaseJudge, judges.BaseRankJudge, judges.BasePairwiseJudge):
        with pytest.raises(TypeError, match="abstract"):
            kind()
    assert issubclass(judges.BasePairwiseJudge, judges.BaseJudge)
    assert issubclass(judges.BaseBinaryJudge, judges.BaseJudge)
    assert not issubclass(judges.BaseRankJudge, judges.BaseJudge)
    for kind in (judges.RandomPairwiseJudge, judges.PairRMJudge, judges.HfPairwiseJudge):
        names = list(inspect.signature(kind.judge).parameters)
        assert names[:4] == ["self", "prompts", "completions", "shuffle_order"]
