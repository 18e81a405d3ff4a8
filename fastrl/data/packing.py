"""Short rows laid end to end in rows of one length, so that little is padded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from fastrl.ops.plan_packing import plan_packing

STRATEGIES = ("bfd", "bfd_split", "wrapped")
_LISTS = (pa.ListArray, pa.LargeListArray)


def _list_columns(table: pa.Table) -> tuple[dict[str, pa.Array], np.ndarray]:
    """The columns, each in one piece and its values without gaps, and (N,) values in each row."""
    columns = {}
    lengths = None
    for name in table.column_names:
        column = table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if not isinstance(column, _LISTS):
            raise TypeError(
                f"packing needs lists in every column and {name!r} holds {column.type}; keep "
                "the others with dataset.select_columns([...])"
            )
        own = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        if lengths is not None and not np.array_equal(own, lengths):
            row = int(np.flatnonzero(own != lengths)[0])
            raise ValueError(
                f"columns {next(iter(columns))!r} and {name!r} differ in length in a row "
                f"({lengths[row]} and {own[row]} values); packing needs one value for each token"
            )
        lengths = own
        columns[name] = column
    if lengths is None:
        raise ValueError("packing needs at least one column of lists")
    return columns, lengths.astype(np.int64)


def _relist(column: pa.Array, values: pa.Array, offsets: np.ndarray) -> pa.Array:
    """Lists of `column`'s type: list i is values[offsets[i] : offsets[i + 1]]."""
    kind = pa.int64() if pa.types.is_large_list(column.type) else pa.int32()
    return type(column).from_arrays(pa.array(offsets, type=kind), values, type=column.type)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths)))


def _pack_whole(table: pa.Table, seq_length: int, split: bool) -> pa.Table:
    """Rows packed by best fit; one that is too long is cut off, or split over several."""
    columns, lengths = _list_columns(table)
    starts = _offsets(lengths)[:-1]
    if split:
        pieces = -(-lengths // seq_length)
        first = np.repeat(_offsets(pieces)[:-1], pieces)
        skipped = (np.arange(pieces.sum()) - first) * seq_length
        starts = np.repeat(starts, pieces) + skipped
        lengths = np.repeat(lengths, pieces) - skipped
    lengths = np.minimum(lengths, seq_length)
    plan = plan_packing(lengths, seq_length)
    lengths = lengths[plan.order]
    ends = _offsets(lengths)
    taken = pa.array(np.arange(ends[-1]) + np.repeat(starts[plan.order] - ends[:-1], lengths))
    packed = {
        name: _relist(column, column.flatten().take(taken), ends[plan.offsets])
        for name, column in columns.items()
    }
    seq_lengths = pa.array(lengths.astype(np.int32))
    packed["seq_lengths"] = pa.ListArray.from_arrays(
        pa.array(plan.offsets.astype(np.int32)), seq_lengths
    )
    return pa.table(packed)


def _pack_wrapped(table: pa.Table, seq_length: int) -> pa.Table:
    """All rows in one stream, cut every `seq_length` values."""
    columns, lengths = _list_columns(table)
    total = int(lengths.sum())
    offsets = np.append(np.arange(0, total, seq_length), total)
    return pa.table(
        {name: _relist(column, column.flatten(), offsets) for name, column in columns.items()}
    )


def _restore_format(packed: Any, before: Any, strategy: str) -> Any:
    """The packed dataset, in the format its rows came in."""
    if isinstance(packed, Dataset):
        kind, columns = before.format["type"], before.format["columns"]
        if strategy != "wrapped":
            columns = [*columns, "seq_lengths"]
        return packed.with_format(kind, columns=columns, **before.format["format_kwargs"])
    formatting = before._formatting
    return packed.with_format(None if formatting is None else formatting.format_type)


def pack_dataset(
    dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict,
    seq_length: int,
    strategy: str = "bfd",
    map_kwargs: dict[str, Any] | None = None,
) -> Dataset | IterableDataset | DatasetDict | IterableDatasetDict:
    """Lay the rows end to end in rows of at most `seq_length`, in TRL 1.16's order.

    Packing sees the rows that one call of `dataset.map` sees, 1000 unless `map_kwargs` has another
    `batch_size`. Empty rows vanish.

    Args:
        dataset: every column a list, all of one length within a row (`input_ids`, `labels`, …).
        seq_length: tokens a packed row holds at most.
        strategy: `bfd` packs whole rows by best fit, the longest first (arXiv:2404.10830), and cuts
            off what exceeds `seq_length`; `bfd_split` packs that rest as rows of their own;
            `wrapped` cuts the stream of all rows every `seq_length` tokens.
        map_kwargs: more arguments of `dataset.map`, such as `num_proc`.

    Returns:
        The packed dataset; `bfd` and `bfd_split` add the column `seq_lengths`, the list of the
        lengths of what lies in each row.

    Raises:
        TypeError: a column does not hold lists.
        ValueError: the strategy is unknown, `seq_length` is not positive, or columns differ in
            length.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if seq_length < 1:
        raise ValueError(f"seq_length must be at least 1, not {seq_length}")
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        return type(dataset)(
            {
                key: pack_dataset(part, seq_length, strategy, map_kwargs)
                for key, part in dataset.items()
            }
        )
    fn_kwargs: dict[str, Any] = {"seq_length": seq_length}
    if strategy != "wrapped":
        fn_kwargs["split"] = strategy == "bfd_split"
    packed = dataset.with_format("arrow").map(
        _pack_wrapped if strategy == "wrapped" else _pack_whole,
        batched=True,
        fn_kwargs=fn_kwargs,
        **(map_kwargs or {}),
    )
    return _restore_format(packed, dataset, strategy)


def pack_examples(examples: dict[str, list[list[Any]]], seq_length: int) -> dict[str, list[list]]:
    """The rows of each column in one stream, cut every `seq_length` values; the last is the rest.

    Raises:
        ValueError: `seq_length` is not positive.
    """
    if seq_length < 1:
        raise ValueError(f"seq_length must be at least 1, not {seq_length}")
    packed = {}
    for name, rows in examples.items():
        stream = [value for row in rows for value in row]
        starts = range(0, len(stream), seq_length)
        packed[name] = [stream[start : start + seq_length] for start in starts]
    return packed


def _cut(table: pa.Table, max_length: int) -> pa.Table:
    """Every list's first values."""
    cut = [
        pc.list_slice(column, 0, max_length)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(cut, names=table.column_names)


def truncate_dataset(
    dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict,
    max_length: int,
    map_kwargs: dict[str, Any] | None = None,
) -> Dataset | IterableDataset | DatasetDict | IterableDatasetDict:
    """Every list of every row without what exceeds `max_length`; other columns as they are.

    Args:
        dataset: rows, some of whose columns hold lists (`input_ids`, `labels`, …).
        max_length: values that a list keeps, its first.
        map_kwargs: more arguments of `dataset.map`, such as `num_proc`.

    Raises:
        ValueError: `max_length` is not positive.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        parts = {k: truncate_dataset(part, max_length, map_kwargs) for k, part in dataset.items()}
        return type(dataset)(parts)
    cut = dataset.with_format("arrow").map(
        _cut, batched=True, fn_kwargs={"max_length": max_length}, **(map_kwargs or {})
    )
    return _restore_format(cut, dataset, "wrapped")
