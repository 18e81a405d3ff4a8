"""Which rows to train on: the command line's dataset options, and the datasets they name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl.legacy.fields import accepts_legacy_fields

if TYPE_CHECKING:
    from datasets import DatasetDict

# Ending of a file -> the builder of `datasets` that reads it.
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


@accepts_legacy_fields({}, beside=("config", "gradient_checkpointing_use_reentrant"))
@dataclass
class ScriptArguments:
    """One dataset and its splits.

    `gradient_checkpointing_use_reentrant`, of TRL 0.12 to 0.28, is an argument, an attribute and a
    flag but no field of the class; a parser puts it into the training arguments. So is `config`, of
    TRL 0.12: `TrlParser` reads the file.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A local .jsonl, .json, .parquet or .csv file or folder, or a hub name."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset, if it has several."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read rows as they are needed; set max_steps then."}
    )
    ignore_bias_buffers: bool = field(
        default=False,
        metadata={"help": "Keep boolean buffers out of DDP, which cannot broadcast them."},
    )

    config = None
    gradient_checkpointing_use_reentrant = False
    _shared_flags = ("gradient_checkpointing_use_reentrant",)


@dataclass
class DatasetConfig:
    """One dataset of a mixture.

    Attributes:
        path: a local file or folder, or a name on the hub.
        name: configuration, if the dataset has several.
        data_dir: folder inside the dataset.
        data_files: files inside it, or files for a builder named by `path`.
        split: which rows.
        columns: those to keep; None: all.
        fraction: this dataset's share of the mixture, to scale; all datasets have one, or none.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, str] | None = None
    split: str = "train"
    columns: list[str] | None = None
    fraction: float | None = None


@dataclass
class DatasetMixtureConfig:
    """Several datasets, one after the other."""

    datasets: list[DatasetConfig] = field(
        default_factory=list,
        metadata={"help": "Datasets to join; their options can be given in a --config file."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read rows as they are needed."})
    test_split_size: float | None = field(
        default=None, metadata={"help": "Rows to hold out: a count, or below 1 a share."}
    )

    def __post_init__(self) -> None:
        self.datasets = [
            DatasetConfig(**each) if isinstance(each, dict) else each for each in self.datasets
        ]


def load(
    path: str,
    name: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    data_dir: str | None = None,
    data_files: Any = None,
) -> Any:
    """Rows from a local file, a folder (of files, or written by `save_to_disk`) or the hub.

    Args:
        path: where; the other arguments are those of `datasets.load_dataset`.

    Raises:
        ValueError: a local file of a kind that is not read, a split that is not there.
    """
    import datasets

    local = Path(path).expanduser()
    if local.is_dir() and any((local / f).exists() for f in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(str(local))
        if isinstance(saved, datasets.Dataset):
            saved = datasets.DatasetDict({"train": saved})
        return saved if split is None else pick(saved, split, path)
    if local.is_file():
        if local.suffix not in _BUILDERS:
            known = ", ".join(_BUILDERS)
            raise ValueError(f"dataset {path}: {local.suffix!r} files are not read, only {known}")
        path, data_files = _BUILDERS[local.suffix], str(local)
    return datasets.load_dataset(
        path,
        name=name,
        data_dir=data_dir,
        data_files=data_files,
        split=split,
        streaming=streaming,
    )


def pick(splits: Any, split: str, path: str) -> Any:
    """One split. Raises ValueError with those there are."""
    if split not in splits:
        raise ValueError(f"dataset {path} has no split {split!r}, only {sorted(splits)}")
    return splits[split]


def _shares(fractions: list[float | None], rows: list[Any], streaming: bool) -> list[Any]:
    """The first rows of each dataset, so that the sizes are as the fractions; none is repeated."""
    given = [share for share in fractions if share is not None]
    if not given:
        return rows
    if len(given) < len(fractions):
        raise ValueError("fraction must be set for each dataset of the mixture, or for none")
    if streaming:
        raise ValueError("fraction needs the number of rows, which a streamed dataset has not")
    if min(given) < 0 or sum(given) == 0:
        raise ValueError(f"fractions {given}: none may be negative, and one must be positive")
    weights = [share / sum(given) for share in given]
    total = min(len(r) / w for r, w in zip(rows, weights, strict=True) if w > 0)
    return [r.select(range(round(w * total))) for r, w in zip(rows, weights, strict=True)]


def get_dataset(mixture_config: DatasetMixtureConfig) -> DatasetDict:
    """The mixture: split `train`, and `test` if `test_split_size` holds rows out.

    Raises:
        ValueError: no dataset, or fractions that make no mixture.
    """
    import datasets

    if not mixture_config.datasets:
        raise ValueError("the mixture is empty: give datasets=[DatasetConfig(path=...), ...]")
    rows = []
    for each in mixture_config.datasets:
        found = load(
            each.path, each.name, each.split, mixture_config.streaming, each.data_dir,
            each.data_files,
        )  # fmt: skip
        rows.append(found if each.columns is None else found.select_columns(each.columns))
    fractions = [each.fraction for each in mixture_config.datasets]
    mixed = datasets.concatenate_datasets(_shares(fractions, rows, mixture_config.streaming))
    if mixture_config.test_split_size is None:
        return datasets.DatasetDict({"train": mixed})
    size = mixture_config.test_split_size
    # With a seed, so that every process holds out the same rows.
    return mixed.train_test_split(test_size=int(size) if size >= 1 else size, seed=42)
