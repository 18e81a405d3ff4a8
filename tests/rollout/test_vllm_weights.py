"""The weights that vLLM is sent are those of the checkpoint that would be saved."""

from __future__ import annotations

import copy
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from fastrl.rollout import vllm_weights
from fastrl.rollout.vllm_weights import blocks, buckets, check, checksums, unchanged

CPU = torch.device("cpu")


def saved(model, folder):
    """What transformers writes of a model."""
    model.save_pretrained(folder)
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def sent(model):
    named = [pair for block in blocks(model, CPU) for pair in block]
    assert len({name for name, _ in named}) == len(named)
    return {name: tensor.clone() for name, tensor in named}


def assert_same(got, want, atol=0.0):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=atol, msg=name)


def adapted(model, **config):
    """With LoRA whose B is not zero."""
    made = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, **config))
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma3", "mixtral", "opt"])
@pytest.mark.parametrize("tied", [True, False])
def test_they_are_what_save_pretrained_writes(tiny, tmp_path, family, tied):
    model = tiny(family, tie_word_embeddings=tied)
    assert_same(sent(model), saved(model, tmp_path))


def test_whole_weights_are_not_copied(tiny):
    model = tiny("qwen2")
    found = {name: tensor for block in blocks(model, CPU) for name, tensor in block}
    name = "model.layers.1.mlp.up_proj.weight"
    assert found[name].data_ptr() == model.get_parameter(name).data_ptr()
    assert not found[name].requires_grad


def test_a_block_is_a_layer_and_buckets_hold_blocks(tiny):
    model = tiny("qwen2", tie_word_embeddings=True)
    heads = [{name.rpartition(".self_attn")[0] for name, _ in b} for b in blocks(model, CPU)]
    assert len(heads) == 4  # embeddings, two layers, the last norm
    sizes = [sum(t.nbytes for _, t in block) for block in blocks(model, CPU)]
    together = list(buckets(model, CPU, sizes[0] + sizes[1]))
    assert [sum(t.nbytes for _, t in bucket) for bucket in together] == [
        sizes[0] + sizes[1],
        sizes[2] + sizes[3],
    ]
    # none is cut, however small the buckets
    assert [[n for n, _ in b] for b in buckets(model, CPU, 1)] == [
        [n for n, _ in b] for b in blocks(model, CPU)
    ]


ADAPTERS = {
    "lora": ("qwen2", {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("qwen2", {"target_modules": ["q_proj"], "use_rslora": True}),
    "dora": ("qwen2", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "bias": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "head": ("qwen2", {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}),
    "whole": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "experts": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_are_merged_aside(tiny, tmp_path, kind):
    family, config = ADAPTERS[kind]
    policy = adapted(tiny(family, tie_word_embeddings=False), **config)
    before = {n: t.clone() for n, t in policy.state_dict().items()}
    whole = copy.deepcopy(policy).merge_and_unload()
    with unchanged(policy):
        got = sent(policy)
    assert_same(got, saved(whole, tmp_path), atol=1e-6)
    assert_same(dict(policy.state_dict()), before)
    with policy.disable_adapter():
        plain = sent(policy)
    assert any((plain[name] - got[name]).abs().max() > 1e-2 for name in got)


def test_merging_is_w_plus_scaled_ba(tiny):
    policy = adapted(tiny("qwen2"), target_modules=["q_proj"])
    layer = policy.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    want = layer.base_layer.weight + 12 / 4 * (b @ a)
    got = sent(policy)["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(got, want.detach(), rtol=0, atol=1e-6)


def test_adapters_switched_off_are_left_out(tiny):
    base = tiny("qwen2")
    want = {n: t.clone() for n, t in base.named_parameters()}
    policy = adapted(base, target_modules=["q_proj"])
    with policy.disable_adapter():
        got = sent(policy)
    assert_same({n: got[n] for n in got}, {n: want[n].detach() for n in got})


def test_a_merge_in_place_is_noticed(tiny):
    policy = adapted(tiny("qwen2"), target_modules=["q_proj"])
    with pytest.raises(RuntimeError, match=r"changed its weights \(.*q_proj.base_layer.weight"):  # noqa: SIM117
        with unchanged(policy):
            policy.merge_adapter()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_a_checksum_sees_one_bit(dtype):
    model = nn.Linear(5, 3).to(dtype)
    before = checksums(model)
    assert checksums(model) == before
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    model.weight.data.view(word)[2, 3] ^= 1
    after = checksums(model)
    assert after["bias"] == before["bias"]
    assert abs(after["weight"] - before["weight"]) == 1


def test_partitioned_weights_are_gathered_by_the_block(tiny, tmp_path, monkeypatch):
    """As ZeRO-3 does it: a parameter is empty until it is gathered, and afterwards."""
    model = tiny("qwen2", tie_word_embeddings=False)
    want = saved(model, tmp_path)
    held, most = {}, []
    for i, parameter in enumerate(model.parameters()):
        parameter.ds_id = i
        held[i] = parameter.data
        parameter.data = torch.empty(0)

    @contextmanager
    def gathered(parameters):
        most.append(len(parameters))
        for parameter in parameters:
            parameter.data = held[parameter.ds_id].clone()
        yield
        for parameter in parameters:
            parameter.data.fill_(float("nan"))
            parameter.data = torch.empty(0)

    fake = SimpleNamespace(zero=SimpleNamespace(GatheredParameters=gathered))
    monkeypatch.setitem(sys.modules, "deepspeed", fake)
    assert_same(sent(model), want)
    assert max(most) == 12  # a layer's: four projections with three biases, three of the MLP, norms


def test_what_cannot_be_sent_is_refused(tiny):
    tied = tiny("qwen2", tie_word_embeddings=True)
    with pytest.raises(ValueError, match="tied to the head"):
        check(adapted(tied, target_modules=["q_proj", "embed_tokens"]))
    check(adapted(tiny("qwen2", tie_word_embeddings=True), target_modules=["q_proj"]))
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="virtual tokens"):
        check(get_peft_model(tiny("qwen2"), prompts))
    indices = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5])
    with pytest.raises(ValueError, match=r"TrainableTokensWrapper at model\.embed_tokens"):
        check(get_peft_model(tiny("qwen2", tie_word_embeddings=False), indices))
    quantized = tiny("qwen2")
    quantized.hf_quantizer = object()
    with pytest.raises(ValueError, match="quantized"):
        check(quantized)


def test_bytes_of_a_bucket(tiny):
    assert vllm_weights.BUCKET_BYTES < 2**30  # one of vLLM's own buffers holds it
