"""Reward models among a trainer's reward functions: each becomes a function of texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fastrl.data.chat import render
from fastrl.data.collate import padded, token_array
from fastrl.data.collate_reward import pooled_column
from fastrl.data.formats import common_length, is_conversational
from fastrl.models.pooled import prepare_rewards, rewards
from fastrl.train.frozen import deepspeed_engine
from fastrl.train.online_config import OnlineConfig
from fastrl.train.setup import create_model_from_path
from fastrl.types import Shared, Tokens

_NOTHING = np.empty(0, dtype=np.int64)


class ModelReward:
    """A model that scores prompt and completion together, as one text.

    The score is the model's first logit. A sequence-classification model with one label is read
    without padding, and what completions to one prompt begin with is forwarded once; any other, and
    every model under ZeRO-3 (where ranks have to make the same calls), is given the padded batch.

    Args:
        model: it is put into evaluation mode and onto this process's device.
        tokenizer: makes the texts of messages and the tokens of texts; no special tokens are added.
        accelerator: of the trainer.
        chat_template_kwargs: for the tokenizer's chat template.
    """

    in_process = True  # it stays where its weights are

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        accelerator: Accelerator,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        config: Any = model.config
        self.__name__ = getattr(config, "_name_or_path", "").split("/")[-1]
        self._tokenizer = tokenizer
        self._device = accelerator.device
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        model.eval()
        self._packed = not _is_zero3(accelerator) and _takes_rows(model)
        self.model = _placed(model, accelerator)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> torch.Tensor:
        """The scores.

        Args:
            prompts, completions: B texts, or B lists of messages.
            columns: what other reward functions are given; not used.

        Returns:
            (B,) fp32.
        """
        texts = self._texts(prompts, completions)
        found = self._of_rows(texts, prompts) if self._packed else self._of_batch(texts)
        return found.float().cpu()

    def _texts(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[str]:
        pairs = zip(prompts, completions, strict=True)
        if is_conversational({"prompt": prompts[0]}):
            conversations = [[*prompt, *completion] for prompt, completion in pairs]
            return render(conversations, self._tokenizer, **self._chat_template_kwargs)
        return [prompt + completion for prompt, completion in pairs]

    def _of_batch(self, texts: list[str]) -> torch.Tensor:
        batch = self._tokenizer(
            text=texts,
            return_tensors="pt",
            padding=True,
            padding_side="right",
            add_special_tokens=False,
        )
        return self.model(**batch.to(self._device)).logits[:, 0]

    def _of_rows(self, texts: list[str], prompts: Sequence[Any]) -> torch.Tensor:
        pad = self._tokenizer.pad_token_id
        found = self._tokenizer(text=texts, add_special_tokens=False)["input_ids"]
        ids = [list(row) or [pad] for row in found]  # an empty text is one of padding alone
        lengths = [len(row) for row in ids]
        arrays = [token_array(row) for row in ids]
        pooled = [pooled_column(row, pad) for row in arrays]
        tokens = Tokens(
            padded(arrays, pad, max(lengths)).to(self._device),
            starts=[0] * len(ids),
            lengths=lengths,
            scored=[_NOTHING] * len(ids),
            rows=list(range(len(ids))),
            shared=_shared(prompts, ids, pooled),
        )
        return rewards(self.model, tokens, pooled)


def _is_zero3(accelerator: Accelerator) -> bool:
    plugin = accelerator.state.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def _takes_rows(model: nn.Module) -> bool:
    """Make a model ready to be read row by row, if it is of a kind that can be."""
    try:
        prepare_rewards(model)
    except (TypeError, ValueError) as reason:
        warnings.warn(f"a reward model is read with padding: {reason}", stacklevel=4)
        return False
    return True


def _placed(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return deepspeed_engine(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True, device_placement=True)


def _shared(
    prompts: Sequence[Any], ids: Sequence[list[int]], pooled: Sequence[int]
) -> tuple[Shared, ...]:
    """What neighbours with one prompt begin with in common, before the tokens that are pooled."""
    shared = []
    for _, rows in groupby(range(len(ids)), key=lambda row: prompts[row]):
        group = tuple(rows)
        length = min(common_length(*(ids[row] for row in group)), *(pooled[row] for row in group))
        if len(group) > 1 and length > 0:
            shared.append(Shared(group, length))
    return tuple(shared)


def reward_callables(
    reward_funcs: Any, processing_classes: Any, args: OnlineConfig, accelerator: Accelerator
) -> list[Callable[..., Any]]:
    """The reward functions, each model among them made into one.

    Args:
        reward_funcs: one, or a list: a function, the name or folder of a sequence-classification
            model (loaded with one label, `args.model_init_kwargs` and its own dtype unless they
            name one), or a model.
        processing_classes: `reward_processing_classes`: None, or for each entry None (a model's own
            tokenizer) or the tokenizer; entries of functions have no use. A tokenizer without
            padding token pads with its EOS, and the model's padding token becomes the tokenizer's.
        args: of the trainer.
        accelerator: of the trainer.

    Returns:
        as many functions, callable with the keywords `RewardFunctions` gives.

    Raises:
        ValueError: for no reward, a language model, another number of tokenizers, or one that
            cannot pad.
        TypeError: for an entry of another kind.
    """
    entries = _listed(reward_funcs)
    tokenizers = _tokenizers(processing_classes, len(entries))
    for place, entry in enumerate(entries):
        _require_kind(place, entry)
    made: list[Callable[..., Any]] = []
    for place, (entry, tokenizer) in enumerate(zip(entries, tokenizers, strict=True)):
        if isinstance(entry, str | nn.Module):
            made.append(_reward_model(place, entry, tokenizer, args, accelerator))
        else:
            made.append(entry)
    return made


def _listed(reward_funcs: Any) -> list[Any]:
    entries = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if reward_funcs is None or not entries:
        raise ValueError(
            "reward_funcs is required: give a function, the name of a reward model, a model, or a "
            "list of these"
        )
    return entries


def _tokenizers(given: Any, count: int) -> list[Any]:
    if given is None:
        return [None] * count
    tokenizers = list(given) if isinstance(given, list | tuple) else [given]
    if len(tokenizers) != count:
        raise ValueError(
            f"reward_processing_classes has {len(tokenizers)} entries for {count} reward_funcs; "
            "give one for each, None for a function"
        )
    return tokenizers


def _require_kind(place: int, entry: Any) -> None:
    if isinstance(entry, nn.Module):
        if not hasattr(entry, "config"):
            raise TypeError(
                f"reward_funcs[{place}] is a {type(entry).__name__} without a config; give a "
                "transformers model, or a function that calls yours"
            )
        if hasattr(entry, "can_generate") and entry.can_generate():
            raise ValueError(
                f"reward_funcs[{place}] is a {type(entry).__name__}, a language model, whose "
                "logits are no scores; load it by AutoModelForSequenceClassification"
                ".from_pretrained(..., num_labels=1), or give a function that asks it"
            )
    elif not isinstance(entry, str) and not callable(entry):
        raise TypeError(
            f"reward_funcs[{place}] must be a function, the name of a model or a model, got "
            f"{type(entry).__name__}"
        )


def _reward_model(
    place: int, entry: str | nn.Module, tokenizer: Any, args: OnlineConfig, accelerator: Accelerator
) -> ModelReward:
    keywords: dict[str, Any] = {}
    if isinstance(entry, str):
        given: Any = args.model_init_kwargs or {}  # a dict once the arguments are parsed
        keywords = {"device_map": None, "trust_remote_code": args.trust_remote_code}
        keywords |= {**given, "num_labels": 1}
        if accelerator.num_processes > 1:
            keywords["device_map"] = None
        if "torch_dtype" not in keywords:
            keywords.setdefault("dtype", "auto")
        entry = create_model_from_path(entry, AutoModelForSequenceClassification, **keywords)
    if tokenizer is None:
        source = {"trust_remote_code": args.trust_remote_code}
        source |= {name: keywords[name] for name in ("revision", "token") if name in keywords}
        tokenizer = _own_tokenizer(place, entry, source)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"reward_processing_classes[{place}]: the tokenizer has neither a padding nor an "
                "EOS token; set its pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    chat: Any = args.chat_template_kwargs
    return ModelReward(entry, tokenizer, accelerator, chat)


def _own_tokenizer(place: int, model: nn.Module, keywords: dict[str, Any]) -> Any:
    config: Any = model.config
    name = getattr(config, "_name_or_path", "")
    try:
        return AutoTokenizer.from_pretrained(name, **keywords)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"reward_processing_classes[{place}]: found no tokenizer for {type(model).__name__} at "
            f"{name!r}; give one"
        ) from error
