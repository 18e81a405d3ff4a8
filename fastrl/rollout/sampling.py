"""How tokens are chosen and when a row ends, from transformers' own settings."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

# Settings of a GenerationConfig that say nothing about which tokens come out of this engine.
_WITHOUT_EFFECT = frozenset(
    {
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "early_stopping",
        "is_assistant",
        "length_penalty",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "pad_token_id",
        "prefill_chunk_size",
        "renormalize_logits",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
    }
)
_HONOURED = frozenset(
    {
        "do_sample",
        "eos_token_id",
        "max_length",
        "max_new_tokens",
        "min_p",
        "num_return_sequences",
        "repetition_penalty",
        "stop_strings",
        "temperature",
        "top_k",
        "top_p",
    }
)
# What leaves the distribution alone; None does so everywhere.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "diversity_penalty": (0.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "low_memory": (False,),
    "min_length": (0, -1),
    "min_new_tokens": (0, -1),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_logits": (False,),
    "output_scores": (False,),
    "penalty_alpha": (0.0,),
    "remove_invalid_values": (False,),
    "return_dict_in_generate": (False,),
    "token_healing": (False,),
    "top_h": (1.0,),
    "typical_p": (1.0,),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when a row ends besides its limit."""

    temperature: float = 1.0  # 0: the best token
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether tokens are chosen by nothing but the logits and the temperature."""
        filters = (self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        return self.temperature == 0 or filters == (0, 1.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0:
            raise ValueError(
                f"repetition_penalty must be positive, not {self.repetition_penalty}; 1 is off"
            )
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise ValueError(f"stop strings must be non-empty strings, not {self.stop!r}")


def ids_of(eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    """The end-of-sequence ids of a setting that may be one, several or none; -1 is none."""
    if eos_token_id is None:
        return frozenset()
    several = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    return frozenset(int(i) for i in several if i >= 0)


def unserved(config: GenerationConfig) -> str | None:
    """The first setting of a resolved configuration that the engine does not implement, or None."""
    for name, given in sorted(config.to_dict().items()):
        if given is None or name in _HONOURED or name in _WITHOUT_EFFECT:
            continue
        if given in _NEUTRAL.get(name, ()):
            continue
        return f"{name}={given!r}"
    return None


def resolved(
    model: PreTrainedModel, generation_config: GenerationConfig | None, arguments: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Arguments over `generation_config` over the model's own, and the arguments left over.

    A model whose own is None is given the one that its config makes, as when it was loaded.
    """
    if getattr(model, "generation_config", None) is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    given = {name: value for name, value in arguments.items() if value is not None}
    if generation_config is not None:
        generation_config = copy.deepcopy(generation_config)
        given = generation_config.update(**given)
    prepare: Any = model._prepare_generation_config
    return prepare(generation_config, **given)


def refuse_unknown(model: PreTrainedModel, others: Mapping[str, Any]) -> None:
    """Refuse what is no setting and neither `generate` nor the model's forward takes.

    Raises:
        ValueError: naming the arguments.
    """
    instance: Any = model
    taken = inspect.signature(instance.generate).parameters
    try:
        instance._validate_model_kwargs({n: x for n, x in others.items() if n not in taken})
    except ValueError as error:
        raise ValueError(f"generation_kwargs: {error}") from None


def sampling_of(config: GenerationConfig) -> Sampling:
    """What a resolved configuration says of choosing tokens and of ending."""
    stop = config.stop_strings or ()
    drawn = bool(config.do_sample)
    return Sampling(
        temperature=float(config.temperature) if drawn else 0.0,
        top_k=int(config.top_k or 0) if drawn else 0,
        top_p=float(config.top_p) if drawn and config.top_p is not None else 1.0,
        min_p=float(config.min_p or 0.0) if drawn else 0.0,
        repetition_penalty=float(config.repetition_penalty or 1.0),
        eos=ids_of(config.eos_token_id),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
