"""Columns that a frozen model adds to a dataset once, instead of at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from fastrl.train.batch import Batch
from fastrl.train.trainer import Trainer

Score = Callable[[Batch], dict[str, torch.Tensor]]


def precompute(
    trainer: Trainer, dataset: Dataset, batch_size: int, key: str, score: Score
) -> Dataset:
    """The dataset with the columns that `score` gives, kept beside its own cache.

    Args:
        trainer: collates the rows and spreads them over its processes.
        dataset: prepared rows.
        batch_size: rows of one call.
        key: what besides the rows the columns depend on, e.g. a hash of the model.
        score: a batch -> columns, (rows,) each; called without gradient.

    Raises:
        ValueError: for a stream, which has no end to be run over.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "precompute_ref_log_probs runs over the whole dataset, which a stream does not have; "
            "set it to False"
        )
    fingerprint = [Hasher.hash((dataset._fingerprint, key))]
    broadcast_object_list(fingerprint)
    file = dataset._get_cache_file_path(fingerprint[0])
    if not Path(file).exists():
        columns = over_dataset(trainer, dataset, batch_size, score, "Reference over the dataset")
        if trainer.accelerator.is_main_process:
            _write(dataset, columns, fingerprint[0], file)
        trainer.accelerator.wait_for_everyone()
    return concatenate_datasets([dataset, Dataset.from_file(file)], axis=1)


@torch.no_grad()
def over_dataset(
    trainer: Trainer, dataset: Dataset, batch_size: int, score: Score, shown_as: str
) -> dict[str, torch.Tensor]:
    """The columns that `score` gives of all rows, in fp32 on the host, alike on every process.

    Args:
        trainer, dataset, batch_size, score: as `precompute` takes them.
        shown_as: what the progress bar says.
    """
    loader = trainer.accelerator.prepare(
        DataLoader(dataset, batch_size, collate_fn=trainer.data_collator)
    )
    was_training = trainer.model.training
    trainer.model.eval()
    found: dict[str, list[torch.Tensor]] = {}
    shown = tqdm(loader, desc=shown_as, disable=trainer.args.disable_tqdm)
    for batch in shown:
        # The last batch may repeat rows so that all processes get one; those are dropped again.
        columns = trainer.accelerator.gather_for_metrics(score(Batch(batch)))
        for name, values in columns.items():
            found.setdefault(name, []).append(values.float().cpu())
    trainer.model.train(was_training)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _write(dataset: Dataset, columns: dict[str, torch.Tensor], fingerprint: str, file: str) -> None:
    values = {name: column.numpy() for name, column in columns.items()}
    dataset.map(
        lambda _, index: {name: column[index] for name, column in values.items()},
        with_indices=True,
        batched=True,
        remove_columns=dataset.column_names,
        new_fingerprint=fingerprint,
        cache_file_name=file,
        desc="Keeping the reference's log-probabilities",
    )
