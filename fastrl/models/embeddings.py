"""What a model's embeddings can take: ids below the vocabulary, positions below a learned table."""

from __future__ import annotations

from typing import Any

from torch import nn

# OPT, BART and their kin keep this many rows of the position table for padding.
_RESERVED_POSITIONS = (0, 2)


def vocabulary_size(model: Any) -> int | None:
    """How many ids the model embeds; None if that cannot be told.

    Args:
        model: a transformers model, or one wrapped by PEFT.
    """
    embeddings = model.get_input_embeddings()
    size = getattr(embeddings, "num_embeddings", None)
    if size is None and hasattr(embeddings, "weight"):
        size = embeddings.weight.shape[0]
    return size or None  # a partitioned weight tells nothing


def position_limit(model: Any) -> int | None:
    """The longest row of a decoder with a learned table of positions; None if there is no table.

    Args:
        model: a transformers model, or one wrapped by PEFT.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is None:
        return None
    ids = model.get_input_embeddings()
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not ids)
    fits = any(table.num_embeddings - longest in _RESERVED_POSITIONS for table in tables)
    return longest if fits else None
