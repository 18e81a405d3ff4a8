"""A vLLM server on loopback: what it is asked, what it is sent, and what it has to be."""

from __future__ import annotations

import importlib
import time
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from fastrl.algos.rloo_config import RLOOConfig
from fastrl.rollout import Request, Sampling, vllm_http, vllm_server, vllm_transfer, vllm_weights
from fastrl.rollout.answerer import Answerer
from fastrl.rollout.vllm_http import Http, HttpError
from fastrl.rollout.vllm_server import Server

REQUESTS = [
    Request((5, 6), (1, 2, 3), (4, 4, 4)),
    Request((9,), (4,), (2,)),
    Request((7,), (5, 6, 7), (4, 4, 4)),
]
ALONE = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    is_main_process=True,
    wait_for_everyone=lambda: None,
)


@pytest.fixture
def policy(tiny):
    return tiny("qwen2", tie_word_embeddings=False)


@pytest.fixture
def served(fake_vllm, monkeypatch, policy):
    """served(version, sampling, state facts): a client, and what its server has seen."""
    monkeypatch.setattr(vllm_transfer, "require_cuda", lambda device: None)
    monkeypatch.setattr(vllm_http, "_RETRY", 0.01)
    closing = []

    def build(version="0.31.0", sampling=None, fields=None, kwargs=None, **facts):
        fake_vllm(version)
        fake = importlib.import_module("vllm.fake_server")
        facts.setdefault("packed_at_init", version >= "0.28")
        state = fake.State(**facts)
        server = fake.running(state)
        port = server.__enter__()
        closing.append(server)
        args = {"vllm_server_host": "127.0.0.1", "vllm_server_port": port, **(fields or {})}
        settings = RLOOConfig(
            "out", use_vllm=True, vllm_mode="server", use_cpu=True, bf16=False, report_to=[], **args
        )
        client = Server(policy, ALONE, settings, sampling or Sampling(), generation_kwargs=kwargs)
        return client, state

    yield build
    for server in closing:
        server.__exit__(None, None, None)


def test_answers_come_in_order(served):
    client, state = served()
    assert isinstance(client, Answerer)
    first, second, third = client.answers(REQUESTS)
    # an answer's tokens are its prompt's sum plus its number, and what follows
    assert [a.token_ids for a in first] == [(11, 12, 13, 14), (12, 13, 14, 15), (13, 14, 15, 16)]
    assert [a.token_ids for a in second] == [(9, 10)]
    assert [a.token_ids for a in third] == [(7, 8, 9, 10), (8, 9, 10, 11), (9, 10, 11, 12)]
    assert third[1].logp == third[1].logp_full == tuple(-t / 128 for t in (8, 9, 10, 11))
    assert third[1].finish == "length"
    # prompts that want the same go together
    assert [(body["prompt"], body["n"], body["max_tokens"]) for body in state.asked] == [
        ([[5, 6], [7]], 3, 4),
        ([[9]], 1, 2),
    ]
    assert client.answers([]) == []


def test_the_settings_are_sent(served):
    how = Sampling(0.7, 20, 0.9, 0.05, 1.1, frozenset({2}))
    client, state = served(
        sampling=how,
        fields={"vllm_structured_outputs_regex": "[ab]+"},
        kwargs={"presence_penalty": 0.5},
    )
    (answers,) = client.answers([Request((5, 6), (1, 2), (4, 4))])
    assert [(a.token_ids, a.finish) for a in answers] == [
        ((11, 12, 2), "eos"),
        ((12, 13, 14, 15), "length"),
    ]
    assert answers[0].logp_full is None  # filters were at work
    assert state.asked[0] == {
        "model": "the-model",
        "prompt": [[5, 6]],
        "n": 2,
        "max_tokens": 4,
        "logprobs": 0,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "ignore_eos": True,
        "stop_token_ids": [2],
        "stop": [],
        "return_token_ids": True,
        "structured_outputs": {"regex": "[ab]+"},
    }
    (stopped,) = client.generate([Request((5, 6), (1,), (4,))], Sampling(stop=("x",)))
    assert stopped[0].finish == "stop"


@pytest.mark.parametrize("version", ["0.22.0", "0.27.0", "0.28.0", "0.31.0"])
def test_weights_arrive_merged(served, policy, tmp_path, monkeypatch, version):
    client, state = served(version)
    came = importlib.import_module("vllm.distributed.weight_transfer.nccl_common").came
    meeting = {"master_address": "192.0.2.7", "master_port": 51216, "world_size": 3}
    assert came[-1] == meeting
    assert ({"old": True} in came) == (version < "0.28")
    assert state.init["rank_offset"] == 1
    adapted = get_peft_model(policy, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    monkeypatch.setattr(vllm_weights, "buckets", _small(vllm_weights.buckets))
    client.sync(adapted, ALONE)
    for name, tensor in adapted.state_dict().items():
        assert torch.equal(tensor, before[name])
    adapted.merge_and_unload().save_pretrained(tmp_path)
    want = load_file(tmp_path / "model.safetensors")
    assert state.weights.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(state.weights[name], tensor, rtol=0, atol=1e-6)
    assert len(state.updates) > 2
    assert state.log[1:] == [
        "/start_weight_update",
        *["/update_weights"] * len(state.updates),
        "/finish_weight_update",
        "/reset_prefix_cache",
    ]
    client.answers(REQUESTS)
    client.sleep()
    client.close()


def _small(buckets):
    return lambda model, device: buckets(model, device, 40_000)


def test_a_failed_update_does_not_hang(served, policy, monkeypatch):
    client, state = served(fails="/update_weights")
    monkeypatch.setattr(vllm_weights, "buckets", _small(vllm_weights.buckets))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"weights did not reach.*update_weights by 500.*memory"):
        client.sync(policy, ALONE)
    assert time.monotonic() - began < 5
    # nothing was sent after it, and the server was not told that all had come
    assert state.log == ["/init_weight_transfer_engine", "/start_weight_update", "/update_weights"]


def test_a_lost_broadcast_does_not_hang(served, policy, monkeypatch):
    client, _ = served()
    monkeypatch.setattr(client._transfer, "_broadcast", lambda bucket: 1 / 0)
    with pytest.raises(RuntimeError, match="weights did not reach the vLLM server: division"):
        client.sync(policy, ALONE)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"dev_mode": False}, "hides the endpoints.*VLLM_SERVER_DEV_MODE=1 vllm serve"),
        ({"transfer": None}, "takes no weights over NCCL.*--weight-transfer-config"),
        ({"transfer": {"backend": "ipc"}}, "takes no weights over NCCL.*ipc"),
        ({"logprobs_mode": "raw_logprobs"}, "raw_logprobs, not the.*--logprobs-mode processed"),
        ({"starting": 1, "health": 404}, "/health by 404"),
        ({"fails": "/init_weight_transfer_engine"}, "did not reach.*init_weight_transfer_engine"),
    ],
)
def test_a_server_that_cannot_serve_is_refused(served, facts, message):
    with pytest.raises(RuntimeError, match=message):
        served(**facts)


def test_a_server_that_starts_is_waited_for(served):
    client, state = served(starting=3)
    assert state.starting == -1
    assert client.answers(REQUESTS[1:2])


def test_no_server(served, fake_vllm, policy, monkeypatch):
    with pytest.raises(ConnectionError, match=r"within vllm_server_timeout=0.05.*start one with"):
        served(fields={"vllm_server_base_url": "http://127.0.0.1:9", "vllm_server_timeout": 0.05})
    with pytest.raises(ConnectionError, match=r"answered /health by 503"):
        served(starting=10**6, fields={"vllm_server_timeout": 0.05})


def test_the_base_url_goes_before_host_and_port(served):
    client, _ = served()
    assert client._http.base_url.startswith("http://127.0.0.1:")
    for wrong in ("localhost:8000", "ftp://host", "http://"):
        with pytest.raises(ValueError, match=r"is no URL; give one such as"):
            Http(wrong)


def test_what_the_server_refuses_is_told(served):
    client, _ = served()
    with pytest.raises(HttpError, match=r"/v1/completions by 500.*top_p must be in"):
        client.generate(REQUESTS, Sampling(top_p=7.0))


def test_fewer_answers_than_asked_for(served, monkeypatch):
    client, _ = served()
    monkeypatch.setattr(client._http, "post", lambda path, body: {"choices": []})
    with pytest.raises(RuntimeError, match="0 answers to 2 prompts that want 3 each"):
        client.answers(REQUESTS)


def test_nccl_needs_cuda():
    with pytest.raises(NotImplementedError, match="needs a CUDA device, not 'cpu'"):
        vllm_transfer.require_cuda(torch.device("cpu"))


def test_a_failure_on_the_main_process_is_everyones(served, monkeypatch):
    client, _ = served()

    def told(objects, from_process):
        objects[0] = "the server is gone"

    monkeypatch.setattr(vllm_server, "broadcast_object_list", told)
    with pytest.raises(RuntimeError, match="on the main process: the server is gone"):
        client.answers(REQUESTS)
