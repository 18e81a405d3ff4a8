"""Language models with a value head: what classic PPO trains."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from fastrl.models.door import Answer, Request
from fastrl.models.wrapper import PreTrainedModelWrapper


def _width(config: Any) -> int:
    """Size of the hidden states that reach the head."""
    if hasattr(config, "word_embed_proj_dim"):
        return config.word_embed_proj_dim
    decoder: Any = getattr(config, "decoder", None)
    if getattr(config, "is_encoder_decoder", False) and hasattr(decoder, "hidden_size"):
        return decoder.hidden_size
    if not hasattr(config, "hidden_size"):
        raise ValueError(f"{type(config).__name__} states no hidden_size to build a value head on")
    return config.hidden_size


class ValueHead(nn.Module):
    """Dropout and one linear unit on each hidden state.

    Args:
        config: the base model's; its `summary_dropout_prob`, if it has one, wins over the argument.
        summary_dropout_prob: dropout on the hidden states.
    """

    def __init__(self, config: Any, summary_dropout_prob: float = 0.1, **_: Any) -> None:
        super().__init__()
        dropout = getattr(config, "summary_dropout_prob", summary_dropout_prob)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.summary = nn.Linear(_width(config), 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., 1), in the dtype of the head's weights."""
        return self.summary(self.dropout(hidden_states).to(self.summary.weight.dtype))


class _WithValueHead(PreTrainedModelWrapper):
    """What the causal and the encoder-decoder wrapper have in common."""

    supported_args = ("summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")

    def __init__(self, pretrained_model: nn.Module, **kwargs: Any) -> None:
        super().__init__(pretrained_model, **kwargs)
        self._require_kind()
        if not self._has_lm_head():
            raise ValueError(
                f"pretrained_model: {type(pretrained_model).__name__} has no language model head "
                f"({', '.join(self.lm_head_namings)}); give a model loaded with one, e.g. by "
                f"{self.transformers_parent_class.__name__}"
            )
        head_kwargs = {name: kwargs[name] for name in self.supported_args if name in kwargs}
        self.v_head = ValueHead(pretrained_model.config, **head_kwargs)
        self._init_weights(**head_kwargs)

    def _has_lm_head(self) -> bool:
        raise NotImplementedError

    def _require_kind(self) -> None:
        """Refuse a decoder where an encoder-decoder belongs, and the reverse."""
        found = bool(getattr(self.config, "is_encoder_decoder", False))
        wanted = isinstance(self, AutoModelForSeq2SeqLMWithValueHead)
        if found != wanted:
            kinds = {True: "an encoder-decoder", False: "a decoder"}
            other = {
                True: AutoModelForSeq2SeqLMWithValueHead,
                False: AutoModelForCausalLMWithValueHead,
            }
            raise ValueError(
                f"pretrained_model: {type(self.pretrained_model).__name__} is {kinds[found]}; wrap "
                f"it in {other[found].__name__}"
            )

    def _init_weights(
        self,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float | None = None,
        **_: Any,
    ) -> None:
        """Start the head: torch's own start (None), or normal weights and no bias ("normal")."""
        if v_head_init_strategy not in (None, "normal"):
            raise ValueError(
                f"v_head_init_strategy must be None or 'normal', got {v_head_init_strategy!r}"
            )
        if v_head_init_strategy is None:
            if v_head_initializer_range is not None:
                warnings.warn(
                    "v_head_initializer_range acts only with v_head_init_strategy='normal'",
                    stacklevel=4,
                )
            return
        spread = 0.2 if v_head_initializer_range is None else v_head_initializer_range
        if not isinstance(spread, int | float) or spread < 0:
            raise ValueError(f"v_head_initializer_range must be a number from 0 on, got {spread!r}")
        nn.init.normal_(self.v_head.summary.weight, std=spread)
        nn.init.zeros_(self.v_head.summary.bias)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        return_past_key_values: bool = False,
        fastrl_request: Request | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Logits and values of every position.

        Args:
            input_ids, attention_mask: (B, T).
            past_key_values, kwargs: handed on to the model.
            return_past_key_values: append the model's cache to the result.
            fastrl_request: private to `fastrl.models.policy`.

        Returns:
            (logits (B, T, V) in at least fp32, loss or None, values (B, T)[, past_key_values]).
        """
        if fastrl_request is not None:
            return self._answer(fastrl_request)
        kwargs["output_hidden_states"] = True
        if not self._is_prefix_tuned():
            kwargs["past_key_values"] = past_key_values
        output = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = self._last_hidden(output).to(self.v_head.summary.weight.device)
        value = self.v_head(hidden).squeeze(-1).to(output.logits.device)
        logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
        result = (logits, output.loss, value)
        return (*result, output.past_key_values) if return_past_key_values else result

    def _is_prefix_tuned(self) -> bool:
        if not self.is_peft_model:
            return False
        return self.pretrained_model.active_peft_config.peft_type == "PREFIX_TUNING"

    def _last_hidden(self, output: Any) -> torch.Tensor:
        return output.hidden_states[-1]

    def _answer(self, request: Request) -> Answer:
        """The wrapped model's answer, with the values of the places it scores."""
        answer = self.pretrained_model(fastrl_request=request.with_hidden())
        value = self.v_head(answer.hidden.to(self.v_head.summary.weight.device)).squeeze(-1)
        values = value.to(torch.promote_types(value.dtype, torch.float32))
        return answer._replace(hidden=None, values=values)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` of the wrapped model."""
        return self.pretrained_model.generate(*args, **kwargs)


class AutoModelForCausalLMWithValueHead(_WithValueHead):
    """A causal language model with a value head.

    Args:
        pretrained_model: a transformers causal model, or one wrapped by PEFT.
        summary_dropout_prob: dropout before the value head, 0.1.
        v_head_init_strategy: None (torch's own start) or "normal".
        v_head_initializer_range: standard deviation under "normal", 0.2.

    Raises:
        ValueError: for a model without a language model head, or an encoder-decoder.
    """

    transformers_parent_class = AutoModelForCausalLM
    lm_head_namings = ("lm_head", "embed_out")

    def _has_lm_head(self) -> bool:
        return any(hasattr(self.pretrained_model, name) for name in self.lm_head_namings)


class AutoModelForSeq2SeqLMWithValueHead(_WithValueHead):
    """An encoder-decoder language model with a value head on the decoder's hidden states.

    Arguments and errors are those of `AutoModelForCausalLMWithValueHead`, but that a decoder alone
    is refused.
    """

    transformers_parent_class = AutoModelForSeq2SeqLM
    lm_head_namings = ("lm_head", "embed_out", "output_projection")

    def __init__(self, pretrained_model: nn.Module, **kwargs: Any) -> None:
        super().__init__(pretrained_model, **kwargs)
        self.is_encoder_decoder = True

    def _has_lm_head(self) -> bool:
        modules = (name for name, _ in self.pretrained_model.named_modules())
        return any(head in name for name in modules for head in self.lm_head_namings)

    def _last_hidden(self, output: Any) -> torch.Tensor:
        return output.decoder_hidden_states[-1]


SUPPORTED_ARCHITECTURES = (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)
