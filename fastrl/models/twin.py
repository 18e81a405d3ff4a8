"""A small model of the same class, tried in the place of one that cannot run by itself.

Under ZeRO-3, and under FSDP where all ranks but one load nothing, no rank holds the weights. What
a trial is to find out (does attention keep packed rows apart, does the head path give the class's
own logits) is a matter of the class and its config, so a twin with few layers and random weights
answers it, alike on every rank.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from fastrl.models import trial

_LAYERS = 2  # at least; more where the first kinds of layer are alike
_VOCABULARY = 256
_WIDTH = 128  # of MLPs, which see one token at a time


def needed(model: PreTrainedModel) -> bool:
    """Whether the model cannot be tried itself: spread over processes, or not loaded here.

    transformers' `is_fsdp_enabled` says that ranks load less than the first, which asks too.
    """
    from transformers.integrations import is_fsdp_enabled

    return is_fsdp_enabled() or trial.partitioned(model)


def _shrink(config: Any) -> None:
    """Fewer layers, ids and MLP columns; every kind of layer stays."""
    depth = min(_LAYERS, config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        depth = max(depth, max(list(kinds).index(kind) + 1 for kind in set(kinds)))
        config.layer_types = list(kinds)[:depth]
    config.num_hidden_layers = depth
    config.vocab_size = min(_VOCABULARY, config.vocab_size)
    for name in ("intermediate_size", "moe_intermediate_size"):
        width = getattr(config, name, None)
        if isinstance(width, int):
            setattr(config, name, min(_WIDTH, width))
    if config.pad_token_id is not None:
        config.pad_token_id %= config.vocab_size


def of(model: PreTrainedModel) -> PreTrainedModel:
    """The twin, whole, with the dtype of the model and where ids are fed to it.

    Raises:
        Exception: whatever the class raises for a smaller config.
    """
    device, dtype = trial.key(model)
    config = copy.deepcopy(model.config)
    _shrink(config.get_text_config())
    whole = torch.device("cpu") if device == "meta" else torch.device(device)
    # In this state transformers spreads nothing, not even the models that a class makes inside.
    with torch.random.fork_rng(devices=[]), set_zero3_state():
        torch.manual_seed(0)
        made = cast(PreTrainedModel, type(model)(config))
    made.config._attn_implementation = model.config._attn_implementation
    return made.to(device=whole, dtype=dtype).eval()
