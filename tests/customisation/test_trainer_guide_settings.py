"""Quantisation, NEFTune, devices, FSDP and XLA as the guide of `transformers.Trainer` has them."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import TrainerCallback

from fastrl import GRPOConfig, SFTConfig, TrlParser
from tests.algos.offline_parity import making
from tests.customisation.guide_runs import build, losses

ROOT = Path(__file__).resolve().parents[2]

# --- quantisation ---------------------------------------------------------------------------------


def test_quantization_config_goes_to_the_loading_of_the_model(tmp_path, monkeypatch):
    quantised = transformers.BitsAndBytesConfig(load_in_4bit=True)
    asked: list[Any] = []

    def load(name: str, *_: Any, **keywords: Any) -> Any:
        asked.append((name, keywords.get("quantization_config")))
        return making.model("qwen2")

    monkeypatch.setattr("fastrl.train.setup.create_model_from_path", load)
    build(tmp_path, more={"model": "somewhere", "quantization_config": quantised})
    assert asked == [("somewhere", quantised)]
    with pytest.raises(ValueError, match="quantization_config is for a model given by name"):
        build(tmp_path, more={"quantization_config": quantised})


def test_an_optimizer_of_bitsandbytes_without_it_fails_before_training(tmp_path):
    trainer = build(tmp_path, optim="adamw_8bit")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ImportError, match=r"pip install.* bitsandbytes"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


# --- NEFTune --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "reward"])
def test_neftune_is_off_after_training(tmp_path, kind):
    plain, noisy = build(tmp_path / "a", kind), build(tmp_path / "b", kind, neftune_noise_alpha=9.0)
    hooks: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
            hooks.append(len(model.get_input_embeddings()._forward_hooks))

    noisy.add_callback(Watch())
    embeddings = noisy.model.get_input_embeddings()
    before = len(embeddings._forward_hooks)
    plain.train()
    noisy.train()
    assert hooks == [before + 1] * 2
    assert losses(noisy)[0] != pytest.approx(losses(plain)[0], rel=1e-4)
    assert len(embeddings._forward_hooks) == before
    noisy.model.train()
    ids = torch.arange(5, 40)
    assert torch.equal(embeddings(ids), embeddings.weight[ids])


# --- devices --------------------------------------------------------------------------------------

ON_CPU = """
import sys, torch
sys.path.insert(0, {root!r})
import fastrl
assert not torch.cuda.is_initialized()
from tests.customisation.guide_runs import build
trainer = build({folder!r}, max_steps=1)
trainer.train()
print("device", trainer.args.device, len(trainer.state.log_history))
"""


@pytest.mark.slow
def test_cuda_visible_devices_empty(tmp_path):
    """`CUDA_VISIBLE_DEVICES=` with nothing behind it: everything runs on the CPU."""
    source = ON_CPU.format(root=str(ROOT), folder=str(tmp_path))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    run = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "device cpu 2" in run.stdout


ACCELERATOR_LITERAL = re.compile(
    r"""\.cuda\(|["'](?:cuda|mps|xpu):\d+["']|torch\.device\(["']cuda"""
)


def test_mps_or_any_device_no_module_assumes_cuda():
    """Tensors go where the accelerator or another tensor is, never to a device by its name.

    What names CUDA asks first whether it is there, so that MPS and others are served.
    """
    assert ACCELERATOR_LITERAL.search("x.cuda()") and ACCELERATOR_LITERAL.search('"cuda:0"')
    found = []
    for folder in ("fastrl", "examples", "benchmark"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if ACCELERATOR_LITERAL.search(line.partition("#")[0]):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_mps_goes_first_where_it_is(monkeypatch):
    """What a module decides by device type has an answer for one it has never heard of."""
    from fastrl.algos.ppo_train_config import PPOTrainConfig
    from fastrl.ops import token_logprobs
    from fastrl.train import classic_parts, device_cache

    emptied = []
    device = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: emptied.append(1))
    monkeypatch.setattr(torch, "mps", device)
    device_cache.empty_device_cache()
    assert emptied == [1]
    parameter = nn.Parameter(torch.zeros(2, device="meta"))
    assert not classic_parts.default_adam([parameter], 1e-3).defaults["fused"]
    logits = torch.zeros(1, 3, device="meta")
    logp, _ = token_logprobs(logits, torch.zeros(1, dtype=torch.int64, device="meta"))
    assert logp.device.type == "meta"
    assert "cuda" not in inspect.getsource(PPOTrainConfig)


# --- FSDP and XLA ---------------------------------------------------------------------------------


FSDP_FORMS = {
    "full_shard": "full_shard",
    "shard_grad_op": "shard_grad_op",
    "no_shard": "no_shard",
    "full_shard offload": "full_shard",
    "full_shard auto_wrap": "full_shard",
    "full_shard offload auto_wrap": "full_shard",
}


@pytest.mark.parametrize("form", FSDP_FORMS)
@pytest.mark.parametrize("config", [SFTConfig, GRPOConfig])
def test_fsdp_flags_parse(tmp_path, config, form):
    settings = {
        "fsdp_transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"],
        "fsdp_backward_prefetch": "backward_pre",
        "fsdp_forward_prefetch": True,
        "limit_all_gathers": True,
        "activation_checkpointing": False,
        "version": 1,
    }
    (tmp_path / "fsdp.json").write_text(json.dumps(settings))
    line = ["--output_dir", "out", "--use_cpu", "--report_to", "none", "--fsdp", form]
    line += ["--fsdp_config", str(tmp_path / "fsdp.json")]
    (args,) = TrlParser((config,)).parse_args_and_config(args=line)
    plugin = args.fsdp_plugin_args
    assert plugin["reshard_after_forward"] == FSDP_FORMS[form]
    assert bool(plugin.get("cpu_offload")) == ("offload" in form)
    assert plugin["backward_prefetch"] == "BACKWARD_PRE"
    assert plugin["forward_prefetch"] is plugin["limit_all_gathers"] is True
    assert plugin["transformer_cls_names_to_wrap"] == "Qwen2DecoderLayer"


@pytest.mark.parametrize("prefix", ["", "fsdp_"])
def test_fsdp_wraps_by_size_and_checkpoints_itself(tmp_path, prefix):
    """By a file, its keys written either way; until release 5 transformers chose the policy so."""
    asked = {"min_num_params": 2000, "activation_checkpointing": True, "version": 1}
    (tmp_path / "fsdp.json").write_text(json.dumps({prefix + k: v for k, v in asked.items()}))
    args = SFTConfig(
        "out", use_cpu=True, gradient_checkpointing=False, fsdp="full_shard auto_wrap",
        fsdp_config=str(tmp_path / "fsdp.json"),
    )  # fmt: skip
    plugin = args.fsdp_plugin_args
    assert plugin["auto_wrap_policy"] == "SIZE_BASED_WRAP"
    assert (plugin["min_num_params"], plugin["activation_checkpointing"]) == (2000, True)


def test_xla_fsdp_arguments_parse():
    xla = {"xla": True, "xla_fsdp_settings": {"flatten": True}, "xla_fsdp_grad_ckpt": True}
    args = SFTConfig("out", use_cpu=True, fsdp="full_shard", fsdp_config=dict(xla))
    assert args.xla_fsdp_config["flatten"] is True
    assert args.fsdp_config["xla"] is args.fsdp_config["xla_fsdp_grad_ckpt"] is True
