"""A tiny tokenizer, model and batch of rows for trainers driven by `step()`."""

import warnings

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from fastrl import legacy

VOCAB = 48


@pytest.fixture(autouse=True)
def every_warning_again():
    legacy._said.clear()


@pytest.fixture
def tokenizer():
    words = {f"w{i}": i for i in range(VOCAB - 2)} | {"<pad>": VOCAB - 2, "<eos>": VOCAB - 1}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", padding_side="right"
    )


@pytest.fixture
def make_model():
    from fastrl import AutoModelForCausalLMWithValueHead

    def make(seed=0, **overrides):
        torch.manual_seed(seed)
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64} | overrides
        tokens = {"pad_token_id": VOCAB - 2, "eos_token_id": VOCAB - 1, "bos_token_id": VOCAB - 1}
        config = GPT2Config(vocab_size=VOCAB, **tokens, **sizes)
        model = AutoModelForCausalLMWithValueHead.from_pretrained(GPT2LMHeadModel(config))
        torch.nn.init.normal_(model.v_head.summary.weight, std=0.2)
        return model.eval()

    return make


@pytest.fixture
def make_trainer(tokenizer, make_model):
    """make_trainer(batch_size=8, …config fields…, model=, ref_model=, …trainer arguments…)."""
    from fastrl import PPOConfig, PPOTrainer

    parts = {"model", "ref_model", "dataset", "optimizer", "data_collator", "lr_scheduler"}

    def make(cls=PPOTrainer, padding_side="right", **given):
        arguments = {k: given.pop(k) for k in parts & set(given)}
        arguments.setdefault("model", make_model())
        arguments.setdefault("ref_model", make_model(seed=1))
        tokenizer.padding_side = padding_side
        settings = {"batch_size": 8, "mini_batch_size": 4, "learning_rate": 1e-3, "ppo_epochs": 2}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No dataset is provided")
            config = PPOConfig(**(settings | given))
            return cls(config, tokenizer=tokenizer, **arguments)

    return make


@pytest.fixture
def rows():
    """rows(n) -> queries, responses, scores with ragged lengths."""

    def make(n=8, seed=0):
        rng = np.random.default_rng(seed)

        def ragged(low, high):
            sizes = rng.integers(low, high, n)
            return [torch.from_numpy(rng.integers(0, VOCAB - 2, s)) for s in sizes]

        scores = [torch.tensor(s) for s in rng.normal(size=n).astype(np.float32)]
        return ragged(2, 9), ragged(3, 14), scores

    return make
