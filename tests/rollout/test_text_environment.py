"""Episodes with tools: TRL 0.7.11's turns, masks and rewards; histories; what ends an episode."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastrl
from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from fastrl.rollout.text_environment import StringStoppingCriteria, TextEnvironment
from fastrl.rollout.text_history import TextHistory
from tests.rollout.classic_peer import classic_cases as cases

PEER = Path(__file__).with_name("classic_peer")
LIBRARY = SimpleNamespace(
    AutoModelForCausalLMWithValueHead=AutoModelForCausalLMWithValueHead,
    TextEnvironment=TextEnvironment,
)
RECORDED = json.loads((PEER / "recorded.json").read_text())["environments"]


@pytest.fixture(scope="module")
def gpt2():
    return cases.model(LIBRARY, "gpt2")


@pytest.fixture
def words():
    return cases.tokenizer()


def environment(model, tokenizer, **given):
    settings = {
        "tools": cases.TOOLS,
        "reward_fn": cases.reward,
        "prompt": "Use tools.",
        "generation_kwargs": {**cases.GREEDY, "max_new_tokens": 12},
    }
    return TextEnvironment(model, tokenizer, **{**settings, **given})


# --- TRL's episodes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.ENVIRONMENTS)
def test_episodes_are_those_of_trl(name):
    """All queries in one run; TRL answered them one by one."""
    got = cases.play(LIBRARY, name, cases.QUERIES)
    for query, ours, theirs in zip(cases.QUERIES, got, RECORDED[name], strict=True):
        assert ours == theirs, query


def test_the_recording_has_every_way_to_end_and_every_answer_of_a_tool():
    played = [episode for name in RECORDED for episode in RECORDED[name]]
    said = [s for e in played for s, own in zip(e["segments"], e["system"], strict=True) if own]
    assert any(text.startswith("Unknown tool call") for text in said)
    assert any(text.startswith("Tool error: no ") for text in said)
    assert any(text.startswith("Tool error: '") for text in said)
    assert any(text.endswith("ab...<response>") for text in said)
    assert any(text.partition("<")[0].isdigit() for text in said)
    lasts = [episode["last"] for episode in played]
    assert any(text.endswith("<submit>") for text in lasts)
    assert any(text.endswith("</s>") for text in lasts)
    assert any(not episode["completed"] for episode in played)
    assert max(sum(map(bool, e["mask"])) for e in played) > 20


def test_the_models_own_generate_gives_the_same_episodes(gpt2, words):
    model = copy.deepcopy(gpt2)
    instance = model.pretrained_model
    plain = instance.generate
    instance.generate = lambda *args, **given: plain(*args, **given)
    got = environment(model, words).run(cases.QUERIES)
    want = environment(gpt2, words).run(cases.QUERIES)
    for column, expected in zip(got[:3], want[:3], strict=True):
        for ours, theirs in zip(column, expected, strict=True):
            assert torch.equal(ours, theirs)
    assert got[3] == want[3]


def test_the_same_seed_draws_the_same_episode(gpt2, words):
    drawn = {"do_sample": True, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": 1}

    def texts(seed):
        torch.manual_seed(seed)
        played = environment(gpt2, words, generation_kwargs=drawn).run(cases.QUERIES[:6])
        return [history.text for history in played[-1]]

    assert texts(1) == texts(1) != texts(2)


# --- what ends an episode, and turns by hand -----------------------------------------------------


def scripted(monkeypatch, env, *turns):
    """Let the model say these texts, turn by turn, in every episode that goes on."""
    said = iter(turns)

    def speak(rows):
        text = next(said)
        return [env.tokenizer(text, return_tensors="pt").input_ids[0] for _ in rows]

    monkeypatch.setattr(env, "_generate_batched", speak)
    return env


def test_a_submitted_answer_by_hand(monkeypatch, gpt2, words):
    env = scripted(monkeypatch, environment(gpt2, words), "<request><add>ab<call>", "ok<submit>")
    queries, responses, masks, rewards, (history,) = env.run(["7"], scale=0.5)
    assert history.text == "Use tools.7<request><add>ab<call>195<response>ok<submit>"
    assert len(queries[0]) == len("Use tools.7")
    # <request> <add> a b <call> | 1 9 5 <response> | o k <submit>
    assert masks[0].tolist() == [1] * 5 + [0] * 4 + [1] * 3
    assert words.decode(responses[0]) == history.text.removeprefix("Use tools.7")
    assert (
        rewards == [0.5 * (10 + sum(map(ord, "ok<submit>")) % 7)] and history.reward == rewards[0]
    )
    assert (history.completed, history.truncated) == (True, False)


def test_an_episode_longer_than_max_length_is_truncated(monkeypatch, gpt2, words):
    turns = ("<request><add>ab<call>", "<request><add>a<call>")
    # prompt 11, call 5, answer 4: 20 tokens; the second call makes it 24, its answer 27.
    for most, text in ((15, turns[0]), (19, "195<response>"), (23, turns[1])):
        env = scripted(monkeypatch, environment(gpt2, words, max_length=most), *turns)
        history = env.run(["7"])[-1][0]
        assert history.truncated and history.completed
        assert history.last_text_segment == text
    env = scripted(monkeypatch, environment(gpt2, words, max_length=27, max_turns=2), *turns)
    (history,) = env.run(["7"])[-1]
    assert not history.truncated and len(history.tokens) == 27


def test_an_episode_that_fills_the_models_positions_is_truncated(tmp_path, words):
    model = cases.model(LIBRARY, "gpt2")
    table = model.pretrained_model.config.n_positions
    env = environment(model, words, prompt="x" * (table - 3))
    (history,) = env.run(["y"])[-1]
    assert (history.truncated, len(history.tokens)) == (True, table)


def test_an_unknown_tool_and_a_failing_one_are_told_to_the_model(monkeypatch, gpt2, words):
    tools = {"long": lambda query: 42, "fail": lambda query: 1 / 0}
    env = environment(gpt2, words, tools=tools, max_turns=4)
    asked = [f"<request><{name}>q<call>" for name in ("add", "fail", "long")]
    scripted(monkeypatch, env, *asked, "<submit>")
    text = env.run(["7"])[-1][0].text
    said = [part.rpartition("<call>")[2] for part in text.split("<response>")[:-1]]
    assert said == ["Tool error: 'add'", "Tool error: division by zero", "42"]


def test_a_long_answer_of_a_tool_is_cut(gpt2, words):
    env = environment(gpt2, words, tools={"t": lambda query: "a" * 50}, max_tool_reponse=10)
    history = TextHistory("<request><t>q<call>", torch.tensor([3, 4]))
    env.step(history)
    assert history.last_text_segment == "a" * 7 + "...<response>"
    assert history.token_masks.tolist() == [0] * len(history.tokens)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a <request><add>1<2> 3<call> b", ("add", "1<2> 3")),
        ("<request><add>two\nlines<call><request><x>y<call>", ("add", "two\nlines")),
        ("<request>words <add>1<call>", ("add", "1")),
        ("<request>add 1<call>", (None, None)),
        ("<request><add>1", (None, None)),
        ("<add>1<call>", (None, None)),
    ],
)
def test_calls_are_parsed(gpt2, words, text, found):
    assert environment(gpt2, words).parse_tool_call(text) == found


def test_tools_in_a_list_go_by_class_or_function_name(gpt2, words):
    class Adder:
        def __call__(self, query):
            return "sum"

    def upper(query):
        return query.upper()

    env = environment(gpt2, words, tools=[Adder(), upper])
    assert list(env.tools) == ["Adder", "upper"]
    with pytest.raises(ValueError, match="two have one name"):
        environment(gpt2, words, tools=[Adder(), Adder()])


# --- histories -----------------------------------------------------------------------------------


def test_a_history_by_hand():
    history = TextHistory("Hello", torch.tensor([1, 2, 3]))
    history.append_segment("World!", torch.tensor([4, 5]), system=False)
    history.append_segment("!", torch.tensor([6]))
    assert history.text == "HelloWorld!!" and history.last_text_segment == "!"
    assert history.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert history.token_masks.tolist() == [0, 0, 0, 1, 1, 0]
    assert history.text_spans == [(0, 5), (5, 11), (11, 12)]
    assert history.token_spans == [(0, 3), (3, 5), (5, 6)]
    assert history.system_spans == [True, False, True]
    split = [part.tolist() for part in history.split_query_response_tokens()]
    assert split == [[1, 2, 3], [4, 5, 6], [1, 1, 0]]
    assert (history.completed, history.truncated, history.reward) == (False, False, 0.0)
    history.complete(truncated=True)
    assert history.completed and history.truncated
    own = TextHistory("mine", torch.tensor([7]), system=False)
    assert own.token_masks.tolist() == [1] and own.system_spans == [False]


@pytest.mark.parametrize(("text", "tokens"), [("", [1]), ("a", []), ("a", [[1]])])
def test_an_empty_segment_is_refused_and_changes_nothing(text, tokens):
    history = TextHistory("a", torch.tensor([1]))
    with pytest.raises(ValueError, match="neither of them empty"):
        history.append_segment(text, torch.tensor(tokens, dtype=torch.int64))
    assert (history.text, history.tokens.tolist(), len(history.system_spans)) == ("a", [1], 1)


def test_a_history_is_shown(words, capsys):
    history = TextHistory("ab", words("ab", return_tensors="pt").input_ids[0])
    history.show_text()  # a prompt alone is shown too
    assert capsys.readouterr().out.splitlines()[0] == "ab"
    history.append_segment("c<call>", words("c<call>", return_tensors="pt").input_ids[0], False)
    history.append_segment("d", words("d", return_tensors="pt").input_ids[0])
    history.reward = 1.5
    history.show_text(show_legend=True)
    shown = capsys.readouterr().out
    assert shown.startswith("abc<call>d\n\nReward: 1.5\n")
    assert [who for who in ("prompt", "system", "model", "reward") if who not in shown] == []
    history.show_tokens(words)
    assert capsys.readouterr().out.startswith("a b c <call> d \n")


def test_colours_tell_who_wrote_what(words, monkeypatch):
    from fastrl.rollout import text_history

    shown = []
    monkeypatch.setattr(text_history, "_print", shown.append)
    history = TextHistory("ab", torch.tensor([3, 4]))
    history.append_segment("cd", torch.tensor([5]), system=False)
    history.append_segment("e", torch.tensor([6]))
    history.show_text()
    history.show_tokens(words)
    colors = [history.prompt_color, history.model_color, history.system_color, history.reward_color]
    spans = [(span.start, span.end, span.style) for span in shown[0].spans]
    assert spans[:3] == [(0, 2, colors[0]), (2, 4, colors[1]), (4, 5, colors[2])]
    assert spans[3][2] == colors[3]
    styles = [span.style for span in shown[1].spans]
    assert styles == [colors[0], colors[0], colors[1], colors[2], colors[3]]


# --- stopping ------------------------------------------------------------------------------------


def test_generation_stops_when_every_row_has_a_string(words):
    criteria = StringStoppingCriteria(["<call>", "b!"], words)
    prompt = words(["xx<call>", "yyy"], padding=True, return_tensors="pt").input_ids
    steps = (("a", "b"), ("<call>", "c"), ("q", "b"), ("q", "!"))
    ids, said = prompt, []
    for pair in steps:
        new = words(list(pair), return_tensors="pt").input_ids
        ids = torch.cat([ids, new], dim=1)
        said.append(bool(criteria(ids, None)))
    assert said == [False, False, False, True]  # the prompt's own string does not count
    assert criteria.generated_tokens == [2, 4]
    assert criteria.first_call  # ready for another batch


def test_generate_takes_the_criteria(gpt2, words):
    from transformers import StoppingCriteriaList

    ids = words("Use tools.d 4y", return_tensors="pt").input_ids
    plain = gpt2.generate(ids, **cases.GREEDY, max_new_tokens=30)[0, ids.shape[1] :]
    wanted = words.decode(plain[3])
    criteria = StoppingCriteriaList([StringStoppingCriteria([wanted], words)])
    stopped = gpt2.generate(ids, **cases.GREEDY, max_new_tokens=30, stopping_criteria=criteria)
    first = plain.tolist().index(int(plain[3]))
    assert stopped[0, ids.shape[1] :].tolist() == plain[: first + 1].tolist()


def test_stop_strings_and_criteria_of_the_users_own_count_too(gpt2, words):
    given = {**cases.GREEDY, "max_new_tokens": 12}
    query = torch.tensor(words("Use tools.zz top").input_ids)
    (plain,) = environment(gpt2, words)._generate_batched([query])
    string = words.decode(plain[2])
    env = environment(gpt2, words, generation_kwargs={**given, "stop_strings": string})
    (stopped,) = env._generate_batched([query])
    assert stopped.tolist() == plain[: plain.tolist().index(int(plain[2])) + 1].tolist()
    criteria = [lambda ids, scores, **_: torch.full((len(ids),), ids.shape[1] >= len(query) + 2)]
    env = environment(gpt2, words, generation_kwargs={**given, "stopping_criteria": criteria})
    (cut,) = env._generate_batched([query])
    assert cut.tolist() == plain[:2].tolist()
    assert list(env.generation_kwargs) == [*given, "stopping_criteria"]


# --- PPO -----------------------------------------------------------------------------------------


def test_episodes_train_a_policy_and_tool_tokens_do_not_count(monkeypatch, words):
    model = cases.model(LIBRARY, "llama")
    config = PPOConfig(batch_size=2, mini_batch_size=2, ppo_epochs=1, learning_rate=1e-3)
    trainer = PPOTrainer(config, model, tokenizer=words)
    env = environment(
        trainer.model, words, reward_fn=lambda texts: [torch.tensor(1.0)] * len(texts)
    )
    scripted(monkeypatch, env, "<request><add>ab<call>", "ok<submit>")
    queries, responses, masks, rewards, _ = env.run(["7", "88"])
    seen = {}
    compute = trainer.compute_rewards

    def watched(scores, logp, ref, mask):
        seen["mask"] = mask
        return compute(scores, logp, ref, mask)

    trainer.compute_rewards = watched
    stats = trainer.step(queries, responses, rewards, masks)
    assert stats["ppo/mean_scores"] == 1.0
    assert seen["mask"].sum(1).tolist() == [8, 8]  # of 12 response tokens each


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer": None}, "tokenizer must be a tokenizer, got NoneType"),
        ({"model": None}, "model must be a value-head model, got NoneType"),
        ({"tools": {"add": 3}}, "tools: 'add' must be callable"),
        ({"reward_fn": 3}, "reward_fn must be callable"),
        ({"max_turns": 0}, "max_turns must be a whole number of at least 1"),
        ({"max_tool_reponse": 2}, "max_tool_reponse must be a whole number of at least 3"),
        ({"max_length": "long"}, "max_length must be a whole number"),
    ],
)
def test_arguments_that_are_refused(gpt2, words, given, message):
    with pytest.raises(ValueError, match=message):
        environment(**{"model": gpt2, "tokenizer": words, **given})


@pytest.mark.parametrize(
    ("given", "queries", "message"),
    [
        ({}, [], "queries must be a list of texts"),
        ({}, "one", "queries must be a list of texts"),
        ({}, ["a", 3], "queries must be a list of texts"),
        ({"prompt": None}, ["x" * 300], "300 tokens, and the model has 256 positions"),
        ({"reward_fn": None}, ["a"], "reward_fn was not given"),
        ({"reward_fn": lambda texts: [1.0]}, ["a", "b"], "gave 1 rewards to 2 episodes"),
    ],
)
def test_a_run_that_is_refused(gpt2, words, given, queries, message):
    with pytest.raises(ValueError, match=message):
        environment(gpt2, words, **given).run(queries)


def test_names_are_exported():
    assert fastrl.TextEnvironment is TextEnvironment and fastrl.TextHistory is TextHistory
