"""ModelConfig and what it stands for."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from fastrl.train.model_config import ModelConfig, get_peft_config, get_quantization_config

# Fields and defaults of TRL 1.16.0, in its order.
TRL = {
    "model_name_or_path": None,
    "model_revision": "main",
    "dtype": "float32",
    "attn_implementation": None,
    "use_peft": False,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_target_modules": None,
    "lora_target_parameters": None,
    "lora_modules_to_save": None,
    "lora_task_type": "CAUSAL_LM",
    "use_rslora": False,
    "use_dora": False,
    "load_in_8bit": False,
    "load_in_4bit": False,
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": False,
    "bnb_4bit_quant_storage": None,
}


def test_fields_and_defaults_are_trls():
    assert {f.name: f.default for f in dataclasses.fields(ModelConfig)} == TRL


def test_without_use_peft_there_is_no_adapter():
    assert get_peft_config(ModelConfig(lora_r=4)) is None


def test_the_adapter_is_as_described():
    config = get_peft_config(
        ModelConfig(
            use_peft=True,
            lora_r=4,
            lora_alpha=8,
            lora_dropout=0.1,
            lora_target_modules=["q_proj", "v_proj"],
            lora_target_parameters=["mlp.experts.weight"],
            lora_modules_to_save=["lm_head"],
            lora_task_type="SEQ_CLS",
            use_rslora=True,
            use_dora=True,
        )
    )
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (4, 8, 0.1, "none")
    assert config.target_modules == {"q_proj", "v_proj"}
    assert config.target_parameters == ["mlp.experts.weight"]
    assert config.modules_to_save == ["lm_head"] and config.task_type == "SEQ_CLS"
    assert config.use_rslora and config.use_dora


def test_a_single_target_is_a_name_or_a_pattern():
    assert (
        get_peft_config(
            ModelConfig(use_peft=True, lora_target_modules=["all-linear"])
        ).target_modules
        == "all-linear"
    )


def test_missing_peft_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install peft"):
        get_peft_config(ModelConfig(use_peft=True))


def test_quantization_is_as_described():
    assert get_quantization_config(ModelConfig()) is None
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    four = get_quantization_config(
        ModelConfig(
            load_in_4bit=True,
            dtype="bfloat16",
            bnb_4bit_quant_type="fp4",
            use_bnb_nested_quant=True,
            bnb_4bit_quant_storage="bfloat16",
        )
    )
    assert four.load_in_4bit and four.bnb_4bit_compute_dtype == torch.bfloat16
    assert four.bnb_4bit_quant_type == "fp4" and four.bnb_4bit_use_double_quant
    assert four.bnb_4bit_quant_storage == torch.bfloat16
    auto = get_quantization_config(ModelConfig(load_in_4bit=True, dtype="auto"))
    assert auto.bnb_4bit_compute_dtype == torch.float32
    with pytest.raises(ValueError, match="choose one"):
        ModelConfig(load_in_4bit=True, load_in_8bit=True)


def test_the_old_name_of_dtype():
    with pytest.warns(FutureWarning, match="torch_dtype= is dtype="):
        config = ModelConfig(torch_dtype="auto")
    assert config.dtype == config.torch_dtype == "auto"
