"""Tiny models with sharp distributions, and a tokenizer trained on the spot."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

# Modules of cases can be imported by name.
sys.path += [str(Path(__file__).with_name("tool_peer")), str(Path(__file__).parents[1] / "data")]

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", SIZES),
    "llama": ("Llama", SIZES),
    "gpt2": ("GPT2", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 5}),
    "gemma3": ("Gemma3Text", {**SIZES, "head_dim": 8, "sliding_window": 5}),
    "granite": ("Granite", {**SIZES, "logits_scaling": 3.0}),
    "opt": ("OPT", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16, "pad_token_id": 1}),
    "mixtral": ("Mixtral", {**SIZES, "num_local_experts": 4, "sliding_window": None}),
    "bloom": ("Bloom", {**GPT2, "hidden_size": 32}),
}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    yield


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """tiny(family, dtype=fp32, std=0.2, **config)."""

    def build(
        family: str = "qwen2", dtype: torch.dtype = torch.float32, std: float = 0.2, **config: Any
    ) -> Any:
        name, sizes = FAMILIES[family]
        made = getattr(transformers, f"{name}Config")(**{**sizes, **config})
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(made)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std)
        return model.to(dtype).eval()

    return build


@pytest.fixture
def prompts() -> list[list[int]]:
    """Five of different lengths, without special ids."""
    lengths = (4, 9, 1, 17, 6)
    return [torch.randint(3, VOCABULARY, (n,)).tolist() for n in lengths]


@pytest.fixture
def tokenizer() -> Any:
    """Ids 3 to 96 are the characters from "!" on; 0 pads, 1 begins, 2 ends."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{chr(30 + i): i for i in range(3, VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def silent() -> Any:
    """Warnings are errors inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def fake_vllm(monkeypatch: Any, tmp_path: Path) -> Any:
    """fake_vllm(version="0.31.0"): installs the stand-in as that version, and gives its module."""

    def install(version: str = "0.31.0") -> Any:
        monkeypatch.syspath_prepend(str(Path(__file__).parent / "fake_vllm"))
        facts = tmp_path / "site" / f"vllm-{version}.dist-info"
        facts.mkdir(parents=True, exist_ok=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(facts.parent))
        import vllm

        return vllm

    yield install
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]
