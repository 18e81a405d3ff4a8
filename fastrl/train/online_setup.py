"""What an online trainer is made of, checked before anything is changed; and what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from fastrl.data.formats import is_conversational
from fastrl.models import door
from fastrl.rewards.running import require_free
from fastrl.rollout.environments import Environments
from fastrl.rollout.prompts import check_prompts as refuse_prompts
from fastrl.train import setup
from fastrl.train.batch import Batch, describe
from fastrl.train.drawing import DrawnBy
from fastrl.train.frozen import reference_model, require_another
from fastrl.train.online_config import OnlineConfig
from fastrl.train.reward_models import reward_callables
from fastrl.types import LogProbs, Spans

_LONGEST_LOOKED_AT = 32  # prompts, the longest by characters, that are tried on the model


# Methods of TRL's trainers that subclasses override -> where the same is done here.
_ELSEWHERE = {
    "_calculate_rewards": "give reward_funcs",
    "_compute_loss": "override loss",
    "_generate": "give rollout_func",
    "_generate_and_score_completions": "override experience, or give rollout_func",
    "_generate_single_turn": "give rollout_func",
    "_get_per_token_logps_and_entropies": "override scores_of",
}


def refuse_overrides(trainer: type) -> None:
    """Refuse a subclass with methods that TRL would call and nobody does here.

    Raises:
        TypeError: naming the method and the mend.
    """
    for name, mend in _ELSEWHERE.items():
        if hasattr(trainer, name):
            raise TypeError(f"{trainer.__name__}.{name} would never be called: {mend} in its place")


def check_datasets(
    train: Any, held_out: Any, args: OnlineConfig, drawn_by: DrawnBy
) -> Dataset | IterableDataset:
    """Refuse what answers cannot be drawn to; the training set, or one that an environment fills.

    Raises:
        ValueError, TypeError: naming the dataset and the mend.
    """
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            "accelerator_config.dispatch_batches=True sends batches between processes, which rows "
            "of text cannot be; set it to False"
        )
    args.accelerator_config.dispatch_batches = False  # left to itself it is True for a stream
    owned = drawn_by.environments is not None
    if train is None and drawn_by.environments is not None:
        train = _of_environment(args, drawn_by.environments)
    setup.check_dataset("train_dataset", train, args)
    check_rows("train_dataset", train, owned)
    several = held_out if isinstance(held_out, Mapping) else {"eval_dataset": held_out}
    for name, dataset in several.items():
        if dataset is not None:
            check_rows(name, dataset, owned)
    if args.shows_columns:
        for dataset in (train, *several.values()):
            require_free(_columns(dataset) or ())
    if isinstance(train, IterableDataset) and args.dynamic_sampling:
        raise ValueError(
            "dynamic_sampling draws further prompts at random, which a stream cannot give; load "
            "train_dataset as a Dataset, or leave dynamic_sampling out"
        )
    if isinstance(train, IterableDataset) and args.dataloader_num_workers:
        raise ValueError(
            f"dataloader_num_workers={args.dataloader_num_workers} would take the groups of a "
            "stream apart; set it to 0"
        )
    group, needed = args.num_generations, args.generation_batch_size // args.num_generations
    if isinstance(train, Dataset) and len(train) < needed:
        raise ValueError(
            f"train_dataset has {len(train)} prompts, but a generation batch takes {needed} "
            f"(generation_batch_size={args.generation_batch_size}, num_generations={group}); lower "
            "per_device_train_batch_size, gradient_accumulation_steps or steps_per_generation"
        )
    return train


def _of_environment(args: OnlineConfig, environments: Environments) -> Dataset:
    """Rows without content, for an environment that brings its own prompts."""
    if environments.named:
        raise ValueError(
            "train_dataset is required with several environments: its column `environment` says "
            "which one a row is for"
        )
    if args.max_steps <= 0:
        raise ValueError(
            "train_dataset is None, so nothing says how long to train: set args.max_steps"
        )
    empty = [{"role": "user", "content": ""}]
    return Dataset.from_dict(
        {"prompt": [empty] * (args.generation_batch_size // args.num_generations)}
    )


def check_rows(name: str, dataset: Any, owned: bool = False) -> None:
    """Refuse rows without a prompt.

    Args:
        owned: an environment gives the prompt.

    Raises:
        ValueError: naming the dataset and the mend.
    """
    columns = _columns(dataset)
    if columns is None or owned or "prompt" in columns:
        return
    raise ValueError(
        f"{name} has no column 'prompt', only {', '.join(columns)}; rename the one that holds the "
        f"question: {name}.rename_column({columns[0]!r}, 'prompt')"
    )


def _columns(dataset: Any) -> list[str] | None:
    """Those of the rows it gives, if it knows them."""
    return list(dataset[0]) if _transforms(dataset) else getattr(dataset, "column_names", None)


def _transforms(dataset: Any) -> bool:
    """Whether rows are made as they are asked for, by `set_transform`."""
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def assemble(
    model: Any,
    args: OnlineConfig,
    processing_class: Any,
    quantization_config: Any,
    peft: Any,
    ref_model: Any = None,
) -> tuple[nn.Module, nn.Module | None, PreTrainedTokenizerBase]:
    """Policy, reference where it is a model apart and needed, and tokenizer."""
    require_another(ref_model, model)
    model = setup.policy(model, args, quantization_config)
    tokenizer = setup.tokenizer(processing_class, model, args)
    setup.set_pad_token(tokenizer, model, args)
    model = setup.with_adapter(model, peft, args)
    reference = None
    if args.needs_reference:
        reference = reference_model(model, ref_model, peft is not None, asked_once=False)
    if args.disable_dropout:
        setup.disable_dropout(model, reference)
    return model, reference, tokenizer


def check_prompts(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    model: nn.Module,
    args: OnlineConfig,
    drawn_by: DrawnBy,
) -> None:
    """Refuse prompts the model has no room for, judged by the longest ones; no stream is read.

    Raises:
        ValueError: naming the row.
    """
    if not isinstance(dataset, Dataset) or _transforms(dataset) or drawn_by != DrawnBy():
        return  # rows not made yet, or prompts that tools, environments and functions make
    conversational = is_conversational(dataset[0])
    order = np.argsort(-_lengths(dataset, conversational), kind="stable").tolist()
    for row in [*order[:_LONGEST_LOOKED_AT], order[-1]]:
        prompt = dataset[row]["prompt"]
        if conversational:
            made: Any = tokenizer.apply_chat_template(
                prompt,
                add_generation_prompt=True,
                return_dict=True,
                **(args.chat_template_kwargs or {}),
            )
            ids = made["input_ids"]
        else:
            ids = tokenizer(prompt)["input_ids"]
        try:
            refuse_prompts(door.find(model)[0], [ids])
        except ValueError as error:
            told = str(error).replace("prompts[0]", "its prompt")
            raise ValueError(f"train_dataset row {row}: {told}") from None


def _lengths(dataset: Dataset, conversational: bool) -> np.ndarray:
    """(rows,) characters of the prompts.

    Raises:
        ValueError: for a prompt of another kind than the first, or none.
    """
    column = dataset.with_format("arrow")["prompt"]
    chunks = column.combine_chunks() if hasattr(column, "combine_chunks") else column[:]
    wrong = pc.is_null(chunks)
    if conversational:
        prompts = list(dataset["prompt"])
        length = np.asarray([len(str(prompt)) for prompt in prompts])
        wrong = pa.array([not prompt for prompt in prompts])
    elif pa.types.is_string(chunks.type) or pa.types.is_large_string(chunks.type):
        length = np.asarray(pc.utf8_length(chunks).fill_null(0))
    else:
        wrong = pa.array([True])
    row = pc.index(wrong, pa.scalar(True)).as_py()
    if row >= 0:
        raise ValueError(
            f"train_dataset row {row}: prompt must be a text or a list of messages, got "
            f"{dataset[row]['prompt']!r}"
        )
    return length


def reward_functions(
    given: Any, tokenizers: Any, args: OnlineConfig, accelerator: Accelerator, drawn_by: DrawnBy
) -> list[Callable[..., Any]]:
    """Functions and models as given, then the rewards that environments know themselves."""
    own = [] if drawn_by.environments is None else [f for _, f in drawn_by.environments.rewards]
    if given is None and own:
        return own
    return [*reward_callables(given, tokenizers, args, accelerator), *own]


def reward_weights(given: Sequence[float] | None, names: Sequence[str]) -> torch.Tensor:
    """(K,) fp32 weights, 1 each by default.

    Raises:
        ValueError: for another number of weights than functions.
    """
    if given is None:
        return torch.ones(len(names))
    if len(given) != len(names):
        raise ValueError(
            f"reward_weights has {len(given)} entries for {len(names)} reward_funcs "
            f"({', '.join(names)}); give one each"
        )
    return torch.tensor(given, dtype=torch.float32)


def require_apart(reference: nn.Module | None) -> None:
    """Refuse to move a reference that is the policy without its adapter.

    Raises:
        ValueError: naming the argument.
    """
    if reference is None:
        raise ValueError(
            "sync_ref_model needs a reference apart from the policy; an adapter's is the model "
            "itself without it"
        )


def spans_of(inputs: Mapping[str, torch.Tensor], ids: torch.Tensor) -> Spans:
    """Where answers lie in ids (B, P + C), as known from when they were drawn or by their masks."""
    known = inputs.spans if isinstance(inputs, Batch) else None
    if known is not None and known.shape == tuple(ids.shape):
        return known
    counted = inputs["completion_mask"]
    if "tool_mask" in inputs:
        counted = counted * inputs["tool_mask"]
    wanted = torch.cat([torch.zeros_like(inputs["prompt_mask"]), counted], dim=1).bool()
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return describe({"input_ids": ids, "attention_mask": mask}, wanted)


def answers_only(found: LogProbs, width: int) -> LogProbs:
    """The last `width` columns (B, C), those of the answers' tokens."""
    cut = {name: getattr(found, name)[:, -width:] for name in ("logp", "entropy", "mask")}
    return replace(found, **cut)
