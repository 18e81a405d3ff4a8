"""Weights of bad answers by their prompts: underlying distribution matching (BCO, section 3.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fastrl.train.precompute import over_dataset
from fastrl.train.trainer import Trainer

Embed = Callable[..., torch.Tensor]


def logistic_regression() -> Any:
    """scikit-learn's class. Raises ImportError, with what to install, where it is not."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(
            "embedding_func: its weights are learnt by scikit-learn's logistic regression, which "
            "is not installed: pip install scikit-learn"
        ) from error
    return LogisticRegression


def check(embedding_func: Any, embedding_tokenizer: Any, dataset: Any) -> None:
    """Refuse one without the other, what is neither, and rows of which none can be drawn.

    Raises:
        ImportError: without scikit-learn.
        TypeError: for what cannot be called, or is no tokenizer.
        ValueError: for one of the two alone, a tokenizer that cannot pad, or a stream.
    """
    if (embedding_func is None) != (embedding_tokenizer is None):
        here, absent = "embedding_func", "embedding_tokenizer"
        if embedding_func is None:
            here, absent = absent, here
        raise ValueError(f"{here} is given without {absent}: prompts are embedded by the two")
    if embedding_func is None:
        return
    if not callable(embedding_func):
        raise TypeError(
            "embedding_func must be a function of input_ids= and attention_mask= that returns "
            f"(B, D) embeddings, got {type(embedding_func).__name__}"
        )
    if not isinstance(embedding_tokenizer, PreTrainedTokenizerBase):
        kind = type(embedding_tokenizer).__name__
        raise TypeError(f"embedding_tokenizer must be a tokenizer, got {kind}")
    if embedding_tokenizer.pad_token_id is None:
        raise ValueError("embedding_tokenizer has no padding token; set its pad_token")
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "embedding_func: its weights are learnt from prompts drawn of the whole train_dataset, "
            "which a stream does not have; load it with streaming=False"
        )
    logistic_regression()


def check_embeddings(found: Any, rows: int) -> torch.Tensor:
    """What `embedding_func` returned of some rows, if it is one vector for each.

    Raises:
        TypeError, ValueError: if it is not.
    """
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"embedding_func must return a tensor ({rows}, D) of {rows} prompts, got "
            f"{type(found).__name__}"
        )
    if found.dim() != 2 or len(found) != rows:
        raise ValueError(
            f"embedding_func must return one vector for each of {rows} prompts, ({rows}, D); its "
            f"tensor is {tuple(found.shape)}"
        )
    return found


@dataclass(frozen=True)
class PromptClassifier:
    """p(good | prompt) = σ(w·e + b) of an embedding e; both kinds count alike in the fit."""

    weight: torch.Tensor  # (D,) fp32
    bias: float

    @classmethod
    def fit(cls, good: torch.Tensor, bad: torch.Tensor) -> Self:
        """Learn to tell (N, D) embeddings of prompts with good answers from (M, D) of bad ones."""
        embeddings = torch.cat([good, bad]).float().numpy()
        labels = np.repeat([1, 0], [len(good), len(bad)])
        found = logistic_regression()(class_weight="balanced").fit(embeddings, labels)
        return cls(torch.from_numpy(np.float32(found.coef_[0])), float(found.intercept_[0]))

    def density_ratio(
        self, embeddings: torch.Tensor, least: float, greatest: float
    ) -> torch.Tensor:
        """(B,) fp32 p(good | e) / p(bad | e) of (B, D) embeddings, within the two bounds."""
        logits = embeddings.float() @ self.weight.to(embeddings.device) + self.bias
        return logits.exp().clamp(least, greatest)

    def save(self, path: Path) -> None:
        """Write weights and bias as JSON."""
        path.write_text(json.dumps({"weight": self.weight.tolist(), "bias": self.bias}) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote."""
        kept = json.loads(path.read_text())
        return cls(torch.tensor(kept["weight"], dtype=torch.float32), kept["bias"])


def classifier(
    trainer: Trainer, embed: Callable[[Any], torch.Tensor], dataset: Dataset, size: int
) -> PromptClassifier:
    """A classifier of prompts drawn from the dataset, the same on every process.

    Args:
        trainer: collates the rows and spreads them over its processes.
        embed: a batch -> (B, D).
        dataset: prepared rows with `label` and `embedding_ids`.
        size: prompts drawn of either kind, with replacement; at most as many as there are.

    Raises:
        ValueError: if the dataset has no rows of one kind, or an embedding is not finite.
    """
    labels = np.asarray(dataset.with_format("numpy")["label"][:], dtype=bool)
    random = np.random.RandomState(trainer.args.seed)
    batch_size = trainer.args.per_device_train_batch_size
    found = []
    for kind, rows in (("True", np.flatnonzero(labels)), ("False", np.flatnonzero(~labels))):
        if not len(rows):
            raise ValueError(
                f"embedding_func tells prompts of good answers from those of bad ones, but no row "
                f"of train_dataset has label={kind}; leave it out"
            )
        drawn = rows[random.choice(len(rows), size=min(size, len(rows)))]
        score = lambda batch: {"embedding": embed(batch)}  # noqa: E731
        shown = "Prompts of one kind embedded"
        columns = over_dataset(trainer, dataset.select(drawn), batch_size, score, shown)
        found.append(columns["embedding"])
        if not found[-1].isfinite().all():
            raise ValueError("embedding_func returned NaN or infinity; look at its padding")
    return PromptClassifier.fit(*found)
