"""What `TextEnvironment` and `BestOfNSampler` are asked to do, in TRL 0.7.11 and in fastrl.

A tiny greedy model over a vocabulary whose first words are those of the protocol, so that by itself
it calls tools (there and not), submits, ends, and runs on. Nothing here may import either library.
"""

from __future__ import annotations

import zlib
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PROTOCOL = ["<request>", "<call>", "<submit>", "<add>", "<fail>", "<long>", "<response>"]
WORDS = ["<pad>", "</s>", "<unk>", *PROTOCOL, *map(chr, range(32, 127))]
PAD, EOS = 0, 1
SIZES = {"vocab_size": len(WORDS), "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
QUERIES = ["1+2", "say 9", "zz top", "6", " 1", " 0cbcxyy", "7d1z 8", "5zd8a56a", "2d92xz"]
QUERIES += ["y2", "c", "4c1c", "c+3052b3", "d 4y", "d4x15c"]


def tokenizer() -> Any:
    """Words of the protocol and single characters."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"<[a-z/]+>|[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def model(library: ModuleType, family: str, liking: float = 2.0) -> Any:
    """A value-head model whose weights come from numpy, by parameter name.

    Args:
        liking: by how much the protocol's words are favoured.
    """
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
        config = transformers.GPT2Config(**SIZES, **sizes, tie_word_embeddings=False)
        inner = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            **SIZES,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
        inner = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in inner.named_parameters():
            drawn = np.random.RandomState(zlib.crc32(name.encode()))
            if parameter.dim() > 1:
                values = 0.5 * drawn.standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.tensor(values, dtype=torch.float32))
        inner.lm_head.weight[: 3 + len(PROTOCOL)] *= liking
        inner.lm_head.weight[[PAD, 2]] = 0.0
    return library.AutoModelForCausalLMWithValueHead.from_pretrained(inner.eval())


def _fail(query: str) -> str:
    raise ValueError(f"no {query}")


TOOLS = {
    "add": lambda query: str(sum(map(ord, query))),
    "fail": _fail,
    "long": lambda query: "ab" * 75,
}


def reward(texts: list[str], scale: float = 1.0) -> list[float]:
    """Of the last segments."""
    return [scale * (len(text) + sum(map(ord, text)) % 7) for text in texts]


GREEDY = {"do_sample": False, "pad_token_id": PAD, "eos_token_id": EOS}
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2", "generation": {"max_new_tokens": 12}},
    "llama": {"family": "llama", "generation": {"max_new_tokens": 12}},
    "one_turn": {"family": "gpt2", "generation": {"max_new_tokens": 20}, "max_turns": 1},
    "many_turns": {
        "family": "llama",
        "generation": {"max_new_tokens": 6},
        "max_turns": 7,
        "max_tool_reponse": 9,
    },
}


def play(library: ModuleType, name: str, queries: list[str]) -> list[dict[str, Any]]:
    """Run an environment; what became of each query.

    TRL is given one query at a time: in a batch it leaves the padding of longer rows in the
    answers of those that ended.
    """
    case = dict(ENVIRONMENTS[name])
    family, generation = case.pop("family"), case.pop("generation")
    from_environment = library.TextEnvironment(
        model(library, family),
        tokenizer(),
        TOOLS,
        reward,
        "Use tools.",
        generation_kwargs={**GREEDY, **generation},
        **case,
    )
    found = []
    for ids, answer, mask, value, history in zip(
        *from_environment.run(queries, scale=2.0), strict=True
    ):
        found.append(
            {
                "query": ids.tolist(),
                "response": answer.tolist(),
                "mask": mask.tolist(),
                "reward": float(value),
                "segments": [history.text[a:b] for a, b in history.text_spans],
                "tokens": [list(span) for span in history.token_spans],
                "system": list(history.system_spans),
                "completed": history.completed,
                "truncated": history.truncated,
                "last": history.last_text_segment,
            }
        )
    return found


FORMS: dict[str, Any] = {
    "ids": [20, 30, 40],
    "tensor": torch.tensor([50, 51, 52, 53]),
    "tensors": [torch.tensor([20, 30, 40]), torch.tensor([60]), torch.tensor([[70, 71]])],
    "lists": [[20, 30, 40], [80, 81, 82, 83, 84]],
    "with_eos": [[20, EOS, 40]],
    "one_list": [[20, 30, 40]],
}
BEAMS = {"num_beams": 4, "num_return_sequences": 4}
SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {"form": "lists"},
    "ids": {"form": "ids"},
    "tensor": {"form": "tensor", "family": "llama"},
    "tensors": {"form": "tensors"},
    "shown": {"form": "with_eos", "generate": {"skip_special_tokens": False}},
    "skipped": {"form": "with_eos"},
    "all_alike": {"form": "one_list", "sampler": {"n_candidates": 3}},
    "beams": {"form": "lists", "sampler": {"sample_size": 2, "n_candidates": 2}, "generate": BEAMS},
    "ranked": {
        "form": "tensors",
        "family": "llama",
        "sampler": {"sample_size": 4, "n_candidates": 4},
        "generate": {"num_beams": 3, "num_return_sequences": 3},
    },
    "config": {"form": "lists", "config": {"repetition_penalty": 1.7}},
    "overridden": {
        "form": "lists",
        "config": {"repetition_penalty": 1.7},
        "generate": {"repetition_penalty": 1.1},
    },
}


def sample(library: ModuleType, name: str, **given: Any) -> list[list[str]]:
    """The best texts of a case."""
    case = SAMPLERS[name]
    lengths = iter([5, 9, 3, 7])
    config = transformers.GenerationConfig(**GREEDY, **case.get("config", {}))
    sampler = library.BestOfNSampler(
        model(library, case.get("family", "gpt2"), liking=1.0),
        tokenizer(),
        reward,
        lambda: next(lengths),
        generation_config=config,
        **{**case.get("sampler", {}), **given},
    )
    return sampler.generate(FORMS[case["form"]], **case.get("generate", {}))
