"""What kind of dataset this is: columns and one row -> a named format, or an error that helps.

The kinds are those of TRL 1.16's "dataset formats and types"; each is standard (strings) or
conversational (lists of messages).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MESSAGE_COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages")
TOKENIZED_COLUMNS = (
    ("input_ids",),
    ("prompt_ids", "chosen_ids", "rejected_ids"),
    ("chosen_ids", "rejected_ids"),
    ("chosen_input_ids", "rejected_input_ids"),
    ("input_ids_chosen", "input_ids_rejected"),
    ("prompt_ids", "completion_ids"),
)
_NEEDS = """What each trainer needs (strings, or lists of messages in each such column):
  SFTTrainer: messages | conversations | {text} | prompt + completion | input_ids
  DPOTrainer, ORPOTrainer, CPOTrainer: prompt + chosen + rejected | chosen + rejected
  RewardTrainer: prompt + chosen + rejected | chosen + rejected | chosen_ids + rejected_ids
  KTOTrainer, BCOTrainer: prompt + completion + label | [prompt +] chosen + rejected
  GRPOTrainer, RLOOTrainer, OnlineDPOTrainer, NashMDTrainer, XPOTrainer, DistillationTrainer: prompt
  GKDTrainer: messages
  PRMTrainer: prompt + completions + labels"""


@dataclass(frozen=True)
class Format:
    """What a dataset holds. `kind` is one of KINDS."""

    kind: str
    conversational: bool  # lists of messages rather than strings
    reason: str  # why it was taken for this, for a user to read
    columns: tuple[str, ...]  # the columns that hold it


def _columns_of(text_column: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Kind -> the sets of columns it may have, the most telling kind first."""
    pair = ("chosen", "rejected")
    return {
        "tokenized": TOKENIZED_COLUMNS,
        "stepwise_supervision": (("prompt", "completions", "labels"),),
        "preference": (("prompt", *pair),),
        "preference_implicit": (pair,),
        "unpaired_preference": (("prompt", "completion", "label"),),
        "prompt_completion": (("prompt", "completion"),),
        "language_modeling": (("messages",), ("conversations",), (text_column,)),
        "prompt_only": (("prompt",),),
    }


KINDS = tuple(_columns_of("text"))


def detect_format(
    column_names: Iterable[str],
    example: Mapping[str, Any],
    wanted: Iterable[str] | None = None,
    text_column: str = "text",
) -> Format:
    """Which kind of dataset has these columns, judged by them and by one row.

    Args:
        column_names: all columns of the dataset.
        example: one row, whose values tell strings from messages.
        wanted: kinds that the caller can use; others are not considered.
        text_column: the column that holds plain text for language modelling.

    Raises:
        ValueError: no kind fits, or strings stand beside messages. It lists the columns found and
            what each trainer needs.
    """
    found = list(column_names)
    wanted = KINDS if wanted is None else tuple(wanted)
    for kind, choices in _columns_of(text_column).items():
        for columns in choices if kind in wanted else ():
            if set(columns) <= set(found):
                return _described(kind, columns, example, found, text_column)
    raise ValueError(
        f"The dataset has the columns {found}, which make none of: {', '.join(wanted)}.\n"
        + _NEEDS.format(text=text_column)
    )


def _described(
    kind: str,
    columns: tuple[str, ...],
    example: Mapping[str, Any],
    found: list[str],
    text_column: str,
) -> Format:
    unused = [name for name in found if name not in columns]
    reason = f"{kind}: columns {', '.join(columns)}"
    if unused:
        reason += f" (beside {', '.join(unused)})"
    if kind == "tokenized":
        return Format(kind, False, reason, columns)
    shapes = {c: _shape(c, example.get(c)) for c in columns if c not in ("label", "labels")}
    held = {shape for shape in shapes.values() if shape}
    if held <= {"text"}:
        return Format(kind, False, f"{reason}, which hold text", columns)
    if held == {"messages"} and text_column not in columns:
        return Format(kind, True, f"{reason}, which hold messages", columns)
    implicit = {"prompt": "text", "chosen": "messages", "rejected": "messages"}
    if kind == "preference" and shapes == implicit:
        reason = (
            "preference_implicit: chosen and rejected hold whole conversations, the text column "
            "prompt repeats their start"
        )
        return Format("preference_implicit", True, reason, ("chosen", "rejected"))
    seen = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
    raise ValueError(
        f"The columns {found} look like {kind}, but the first row holds {seen}. Each of these must "
        f"be a string, or each a list of messages with 'role' and 'content'.\n"
        + _NEEDS.format(text=text_column)
    )


def _shape(column: str, value: Any) -> str:
    """'text', 'messages', '' for an empty list (fits either), else the type's name."""
    if column == "completions" and isinstance(value, list):
        value = value[0] if value else []
        value = [value] if is_message(value) else value
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        if not value:
            return ""
        if is_message(value[0]) or _is_from_value(value[0]):
            return "messages"
        return f"list of {type(value[0]).__name__}"
    return type(value).__name__


def is_message(value: Any) -> bool:
    """A mapping with a role: its content may be missing (an assistant that only calls tools)."""
    return isinstance(value, Mapping) and "role" in value


def _is_from_value(value: Any) -> bool:
    return isinstance(value, Mapping) and "from" in value and "value" in value


def is_conversational(example: Mapping[str, Any]) -> bool:
    """Whether a row holds lists of messages (`role`, and as a rule `content`).

    Looks at the first of prompt, chosen, rejected, completion, messages that is there and is not
    an empty list.
    """
    for column in MESSAGE_COLUMNS:
        value = example.get(column, [])
        if not isinstance(value, list):
            return False
        if value:
            return is_message(value[0])
    return False


def is_conversational_from_value(example: Mapping[str, Any]) -> bool:
    """Whether `conversations` holds messages of the `from`/`value` (ShareGPT) spelling."""
    value = example.get("conversations")
    return isinstance(value, list) and bool(value) and _is_from_value(value[0])


def _in_chatml(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    message = dict(message)
    for old, new in (("from", "role"), ("value", "content")):
        if old in message:
            message[new] = message.pop(old)
    return message


def maybe_convert_to_chatml(example: Mapping[str, Any]) -> dict[str, Any]:
    """The row with `from`/`value` messages spelled `role`/`content`, `conversations` as `messages`.

    Role names stay as they are. The row given is not changed (TRL changes it in place).
    """
    converted = dict(example)
    for column in (*MESSAGE_COLUMNS, "conversations"):
        if isinstance(converted.get(column), list):
            converted[column] = [_in_chatml(message) for message in converted[column]]
    if "conversations" in converted:
        converted["messages"] = converted.pop("conversations")
    return converted


def common_length(*sequences: Sequence[Any]) -> int:
    """How many items the sequences (all lists or all strings) begin with in common."""
    first, *others = sequences
    low, high = 0, min(map(len, sequences))
    while low < high:
        middle = (low + high + 1) // 2
        if all(other[low:middle] == first[low:middle] for other in others):
            low = middle
        else:
            high = middle - 1
    return low


def extract_prompt(example: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Splits the common start of `chosen` and `rejected` off as `prompt`.

    Both are strings (compared by character; a space before the split goes to the completions) or
    lists of messages (compared by message). As in TRL a completion is never left empty because one
    side continues the other: their last common item then stays with the completions.
    """
    chosen, rejected = example["chosen"], example["rejected"]
    shortest = min(len(chosen), len(rejected))
    split = common_length(chosen, rejected)
    if split == shortest:
        split = max(shortest - 1, 0)
    elif split > 0 and chosen[split - 1] == " ":
        split -= 1
    return {"prompt": chosen[:split], "chosen": chosen[split:], "rejected": rejected[split:]}


def maybe_extract_prompt(example: Mapping[str, Any]) -> dict[str, Any]:
    """`extract_prompt` where the prompt is implicit; any other row comes back as it is.

    A text prompt beside conversational sides is a copy of what these begin with, so it is extracted
    anew (ultrafeedback_binarized is of this kind).
    """
    if "chosen" not in example or "rejected" not in example:
        return example  # type: ignore[return-value]
    if "prompt" in example:
        prompt, chosen = example["prompt"], example["chosen"]
        if is_conversational({"prompt": prompt}) == is_conversational({"chosen": chosen}):
            return example  # type: ignore[return-value]
    return extract_prompt(example)  # type: ignore[return-value]


def _unpaired(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    rows = len(batch["chosen"])
    others = {name: v + v for name, v in batch.items() if name not in ("chosen", "rejected")}
    return {
        "completion": batch["chosen"] + batch["rejected"],
        "label": [True] * rows + [False] * rows,
        **others,
    }


def column_names(dataset: Any) -> list[str]:
    """Columns of a dataset or of a dictionary's first split; a stream is asked for a row."""
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()))
    return dataset.column_names or list(next(iter(dataset)))


def unpair_preference_dataset(dataset: Any, **map_kwargs: Any) -> Any:
    """Rows of `chosen` and `rejected` -> twice as many of `completion` and `label`.

    Within each batch of `map` (1,000 rows unless `batch_size` says otherwise) all chosen rows come
    first. Other columns are repeated.

    Args:
        dataset: `Dataset`, `IterableDataset`, or a dictionary of either.
        **map_kwargs: for the dataset's `map`, such as `num_proc` and `desc`.
    """
    return dataset.map(_unpaired, batched=True, remove_columns=column_names(dataset), **map_kwargs)


def maybe_unpair_preference_dataset(
    dataset: Any, num_proc: int | None = None, desc: str | None = None
) -> Any:
    """`unpair_preference_dataset` for a dataset with `chosen` and `rejected`, else the dataset.

    A stream has no processes and no progress bar: `num_proc` and `desc` are for stored datasets.
    """
    if not {"chosen", "rejected"} <= set(column_names(dataset)):
        return dataset
    first = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
    if not hasattr(first, "num_rows"):
        return unpair_preference_dataset(dataset)
    return unpair_preference_dataset(dataset, num_proc=num_proc, desc=desc)
