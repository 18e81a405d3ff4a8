"""From what a user hands to a trainer to a model and tokenizer that are ready for it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fastrl.data.chat_setup import clone_chat_template
from fastrl.models import adapters
from fastrl.models.dropout import disable_dropout_in_model
from fastrl.models.loading import modernise
from fastrl.train import checkpointing
from fastrl.train.config import OfflineConfig

logger = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def run_name(model: Any, method: str) -> str:
    """Output folder of a trainer that was given no args: `<model>-<method>`."""
    config = getattr(model, "config", None)
    name = model if isinstance(model, str) else getattr(config, "_name_or_path", "")
    return f"{name.rstrip('/').split('/')[-1] or 'model'}-{method}"


def check_dataset(name: str, dataset: Any, args: OfflineConfig) -> None:
    """Refuse what no trainer can read.

    Raises:
        ValueError: for no dataset, an empty one, images, or a stream without `max_steps`.
        TypeError: for another kind of object.
    """
    if dataset is None:
        raise ValueError(f"{name} is required: give a datasets.Dataset or IterableDataset")
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(
            f"{name} must be a datasets.Dataset or IterableDataset, got {type(dataset).__name__}; "
            "of a DatasetDict give one split, of a list datasets.Dataset.from_list(...)"
        )
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"{name} has no rows")
    pictures = [name for name in ("image", "images") if name in (dataset.column_names or [])]
    if pictures:
        raise ValueError(
            f"{name} has the column {pictures[0]!r}, but images are not trained on here; remove it "
            "with remove_columns to train on the text alone"
        )
    if isinstance(dataset, IterableDataset) and name == "train_dataset":
        if args.max_steps <= 0:
            raise ValueError("train_dataset is a stream of unknown length: set args.max_steps")
        # Batches made on one process and sent to the others would have to be of equal width.
        args.accelerator_config.dispatch_batches = False


def check_collator(data_collator: Any, name: str = "data_collator") -> None:
    """Raise TypeError, naming the argument, for a collator that cannot be called."""
    if data_collator is not None and not callable(data_collator):
        raise TypeError(
            f"{name} must be a function of a list of rows that returns a batch, got "
            f"{data_collator!r:.80} ({type(data_collator).__name__}); leave it out for fastrl's own"
        )


def _dtype(given: Any) -> Any:
    if given is None or given == "auto" or isinstance(given, torch.dtype):
        return given
    if given not in _DTYPES:
        raise ValueError(
            f"model_init_kwargs['dtype'] must be 'auto', {', '.join(_DTYPES)} or a torch.dtype, "
            f"got {given!r}"
        )
    return _DTYPES[given]


def create_model_from_path(
    model_id: str, architecture: Any = None, **keywords: Any
) -> PreTrainedModel:
    """A pretrained model, in fp32 unless `dtype` says otherwise.

    Args:
        model_id: a folder or a name on the hub.
        architecture: the class to load; None: the one its config names.
        keywords: of `from_pretrained`, those of older releases too.

    Raises:
        ValueError: for an unknown dtype.
    """
    keywords = modernise(keywords)
    keywords["dtype"] = _dtype(keywords.get("dtype"))
    if "device_map" not in keywords:
        on_host = PartialState().device.type in ("cpu", "mps")
        keywords["device_map"] = None if on_host else "auto"
    if architecture is None:
        trusted = keywords.get("trust_remote_code", False)
        revision = {name: keywords[name] for name in ("revision", "token") if name in keywords}
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=trusted, **revision)
        named = (config.architectures or [None])[0]
        architecture = getattr(transformers, named or "", None) or AutoModelForCausalLM
    return architecture.from_pretrained(model_id, **keywords)


def policy(
    model: Any, args: OfflineConfig, quantization_config: Any, architecture: Any = None
) -> nn.Module:
    """The model to train, loaded if it is given by name.

    Raises:
        ValueError: for settings of loading beside a model that is loaded, or set twice.
        TypeError: for what is neither a name nor a model.
    """
    keywords = dict(args.model_init_kwargs or {})
    if isinstance(model, str):
        if quantization_config is not None:
            if "quantization_config" in keywords:
                raise ValueError(
                    "quantization_config is given to the trainer and in args.model_init_kwargs; "
                    "give it to the trainer only"
                )
            keywords["quantization_config"] = quantization_config
        if args.distributed_state.num_processes > 1:
            keywords["device_map"] = None
        keywords.setdefault("trust_remote_code", args.trust_remote_code)
        return create_model_from_path(model, architecture, **keywords)
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            "model must be a name, a transformers model or a PEFT model, "
            f"got {type(model).__name__}"
        )
    for name, given in (
        ("args.model_init_kwargs", keywords),
        ("quantization_config", quantization_config),
    ):
        if given:
            raise ValueError(f"{name} is for a model given by name; this one is loaded already")
    return model


def tokenizer(given: Any, model: nn.Module, args: OfflineConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, by default the model's own.

    Raises:
        TypeError: for a processor or anything else that is no tokenizer.
    """
    if given is None:
        keywords = dict(args.model_init_kwargs or {})
        revision = {name: keywords[name] for name in ("revision", "token") if name in keywords}
        given = AutoTokenizer.from_pretrained(
            model.config._name_or_path, trust_remote_code=args.trust_remote_code, **revision
        )
    if not isinstance(given, PreTrainedTokenizerBase):
        raise TypeError(
            f"processing_class must be a tokenizer, got {type(given).__name__}; models that read "
            "images are not trained here"
        )
    return given


def _require_token(tokenizer: PreTrainedTokenizerBase, name: str, token: str | None) -> None:
    if token is None:
        raise ValueError(f"{name}: the tokenizer has neither a padding nor an EOS token; set one")
    if token not in tokenizer.get_vocab():
        raise ValueError(
            f"{name} {token!r} is not in the vocabulary of {type(tokenizer).__name__}; add it with "
            "add_special_tokens and resize the model's embeddings, or name one that is"
        )


def set_pad_token(
    tokenizer: PreTrainedTokenizerBase, model: nn.Module, args: OfflineConfig
) -> None:
    """Padding is the token asked for, the tokenizer's own or its EOS; model and tokenizer agree."""
    asked = getattr(args, "pad_token", None)  # a field of the trainers on fixed datasets
    token = asked or tokenizer.pad_token or tokenizer.eos_token
    _require_token(tokenizer, "pad_token", token)
    tokenizer.pad_token = token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def set_eos_token(tokenizer: PreTrainedTokenizerBase, model: nn.Module, token: str | None) -> None:
    """Make a token the end of sequences; generation stops at it as well as where it did before."""
    if token is None:
        return
    _require_token(tokenizer, "eos_token", token)
    tokenizer.eos_token = token
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    known = generation.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else list(known)
    if tokenizer.eos_token_id not in known:
        generation.eos_token_id = [tokenizer.eos_token_id, *known]


def set_checkpointing(args: OfflineConfig) -> None:
    """Turn `selective` into what torch's checkpoint takes."""
    keywords = checkpointing.resolve(
        args.gradient_checkpointing, args.gradient_checkpointing_kwargs
    )
    args.gradient_checkpointing_kwargs = keywords
    if hasattr(args, "activation_checkpointing_kwargs"):  # the name of newer releases
        args.activation_checkpointing_kwargs = keywords


def with_adapter(model: nn.Module, peft_config: Any, args: OfflineConfig) -> nn.Module:
    """The model with a fresh PEFT adapter where one is asked for, ready for checkpointing.

    Raises:
        ImportError, ValueError: as `adapters.check_config`; for a PEFT model beside a config.
    """
    adapters.check_config(peft_config)
    set_checkpointing(args)
    quantized = any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
    if peft_config is not None:
        if adapters.is_peft(model):
            raise ValueError(
                "peft_config: the model has an adapter already; give that model alone, or "
                "merge_and_unload() it first"
            )
        model = _adapted(model, peft_config, args, quantized)
    if adapters.is_peft(model):
        if args.gradient_checkpointing:
            model.enable_input_require_grads()
        if quantized:
            _train_in_bf16(model)
    return model


def _zero3(args: OfflineConfig) -> bool:
    return args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3


def _adapted(model: nn.Module, peft_config: Any, args: OfflineConfig, quantized: bool) -> nn.Module:
    from peft import get_peft_model

    keywords: dict[str, Any] = {}
    if _zero3(args):
        # DeepSpeed gathers small parameters into one buffer, so all must have the base's dtype; and
        # its recomputation works in the reentrant form only.
        if not quantized:
            keywords["autocast_adapter_dtype"] = False
        if args.gradient_checkpointing:
            given = dict(args.gradient_checkpointing_kwargs or {})
            if given.get("use_reentrant") is False:
                raise ValueError(
                    "gradient_checkpointing_kwargs['use_reentrant']=False does not work with PEFT "
                    "under ZeRO-3; leave it out"
                )
            args.gradient_checkpointing_kwargs = {**given, "use_reentrant": True}
            set_checkpointing(args)
    return get_peft_model(model, copy.deepcopy(peft_config), **keywords)


def _train_in_bf16(model: nn.Module) -> None:
    """QLoRA trains its adapters in bf16 (arXiv 2305.14314, section 3).

    DoRA's magnitudes stay in fp32: their updates are smaller than bf16 resolves.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def router_aux_loss_coef(model: nn.Module, given: float | None) -> float:
    """Weight of the router's load-balancing loss: as given, else the model's own; 0 without one.

    Raises:
        ValueError: for a weight given to a model that has no router.
    """
    config = model.config.get_text_config()
    has_router = hasattr(config, "output_router_logits")
    if given and not has_router:
        raise ValueError(
            f"router_aux_loss_coef={given}, but {type(model).__name__} has no router whose logits "
            "it could return; leave it out"
        )
    own = getattr(config, "router_aux_loss_coef", 0.0) or 0.0
    coefficient = own if given is None else given
    if hasattr(config, "router_aux_loss_coef"):
        config.router_aux_loss_coef = coefficient
    return coefficient if has_router else 0.0


def disable_dropout(*models: nn.Module | None) -> None:
    """Set every dropout of the models to 0."""
    for model in models:
        if model is not None:
            disable_dropout_in_model(model)


def chat_template(
    tokenizer: PreTrainedTokenizerBase, model: nn.Module, path: str | None
) -> tuple[nn.Module, PreTrainedTokenizerBase, list[int]]:
    """Model and tokenizer with the template of a .jinja file or of another model's tokenizer.

    Returns:
        model, tokenizer and the ids that were added with the other tokenizer's special tokens.
    """
    if path is None:
        return model, tokenizer, []
    if path.endswith((".jinja", ".j2")) and Path(path).is_file():
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        return model, tokenizer, []
    return clone_chat_template(model, tokenizer, path)


def with_new_tokens(peft_config: Any, added: list[int]) -> Any:
    """The PEFT config, training the embeddings of tokens a chat template brought, and the head."""
    if peft_config is None or not added:
        return peft_config
    peft_config = copy.deepcopy(peft_config)
    trained = dict(peft_config.trainable_token_indices or {})
    trained["embed_tokens"] = [*trained.get("embed_tokens", []), *added]
    peft_config.trainable_token_indices = trained
    saved = list(peft_config.modules_to_save or [])
    if "lm_head" not in saved:
        logger.warning("chat_template_path added tokens: peft_config trains lm_head whole as well")
        peft_config.modules_to_save = [*saved, "lm_head"]
    return peft_config


def each(dataset: Any, prepare: Callable[[Any], Any]) -> Any:
    """Apply to a dataset, or to each of a dict of them; None stays None."""
    if isinstance(dataset, Mapping):
        return {name: prepare(part) for name, part in dataset.items()}
    return None if dataset is None else prepare(dataset)
