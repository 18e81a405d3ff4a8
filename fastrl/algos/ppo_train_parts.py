"""What PPO's `train()` form is made of: models and prompts, checked before anything is changed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from fastrl.algos.ppo_train_config import PPOTrainConfig
from fastrl.models import adapters, door
from fastrl.models.embeddings import position_limit
from fastrl.rollout.prompts import token_ids
from fastrl.train import setup
from fastrl.train.frozen import deepspeed_engine, reference_model
from fastrl.train.vocabulary import check_ids

COLUMN = "input_ids"


class Parts(NamedTuple):
    """The models of a run; the reference is None where the policy without its adapter is it."""

    policy: nn.Module
    value_model: nn.Module
    reward_model: nn.Module
    ref_model: nn.Module | None


def check_models(args: PPOTrainConfig, tokenizer: Any, models: Mapping[str, Any]) -> None:
    """Refuse what cannot be trained with; nothing is changed.

    Args:
        models: `model`, `ref_model`, `reward_model`, `value_model` by these names.

    Raises:
        TypeError: for what is no tokenizer or no model.
        ValueError: for a model of the wrong kind, one object in two roles, adapters that are not
            there, or no padding token.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"processing_class must be a tokenizer, got {type(tokenizer).__name__}")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "processing_class has no padding token, which marks where a response ends: set "
            "tokenizer.pad_token (with the EOS token, EOS is no part of a response)"
        )
    if args.stop_token == "eos" and tokenizer.eos_token_id is None:
        raise ValueError("stop_token='eos', but processing_class has no EOS token")
    for name, given in models.items():
        if given is None and name == "ref_model":
            continue
        _check_kind(name, given)
    for one, other in (("model", "ref_model"), ("value_model", "reward_model")):
        if models[one] is models[other]:
            raise ValueError(
                f"{other} is the object given as {one}, so it would be trained along; load it "
                "once more"
            )
    _check_adapters(args, models["model"])


def _check_kind(name: str, model: Any) -> None:
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"{name} must be a model, loaded by from_pretrained, got {type(model).__name__}"
        )
    instance, _ = door.find(model)
    kind = type(instance).__name__
    if name in ("model", "ref_model"):
        if instance.get_output_embeddings() is None or instance.config.is_encoder_decoder:
            raise ValueError(f"{name} must be a causal language model, got {kind}")
    elif not kind.endswith("ForSequenceClassification") or instance.config.num_labels != 1:
        raise ValueError(
            f"{name} must be a sequence-classification model with num_labels=1, got {kind} with "
            f"num_labels={instance.config.num_labels}: load it by "
            "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)"
        )


def _check_adapters(args: PPOTrainConfig, policy: Any) -> None:
    known = list(policy.peft_config) if adapters.is_peft(policy) else []
    for name in ("model_adapter_name", "ref_adapter_name"):
        given = getattr(args, name)
        if given is not None and given not in known:
            has = f"has {known}" if known else "has none"
            raise ValueError(f"{name}={given!r} names no adapter of model, which {has}")


def assembled(args: PPOTrainConfig, peft_config: Any, models: Mapping[str, Any]) -> Parts:
    """The models ready to train: adapter on, reference made, all dropout off.

    A PEFT policy that is given a `peft_config` has its adapter merged first, as in TRL.

    Raises:
        ImportError, ValueError: as `fastrl.models.adapters.check_config`.
    """
    adapters.check_config(peft_config)
    policy = models["model"]
    if peft_config is not None and adapters.is_peft(policy):
        policy = policy.merge_and_unload()
    settings: Any = args  # of checkpointing and DeepSpeed, which all trainers' have
    policy = setup.with_adapter(policy, peft_config, settings)
    if args.model_adapter_name is not None:
        policy.set_adapter(args.model_adapter_name)
    value_model = setup.with_adapter(models["value_model"], None, settings)
    # With adapters the reference is the policy without: what an adapter has learnt before counts.
    reference = reference_model(policy, models["ref_model"], adapted=True, asked_once=False)
    reward_model = models["reward_model"].requires_grad_(False).eval()
    parts = Parts(policy, value_model, reward_model, reference)
    setup.disable_dropout(*parts)
    return parts


def placed(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A model that is not trained, on its device and spread as the run's settings say."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return deepspeed_engine(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


def planned(args: PPOTrainConfig, dataset: Any) -> PPOTrainConfig:
    """A copy of the settings that says how long the run is.

    Raises:
        TypeError: for what is no `datasets.Dataset`.
        ValueError: for a dataset smaller than a batch, or no episode at all.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"train_dataset must be a datasets.Dataset, got {type(dataset).__name__}; of a "
            "DatasetDict give one split"
        )
    args = copy.copy(args)
    assert args.batch_size is not None  # the config's own doing
    if len(dataset) < args.batch_size:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, fewer than the {args.batch_size} of a batch "
            "(per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches * "
            "processes)"
        )
    if args.max_steps > 0:
        args.total_episodes = args.max_steps * args.batch_size
    elif args.total_episodes is None:
        args.total_episodes = int(args.num_train_epochs * len(dataset))
    if args.total_episodes < 1:
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs} of {len(dataset)} rows is less than one "
            "response; give more, or total_episodes"
        )
    args.max_steps = args.num_total_batches = math.ceil(args.total_episodes / args.batch_size)
    if args.run_name is None and args.exp_name is not None:
        args.run_name = f"{args.exp_name}__{args.seed}__{int(time.time())}"
    return args


def prompts(name: str, dataset: Any, tokenizer: Any, policy: Any, args: PPOTrainConfig) -> Any:
    """The dataset with token ids in `input_ids`, made from its column `prompt` if need be.

    Raises:
        TypeError: for what is no `datasets.Dataset`.
        ValueError: for neither column, or a prompt that is empty, leaves no room for a response or
            holds what is no id of the policy's.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"{name} must be a datasets.Dataset, got {type(dataset).__name__}")
    if COLUMN not in dataset.column_names:
        if "prompt" not in dataset.column_names:
            raise ValueError(
                f"{name} has neither input_ids (token ids of prompts) nor prompt (text, or a "
                f"conversation), but {dataset.column_names}"
            )
        dataset = dataset.map(
            lambda row: {COLUMN: list(token_ids(tokenizer, row["prompt"]))},
            num_proc=args.dataset_num_proc,
            desc=f"Tokenizing {name}",
        )
    check_ids(name, dataset, policy)
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    table = position_limit(policy)
    for row, ids in enumerate(dataset[COLUMN]):
        if not len(ids):
            raise ValueError(f"{name} row {row}: the prompt is empty")
        if table is not None and len(ids) >= table:
            raise ValueError(
                f"{name} row {row}: the prompt has {len(ids)} tokens, and the model has {table} "
                "positions for prompt and response; shorten it or leave the row out"
            )
    return dataset


def prepared(
    train_dataset: Any, eval_dataset: Any, tokenizer: Any, policy: Any, args: PPOTrainConfig
) -> tuple[Any, Any]:
    """Training and evaluation prompts, as `prompts` makes them."""
    held_out = setup.each(
        eval_dataset, lambda rows: prompts("eval_dataset", rows, tokenizer, policy, args)
    )
    return prompts("train_dataset", train_dataset, tokenizer, policy, args), held_out


def restore(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Put saved weights back into a model, or into its adapters where only these were saved.

    Raises:
        ValueError: for weights that are missing or of other models.
    """
    if adapters.is_peft(model):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, state)
        return
    missing, strange = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if strange or set(missing) - tied:
        raise ValueError(
            f"resume_from_checkpoint: the saved value model is another one (missing {missing}, "
            f"unknown {strange})"
        )


def padded_prompts(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The collator: `input_ids` and `attention_mask`, (B, T) int64, padded behind."""
    ids = [torch.as_tensor(row[COLUMN]) for row in rows]
    return {
        COLUMN: pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
    }


def unpadded(batch: Mapping[str, Any], pad_token_id: int) -> list[list[int]]:
    """The prompts of a batch, whoever collated it; without a mask every padding token is padding.

    Raises:
        ValueError: for a batch without `input_ids`, or a prompt of padding alone.
    """
    if COLUMN not in batch:
        raise ValueError(f"data_collator made no input_ids, but {sorted(batch)}")
    ids = torch.as_tensor(batch[COLUMN])
    mask = batch.get("attention_mask")
    kept = ids != pad_token_id if mask is None else torch.as_tensor(mask).bool()
    found = [row[there].tolist() for row, there in zip(ids.cpu(), kept.cpu(), strict=True)]
    if not all(found):
        raise ValueError(f"data_collator: prompt {found.index([])} of a batch is padding alone")
    return found
