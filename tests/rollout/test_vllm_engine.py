"""vLLM in this process: what it is given, what it answers, and when it sleeps."""

from __future__ import annotations

import importlib.metadata
import os
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from fastrl.algos.grpo_config import GRPOConfig
from fastrl.rollout import Request, Sampling
from fastrl.rollout.answerer import Answerer
from fastrl.rollout.vllm_engine import Colocated
from fastrl.rollout.vllm_settings import Draws, calls, probe

REQUESTS = [Request((5, 6), (1, 2, 3), (4, 4, 4)), Request((9,), (4,), (2,))]


def alone(**others):
    """One process on the CPU."""
    facts = {
        "device": torch.device("cpu"),
        "num_processes": 1,
        "process_index": 0,
        "local_process_index": 0,
        "is_main_process": True,
        "wait_for_everyone": lambda: None,
    }
    return SimpleNamespace(**{**facts, **others})


def settings(**fields):
    return GRPOConfig("out", use_vllm=True, use_cpu=True, bf16=False, report_to=[], **fields)


@pytest.fixture
def named(tiny, tmp_path):
    """A model that was loaded from a folder."""
    model = tiny("qwen2", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "policy")
    return type(model).from_pretrained(tmp_path / "policy")


@pytest.fixture
def colocated(fake_vllm, named):
    """colocated(sampling=Sampling(), **fields): an engine, and the stand-in behind it."""

    def build(sampling=None, accelerator=None, **fields):
        vllm = fake_vllm()
        others = {n: fields.pop(n) for n in ("generation_kwargs", "max_num_seqs") if n in fields}
        sampling = sampling or Sampling()
        made = Colocated(named, accelerator or alone(), settings(**fields), sampling, **others)
        return made, vllm.LLM.made[-1]

    return build


def test_vllm_is_not_imported_before_it_is_used():
    assert "vllm" not in sys.modules


def test_absent(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=r'vLLM is not installed; pip install "vllm>=0.22.0"'):
        probe()


@pytest.mark.parametrize("version", ["0.21.3", "0.11.0rc1", "0.9.2+cu129"])
def test_too_old(fake_vllm, version):
    fake_vllm(version)
    with pytest.raises(ImportError, match=r'too old; pip install "vllm>=0.22.0"'):
        probe()


@pytest.mark.parametrize(
    ("version", "packed"),
    [("0.22.0", False), ("0.27.1", False), ("0.28.0", True), ("0.31.0+cu130", True)],
)
def test_what_it_can_do(fake_vllm, version, packed, silent):
    fake_vllm(version)
    assert probe().packed_at_init is packed
    assert probe().version == version


def test_a_newer_one_is_said(fake_vllm):
    fake_vllm("0.99.0")
    with pytest.warns(UserWarning, match=r"0.99.0 is newer than 0.31.0"):
        assert probe().packed_at_init


def test_it_is_built_with_the_fields(colocated, named):
    before = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    engine, llm = colocated(
        vllm_gpu_memory_utilization=0.4,
        vllm_max_model_length=99,
        vllm_model_impl="transformers",
        max_num_seqs=24,
    )
    assert isinstance(engine, Answerer)
    assert llm.arguments == {
        "model": named.name_or_path,
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "seed": 0,
        "gpu_memory_utilization": 0.4,
        "max_model_len": 99,
        "max_num_seqs": 24,
        "max_num_batched_tokens": 4096,
        "enable_sleep_mode": False,
        "model_impl": "transformers",
        "distributed_executor_backend": "external_launcher",
        "logprobs_mode": "processed_logprobs",
    }
    assert llm.environment["RANK"] == "0" and llm.environment["WORLD_SIZE"] == "1"
    assert int(llm.environment["MASTER_PORT"]) > 0
    assert {name: os.environ.get(name) for name in before} == before


def test_ranks_draw_differently(colocated):
    _, llm = colocated(accelerator=alone(num_processes=8, process_index=5))
    assert llm.arguments["seed"] == 5
    assert llm.environment["RANK"] == "5" and llm.environment["WORLD_SIZE"] == "8"


def test_answers_come_in_order(colocated):
    engine, llm = colocated()
    several, one = engine.answers(REQUESTS)
    # an answer's tokens are its prompt's sum plus its number, and what follows
    assert [a.token_ids for a in several] == [(11, 12, 13, 14), (12, 13, 14, 15), (13, 14, 15, 16)]
    assert [a.token_ids for a in one] == [(9, 10)]
    assert several[1].logp == tuple(-t / 128 for t in (12, 13, 14, 15))
    assert several[1].logp_full == several[1].logp
    assert {a.finish for a in (*several, *one)} == {"length"}
    # and each prompt was fed once
    assert [(ids, params.n, params.max_tokens) for ids, params in llm.asked] == [
        ([5, 6], 3, 4),
        ([9], 1, 2),
    ]
    assert engine.answers([]) == []
    assert llm.log == ["generate"]


def test_answers_of_other_limits_are_drawn_apart(colocated):
    engine, llm = colocated()
    (answers,) = engine.answers([Request((5,), (1, 2, 3), (2, 5, 2))])
    assert [len(a.token_ids) for a in answers] == [2, 5, 2]
    assert [(params.n, params.max_tokens) for _, params in llm.asked] == [(2, 2), (1, 5)]
    assert [call.numbers for call in calls([Request((5,), (1, 2, 3), (2, 5, 2))])] == [(0, 2), (1,)]


def test_the_settings_are_passed(colocated):
    how = Sampling(0.7, 20, 0.9, 0.05, 1.1, frozenset({2, 7}))
    engine, llm = colocated(how, generation_kwargs={"presence_penalty": 0.5, "seed": 3})
    engine.answers(REQUESTS)
    params = llm.asked[0][1]
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.7, 20, 0.9, 0.05)
    assert (params.repetition_penalty, params.presence_penalty, params.seed) == (1.1, 0.5, 3)
    assert (params.ignore_eos, params.stop_token_ids) == (True, [2, 7])
    assert (params.logprobs, params.flat_logprobs, params.detokenize) == (0, True, False)
    assert params.structured_outputs is None
    # other settings for one call
    engine.generate(REQUESTS, Sampling(temperature=0.3))
    assert llm.asked[-1][1].temperature == 0.3
    assert llm.asked[-1][1].presence_penalty == 0.5


def test_an_answer_ends_by_a_token_a_string_or_the_limit(colocated):
    engine, _ = colocated(Sampling(eos=frozenset({2})))
    (answers,) = engine.answers([Request((5, 6), (1, 2), (4, 4))])
    assert [(a.token_ids, a.finish) for a in answers] == [
        ((11, 12, 2), "eos"),
        ((12, 13, 14, 15), "length"),
    ]
    (stopped,) = engine.generate([Request((5, 6), (1,), (4,))], Sampling(stop=("x",)))
    assert (stopped[0].token_ids, stopped[0].finish) == ((11, 12, 13), "stop")


def test_generation_kwargs_go_before_the_sampling():
    draws = Draws.of(
        Sampling(temperature=0.5, eos=frozenset({2})),
        {"temperature": 0.8, "stop": "x", "stop_token_ids": [4], "top_k": 3},
        None,
    )
    assert draws.sampling == Sampling(0.8, 3, eos=frozenset({2, 4}), stop=("x",))
    assert not draws.extra


@pytest.mark.parametrize(
    ("sampling", "extra", "regex", "known"),
    [
        (Sampling(0.7), {}, None, True),
        (Sampling(0.7), {"seed": 1}, None, True),
        (Sampling(0), {}, None, True),
        (Sampling(top_k=5), {}, None, False),
        (Sampling(0, repetition_penalty=1.2), {}, None, False),
        (Sampling(0.7), {"presence_penalty": 1.0}, None, False),
        (Sampling(0.7), {"logit_bias": {1: 2.0}}, None, False),
        (Sampling(0.7), {}, "a+", False),
    ],
)
def test_full_log_probabilities_are_given_where_nothing_filtered(sampling, extra, regex, known):
    answer = Draws.of(sampling, extra, regex).completion([4, 5], [-0.5, -1.5], "length", None)
    assert answer.logp_full == ((-0.5, -1.5) if known else None)
    # the best token was taken, not drawn
    assert answer.logp == ((0.0, 0.0) if sampling.temperature == 0 else (-0.5, -1.5))


def test_a_structure_is_asked_for(colocated):
    engine, llm = colocated(vllm_structured_outputs_regex=r"\d+")
    engine.answers(REQUESTS)
    assert llm.asked[0][1].structured_outputs.regex == r"\d+"


REFUSED = [
    ({"generation_kwargs": {"n": 3}}, "n is decided by num_generations"),
    ({"generation_kwargs": {"max_tokens": 3}}, "max_tokens is decided by max_completion_length"),
    ({"generation_kwargs": {"top_q": 3}}, "vLLM does not take them.*top_q"),
    ({"generation_kwargs": {"top_p": 3.0}}, "vLLM does not take them.*top_p"),
    ({"generation_kwargs": {"structured_outputs": "a"}}, "must be a dictionary, got str"),
    ({"sampling": Sampling(temperature=0.001)}, "vLLM would raise it to 0.01"),
    (
        {
            "vllm_structured_outputs_regex": "a",
            "generation_kwargs": {"structured_outputs": {"regex": "b"}},
        },
        "name two structures",
    ),
    ({"accelerator": alone(num_processes=3), "vllm_tensor_parallel_size": 2}, "must divide"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_wrong_settings_are_refused_before_an_engine_is_made(
    colocated, fake_vllm, arguments, message
):
    with pytest.raises(ValueError, match=message):
        colocated(**arguments)
    assert fake_vllm().LLM.made == []


def test_a_model_without_a_name_is_refused(fake_vllm, tiny):
    fake_vllm()
    with pytest.raises(ValueError, match="loads the policy by name"):
        Colocated(tiny("qwen2"), alone(), settings(), Sampling())


def test_what_vllm_cannot_have_meant_is_an_error():
    draws = Draws.of(Sampling(), None, None)
    with pytest.raises(RuntimeError, match="ended an answer with 'abort'"):
        draws.completion([4], [-1.0], "abort", None)
    with pytest.raises(RuntimeError, match="1 log-probabilities for 2 tokens"):
        draws.completion([4, 5], [-1.0], "stop", None)


def test_sync_loads_the_merged_weights(colocated, named, tmp_path):
    engine, llm = colocated()
    policy = get_peft_model(named, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"]))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    engine.sync(policy, alone())
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, before[name])
    policy.merge_and_unload().save_pretrained(tmp_path / "merged")
    want = load_file(tmp_path / "merged" / "model.safetensors")
    assert llm.weights.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(llm.weights[name], tensor, rtol=0, atol=1e-6)
    assert llm.log == ["reload_weights", "reset_prefix_cache"]
    engine.answers(REQUESTS)


def test_weights_that_vllm_leaves_are_an_error(colocated, named, monkeypatch):
    engine, llm = colocated()
    monkeypatch.setattr(llm, "reload_weights", lambda weights_iterator, **_: next(weights_iterator))
    with pytest.raises(RuntimeError, match=r"stopped loading weights before model.layers.0"):
        engine.sync(named, alone())
    monkeypatch.undo()
    monkeypatch.setattr(llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(RuntimeError, match="kept its prefix cache"):
        engine.sync(named, alone())


def test_it_sleeps_without_weights_until_it_is_given_new_ones(colocated, named):
    engine, llm = colocated(vllm_enable_sleep_mode=True)
    assert llm.log == ["sleep 2"]
    with pytest.raises(RuntimeError, match="call sync before answers"):
        engine.answers(REQUESTS)
    engine.sync(named, alone())
    engine.answers(REQUESTS)
    engine.answers(REQUESTS)
    engine.sleep()
    engine.sleep()
    assert llm.log == [
        "sleep 2",
        "wake ['weights']",
        "reload_weights",
        "reset_prefix_cache",
        "wake ['kv_cache']",
        "generate",
        "generate",
        "sleep 2",
    ]
    engine.sync(named, alone())
    assert engine.answers(REQUESTS)[0][0].token_ids == (11, 12, 13, 14)


def test_without_sleep_mode_it_does_not_sleep(colocated):
    engine, llm = colocated()
    engine.sleep()
    engine.answers(REQUESTS)
    assert llm.log == ["generate"]


def draws():
    return random.random(), int(np.random.randint(2**31)), torch.rand(()).item()


def seeded(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_training_draws_as_if_vllm_were_not_there(colocated):
    seeded(11)
    want = [draws() for _ in range(3)]
    seeded(11)
    got = [draws()]
    engine, _ = colocated()
    got.append(draws())
    engine.answers(REQUESTS)
    got.append(draws())
    assert got == want


def test_draws_follow_from_the_seeds(colocated):
    engine, llm = colocated()
    engine.answers(REQUESTS)
    seeded(99)
    engine.answers(REQUESTS)
    first, second = REQUESTS
    engine.answers([first, Request(second.prompt_ids, (5,), second.limits)])
    engine.answers([second, first])
    same, again, other, turned = llm.drew
    assert same == again
    assert len({same, other, turned}) == 3
    for one in zip(same, other, strict=True):
        assert one[0] != one[1]


def test_close(colocated):
    engine, llm = colocated()
    engine.close()
    engine.close()
    assert llm.log == ["shutdown"]
