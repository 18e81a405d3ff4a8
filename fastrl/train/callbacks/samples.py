"""What the model being trained answers to prompts of its evaluation dataset."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig

from fastrl.data.chat import maybe_apply_chat_template
from fastrl.rollout.responses import generate_batched


def prompts_of(trainer: Any, count: int | None, callback: str) -> list[Any]:
    """The first `count` (None: all) prompts of the evaluation dataset: of its column `prompt`, or
    `prompt_ids` where the trainer has made these of it.

    Raises:
        ValueError: there is no such dataset or column.
    """
    dataset = trainer.eval_dataset
    if dataset is None or isinstance(dataset, dict):
        raise ValueError(f"{callback} needs the trainer to have one eval_dataset, got {dataset!r}")
    names = getattr(dataset, "column_names", None) or list(next(iter(dataset)))
    column = "prompt_ids" if "prompt" not in names and "prompt_ids" in names else "prompt"
    if column not in names:
        raise ValueError(f"{callback} needs a column 'prompt' in eval_dataset, which has {names}")
    if count is not None:
        dataset = dataset.select(range(min(count, len(dataset))))
    return list(dataset[column])


def _ids(prompt: Any, tokenizer: Any) -> tuple[str, torch.Tensor]:
    """(text, token ids (L,)) of a prompt that is a string, a list of messages, or ids."""
    if isinstance(prompt, str):
        text, special = prompt, True
    elif isinstance(prompt[0], int):
        return tokenizer.decode(prompt), torch.tensor(prompt)
    else:
        text = maybe_apply_chat_template({"prompt": prompt}, tokenizer)["prompt"]
        special = False  # the template wrote them
    ids = tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"][0]
    return text, ids


def complete(
    trainer: Any,
    prompts: list[Any],
    generation_config: GenerationConfig | None,
    batch_size: int,
    model: Any = None,
) -> list[tuple[str, str]]:
    """(prompt as text, completion) for each prompt, on every process; the work is shared.

    `model` answers; None: the one that is trained. Training is left as it was: dropout is off
    meanwhile and the random state restored.
    """
    accelerator = trainer.accelerator
    tokenizer = trainer.processing_class
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    rank, world = accelerator.process_index, accelerator.num_processes
    # Every process generates equally often, or a partitioned model would wait for ever.
    each = math.ceil(len(prompts) / world)
    mine = [prompts[(i * world + rank) % len(prompts)] for i in range(each)]
    texts, ids = zip(*(_ids(prompt, tokenizer) for prompt in mine), strict=True)
    model = accelerator.unwrap_model(trainer.model_wrapped if model is None else model)
    was_training = model.training
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            answers = generate_batched(
                model,
                tokenizer,
                list(ids),
                device=accelerator.device,
                batch_size=batch_size,
                return_prompt=False,
                generation_config=generation_config,
                pad_token_id=tokenizer.pad_token_id,
            )
    finally:
        model.train(was_training)
    decoded = tokenizer.batch_decode(answers, skip_special_tokens=True)
    gathered = gather_object(list(zip(texts, decoded, strict=True)))
    # Rank r's i-th is prompt i * world + r.
    return [gathered[(i % world) * each + i // world] for i in range(len(prompts))]
