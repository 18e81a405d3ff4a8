"""A tiny model and classifier on disk, for scripts that load them by path."""

from __future__ import annotations

import pytest
import torch


def _tokenizer(words):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {piece: place for place, piece in enumerate(["<end>", *sorted(letters)])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", **words)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(folder of a causal model with its tokenizer, folder of a classifier)."""
    from transformers import (
        GPT2Config,
        GPT2ForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    tokenizer = _tokenizer({"pad_token": "<end>"})
    ids = {"vocab_size": len(tokenizer), "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": 0}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    model = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**ids, **shape)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    judge = tmp_path_factory.mktemp("judge")
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = GPT2Config(
        **ids, n_layer=1, n_head=1, n_embd=8, n_positions=64, num_labels=2, id2label=labels
    )
    GPT2ForSequenceClassification(config).save_pretrained(judge)
    tokenizer.save_pretrained(judge)
    return str(model), str(judge)
