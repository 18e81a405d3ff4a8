"""Tiny models, a tokenizer and rows that are the same on either side, made without downloads.

Weights come from numpy by parameter name and rows from numpy by seed, so neither depends on a
version of torch. Nothing here imports `trl` or `fastrl`.
"""

from __future__ import annotations

import string
import zlib
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TRAINING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str = CHATML) -> transformers.PreTrainedTokenizerFast:
    """One token per character."""
    letters = string.ascii_letters + string.digits + " \n.,:?!|"
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "<unk>", *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.post_processor = processors.TemplateProcessing(single="$A")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
        model_max_length=4096,
    )


def _fill(model: torch.nn.Module, scale: float = 0.08) -> None:
    for name, parameter in model.named_parameters():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        values = random.standard_normal(tuple(parameter.shape)).astype(np.float32) * scale
        if parameter.dim() == 1 and "norm" in name and name.endswith("weight"):
            values += 1.0
        parameter.data.copy_(torch.from_numpy(values))


COMMON: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def model(kind: str = "qwen2", architecture: str = "lm") -> transformers.PreTrainedModel:
    """kind: qwen2 (tied head), llama, qwen2_moe, gpt2; architecture: lm, score or tokens."""
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=80, n_embd=32, n_layer=2, n_head=4, n_positions=512, pad_token_id=0,
            eos_token_id=1, bos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    elif kind == "qwen2_moe":
        config = transformers.Qwen2MoeConfig(
            **COMMON, intermediate_size=48, moe_intermediate_size=24, num_experts=4,
            shared_expert_intermediate_size=24, num_experts_per_tok=2, router_aux_loss_coef=0.05,
            output_router_logits=True,
        )  # fmt: skip
    elif kind == "llama":
        config = transformers.LlamaConfig(**COMMON, intermediate_size=64)
    else:
        config = transformers.Qwen2Config(**COMMON, intermediate_size=64, tie_word_embeddings=True)
    auto = transformers.AutoModelForCausalLM
    if architecture == "score":
        config.num_labels = 1
        auto = transformers.AutoModelForSequenceClassification
    elif architecture == "tokens":
        config.num_labels = 2
        auto = transformers.AutoModelForTokenClassification
    made = auto.from_config(config)
    _fill(made)
    made.config._name_or_path = "tiny"
    if kind == "gpt2":
        # Its class name hides from transformers that its loss shifts labels, so TRL would divide by
        # one label too many a row.
        made.loss_type = "ForCausalLM"
    return made


def text(random: np.random.RandomState, least: int, most: int) -> str:
    """Words of lower-case letters with some structure to learn."""
    length = random.randint(least, most)
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length:
        letter = chr(97 + random.randint(8))
        words.append(letter * random.randint(1, 5) + random.choice(["a", "b", "c"]))
    return " ".join(words)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def rows(kind: str, count: int, seed: int = 0) -> Dataset:
    """Ragged rows of a dataset type, standard or (names ending in _chat) conversational."""
    random = np.random.RandomState(seed)
    made = []
    for i in range(count):
        prompt, good, bad = (text(random, *span) for span in ((8, 30), (4, 60), (4, 60)))
        both = prompt + "|"
        made.append(
            {
                "text": {"text": prompt + good},
                "messages": {
                    "messages": [
                        turn("user", prompt),
                        turn("assistant", good),
                        turn("user", bad[:9]),
                        turn("assistant", good[:7]),
                    ]
                },
                "completion": {"prompt": both, "completion": good},
                "completion_chat": {
                    "prompt": [turn("user", prompt)],
                    "completion": [turn("assistant", good)],
                },
                "preference": {"prompt": both, "chosen": good, "rejected": bad},
                "preference_margin": {
                    "chosen": both + good,
                    "rejected": both + bad,
                    "margin": (i % 5) / 4,
                },
                "preference_implicit": {"chosen": both + good, "rejected": both + bad},
                "preference_chat": {
                    "prompt": [turn("user", prompt)],
                    "chosen": [turn("assistant", good)],
                    "rejected": [turn("assistant", bad)],
                },
                "stepwise": {
                    "prompt": prompt,
                    "completions": [good, bad[:7]],
                    "labels": [True, bool(i % 3)],
                },
                "unpaired": {"prompt": both, "completion": good, "label": bool(i % 3)},
            }[kind]
        )
    return Dataset.from_list(made)
