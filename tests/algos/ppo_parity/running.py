"""One run of a case: its models, tokenizer, rows and trainer, and the statistics that it gave.

Weights come from numpy by parameter name, rows from numpy by seed, the tokenizer from a word list,
so neither side stores or downloads anything. `run_case(case, library)` runs it with `trl` 0.7.11 or
with `fastrl`; nothing here may import either. It must work under transformers 4.38 and 5.x, numpy
1.26 and 2.x.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers

from ppo_parity.cases import BASE, Case

PAD, EOS, UNK = 0, 1, 2
VOCAB = 64
BY_TOKEN = ("objective/logprobs", "objective/ref_logprobs")
ARRAYS = (  # per-row statistics whose meaning does not depend on padding
    "objective/kl_dist",
    "tokens/queries_dist",
    "tokens/responses_dist",
)


def values_for(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The starting value of a parameter: a function of its name, its shape and the seed alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + 1_000_003 * seed)
    noise = rng.standard_normal(shape)
    if len(shape) == 1:
        is_norm = name.endswith("weight")
        return (noise * 0.1 + (1.0 if is_norm else 0.0)).astype(np.float32)
    scale = 0.3 if "embed" in name or "wte" in name or "shared" in name else 0.2
    return (noise * scale).astype(np.float32)


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put before it."""
    for prefix in ("module.", "pretrained_model."):
        name = name.removeprefix(prefix)
    return name


def fill(model: torch.nn.Module, seed: int) -> None:
    """Overwrite every parameter with `values_for` its name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = values_for(plain_name(name), tuple(parameter.shape), seed)
            parameter.copy_(torch.from_numpy(value))


def starting_weights(like: dict[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
    """What the policy's tensors of these names and shapes were filled with."""
    return {name: values_for(name, value.shape, seed) for name, value in like.items()}


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters by plain name."""
    return {plain_name(n): p.detach().numpy().copy() for n, p in model.named_parameters()}


def tiny_config(kind: str) -> transformers.PretrainedConfig:
    """Some ten thousand weights. Dropout keeps its default: PPO forwards in eval mode."""
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": EOS}
    if kind == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=2, n_head=2, **special
        )
    if kind == "llama":
        return transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            **special,
        )
    return transformers.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )


def make_tokenizer(padding_side: str) -> transformers.PreTrainedTokenizerFast:
    """One word per id, made in memory."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, VOCAB))]
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side=padding_side,
    )


def make_model(case: Case, library: ModuleType, seed: int, double: bool) -> torch.nn.Module:
    """A filled value-head model of the library, with an adapter if the case asks for one."""
    base_class, wrapper_class = {
        "gpt2": (transformers.GPT2LMHeadModel, "AutoModelForCausalLMWithValueHead"),
        "llama": (transformers.LlamaForCausalLM, "AutoModelForCausalLMWithValueHead"),
        "t5": (transformers.T5ForConditionalGeneration, "AutoModelForSeq2SeqLMWithValueHead"),
    }[case.model]
    base = base_class(tiny_config(case.model))
    extra: dict[str, Any] = {}
    if case.lora:
        from peft import LoraConfig

        extra["peft_config"] = LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn"], task_type="CAUSAL_LM"
        )
    model = getattr(library, wrapper_class).from_pretrained(base, **extra)
    fill(model, seed)
    return model.double() if double else model


def rows(case: Case, step: int, rank: int) -> tuple[list, list, list, list | None]:
    """Queries, responses, scores and response masks of one `step` call on one rank."""
    batch_size = {**BASE, **case.config}["batch_size"]
    rng = np.random.default_rng([case.row_seed, step, 0 if case.same_rows else rank])
    shortest = 4 if case.model == "t5" or case.holes else 1

    def ids(low: int, high: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(3, VOCAB, size=int(rng.integers(low, high + 1))))

    queries = [ids(1, 9) for _ in range(batch_size)]
    responses = [ids(shortest, 12) for _ in range(batch_size)]
    scale = case.score_scales[step % len(case.score_scales)]
    scores = [
        torch.tensor(scale * float(s), dtype=torch.float32)
        for s in rng.normal(0.5, 1.0, batch_size)
    ]
    masks = None
    if case.holes:
        masks = [torch.ones_like(r) for r in responses]
        for i, mask in enumerate(masks):
            mask[1 + i % 2] = 0
            if i % 3 == 0:
                mask[-1] = 0
    return queries, responses, scores, masks


def make_optimizer(case: Case, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer | None:
    """The user's own optimizer, or None for the trainer's default Adam."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if case.sgd:
        return torch.optim.SGD(trained, lr=lr, momentum=0.5)
    if case.adam_eps is not None:
        return torch.optim.Adam(trained, lr=lr, eps=case.adam_eps)
    return None


def make_trainer(case: Case, library: ModuleType, double: bool = False) -> Any:
    """The library's trainer over freshly filled models (in fp64 if `double`)."""
    config = library.PPOConfig(**{**BASE, **case.config})
    model = make_model(case, library, 1, double)
    reference = make_model(case, library, 2, double) if case.separate_ref else None
    optimizer = make_optimizer(case, model, config.learning_rate)
    scheduler = None
    if case.lr_gamma is not None:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=case.lr_gamma)
    tokenizer = make_tokenizer(case.padding_side)
    return library.PPOTrainer(
        config,
        model,
        reference,
        tokenizer,
        optimizer=optimizer,
        lr_scheduler=scheduler,
    )


@dataclass
class Outcome:
    """What a run gave."""

    steps: list[dict[str, Any]]  # statistics of each step() as the library returned them
    start: dict[str, np.ndarray]  # weights before the first step
    end: dict[str, np.ndarray]  # weights after the last
    keys: list[str]  # statistic names, sorted
    draws: list[float]  # numpy's and torch's next random number after the last step


def run_case(
    case: Case,
    library: ModuleType,
    double: bool = False,
    after_step: Callable[[Any, dict], None] | None = None,
) -> Outcome:
    """Run every step of the case with the library; `after_step(trainer, stats)` sees each one."""
    trainer = make_trainer(case, library, double)
    assert trainer.accelerator.num_processes == case.num_processes
    rank = trainer.accelerator.process_index
    start = weights_of(trainer.accelerator.unwrap_model(trainer.model))
    steps = []
    for step in range(case.steps):
        queries, responses, scores, masks = rows(case, step, rank)
        stats = trainer.step(queries, responses, scores, *([] if masks is None else [masks]))
        if after_step is not None:
            after_step(trainer, stats)
        steps.append(stats)
    end = weights_of(trainer.accelerator.unwrap_model(trainer.model))
    draws = [float(np.random.random()), float(torch.rand(()))]
    return Outcome(steps, start, end, sorted(steps[0]), draws)


def response_values(case: Case, step: int, rank: int, stat: Any) -> list[float]:
    """The entries of a (B, T − 1) statistic that speak of response tokens, row after row."""
    queries, responses, _, _ = rows(case, step, rank)
    width = np.shape(stat)[1]
    found: list[float] = []
    for query, response, row in zip(queries, responses, np.asarray(stat), strict=True):
        used = len(response) if case.model == "t5" else len(query) + len(response)
        pads = width + 1 - used if case.padding_side == "left" else 0
        start = pads + (0 if case.model == "t5" else len(query) - 1)
        count = len(response) - (case.model == "t5")
        found += row[start : start + count].tolist()
    return found


def is_scalar(value: Any) -> bool:
    """Whether a statistic is one number."""
    return np.ndim(value) == 0


def scalars(stats: dict[str, Any]) -> dict[str, float]:
    """The statistics that are one number, without timings."""
    return {k: float(v) for k, v in stats.items() if is_scalar(v) and not k.startswith("time/")}
