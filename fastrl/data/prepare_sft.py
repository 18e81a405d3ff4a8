"""Texts, conversations or tokens -> `input_ids` and `labels` for SFT, packed or not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset, IterableDataset

from fastrl.data.chat import tokenizer_of
from fastrl.data.formats import column_names, detect_format
from fastrl.data.packing import pack_dataset
from fastrl.data.prepare import TOKENS, Made, first_row, main_process_first, map_rows, only
from fastrl.data.rows import Rows, split_points, with_eos
from fastrl.data.templates import has_generation_markers
from fastrl.data.tokenize import Encoder, TokenLists
from fastrl.data.training_template import NotProven, get_training_chat_template

logger = logging.getLogger(__name__)
IGNORED = -100  # the label of a token that is not learned


@dataclass(frozen=True)
class _SftRows:
    """Rows -> input_ids and labels."""

    processing_class: Any
    kind: str  # "tokenized", "language_modeling" or "prompt_completion"
    conversational: bool
    column: str  # that holds text, messages or input_ids
    formatting: Callable[[Any], Any] | None
    formats_batches: bool  # `formatting` takes a batch and returns a list, as TRL 0.7 did
    masks: tuple[str, ...]  # columns of 0 and 1 that all must be 1 for a token to be learned
    completion_only: bool
    assistant_only: bool
    chat_template: str | None  # that marks the assistant's part, in place of the one set
    eos: str | None
    max_length: int | None
    keep_end: bool
    revision: int = 1  # part of the cache's key; raised when the same rows give others

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.processing_class)

    def __call__(self, rows: Rows) -> Made:
        ids, labels = self._tokens(rows)
        if self.max_length is None:
            return {"input_ids": ids, "labels": labels}, range(len(rows))
        window = slice(-self.max_length, None) if self.keep_end else slice(self.max_length)
        ids = [row[window] for row in ids]
        labels = [row[window] for row in labels]
        left = [row for row, own in enumerate(labels) if own.count(IGNORED) < len(own)]
        return only({"input_ids": ids, "labels": labels}, left), left

    def _tokens(self, rows: Rows) -> tuple[TokenLists, TokenLists]:
        if self.kind == "tokenized":
            return self._given(rows)
        if self.kind == "prompt_completion":
            return self._prompt_completion(rows)
        if self.conversational:
            return self._conversations(rows)
        texts = (
            self._formatted(rows, self.formatting) if self.formatting else rows.texts(self.column)
        )
        ids = self.encoder.texts(with_eos(texts, self.eos))
        return ids, ids

    def _given(self, rows: Rows) -> tuple[TokenLists, TokenLists]:
        ids = rows.lists("input_ids")
        if "labels" in rows.columns:
            masked = [rows.lists("labels")]
        else:
            masked = [rows.lists(column) for column in self.masks]
        for row, own in enumerate(ids):
            if any(len(values[row]) != len(own) for values in masked):
                lengths = [len(own), *(len(values[row]) for values in masked)]
                problem = f"and the columns that mask it differ in length: {lengths}"
                raise rows.wrong(row, "input_ids", problem)
        if "labels" in rows.columns:
            return ids, masked[0]
        return ids, [_masked(own, *bits) for own, *bits in zip(ids, *masked, strict=True)]

    def _formatted(self, rows: Rows, formatting: Callable[[Any], Any]) -> list[str]:
        columns = {name: rows.columns[name] for name in rows.columns}
        if self.formats_batches:
            texts = formatting(columns)
        else:
            examples = (
                {name: values[row] for name, values in columns.items()} for row in range(len(rows))
            )
            texts = [formatting(example) for example in examples]
        if len(texts) != len(rows):
            problem = f"returned {len(texts)} texts for {len(rows)} rows; return one for each"
            raise rows.wrong(0, "formatting_func", problem)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                problem = f"returned {type(text).__name__}; it must return a string for each row"
                raise rows.wrong(row, "formatting_func", problem)
        return texts

    def _conversations(self, rows: Rows) -> tuple[TokenLists, TokenLists]:
        chats = rows.chats(self.column)
        if not self.assistant_only:
            ids = rows.encode_chats(self.encoder, self.column, chats)
            return ids, ids
        pairs = rows.encode_assistant(self.processing_class, self.column, chats, self.chat_template)
        return [ids for ids, _ in pairs], [_masked(*pair) for pair in pairs]

    def _prompt_completion(self, rows: Rows) -> tuple[TokenLists, TokenLists]:
        if self.conversational:
            prompt_ids, ids, labels = self._continued_chats(rows)
        else:
            prompts, completions = rows.texts("prompt"), rows.texts("completion")
            whole = [a + b for a, b in zip(prompts, with_eos(completions, self.eos), strict=True)]
            prompt_ids = self.encoder.texts(prompts)
            ids = labels = self.encoder.texts(whole)
        points = split_points(rows, self.processing_class, prompt_ids, ids)
        if self.completion_only:
            labels = [[IGNORED] * k + own[k:] for k, own in zip(points, labels, strict=True)]
        return ids, labels

    def _continued_chats(self, rows: Rows) -> tuple[TokenLists, TokenLists, TokenLists]:
        """Ids of the prompts, ids of prompt + completion, labels without regard to the split."""
        prompts, completions = rows.chats("prompt"), rows.chats("completion")
        whole = [a + b for a, b in zip(prompts, completions, strict=True)]
        prompt_ids = rows.encode_prompts(self.encoder, prompts)
        if not self.assistant_only:
            ids = rows.encode_chats(self.encoder, "completion", whole, repeated=True)
            return prompt_ids, ids, ids
        pairs = rows.encode_assistant(
            self.processing_class, "completion", whole, self.chat_template
        )
        return prompt_ids, [ids for ids, _ in pairs], [_masked(*pair) for pair in pairs]


def _masked(ids: list[int], *masks: list[int]) -> list[int]:
    """Labels: the ids where every mask is true."""
    if not masks:
        return ids
    return [token if all(bits) else IGNORED for token, *bits in zip(ids, *masks, strict=True)]


def _formats_batches(formatting: Callable[[Any], Any], row: Mapping[str, Any]) -> bool:
    """Whether a formatting function takes a batch and returns a list, as TRL 0.7 wanted it."""
    try:
        return isinstance(formatting(dict(row)), list)
    except Exception:
        try:
            formatted = formatting({name: [value] for name, value in row.items()})
        except Exception:
            formatted = None
        if isinstance(formatted, list):
            return True
        raise


def _layout(
    dataset: Any, row: Mapping[str, Any], args: Any, formatting_func: Callable[[Any], Any] | None
) -> dict[str, Any]:
    """The fields of `_SftRows` that the dataset's columns and first row decide."""
    columns = column_names(dataset)
    layout: dict[str, Any] = {"conversational": False, "masks": (), "formats_batches": False}
    layout |= {"completion_only": False, "formatting": None}
    if "input_ids" in columns:
        masks = ["completion_mask"] if args.completion_only_loss else []
        masks = [name for name in [*masks, "assistant_masks"] if name in columns]
        return layout | {"kind": "tokenized", "column": "input_ids", "masks": tuple(masks)}
    if formatting_func is not None:
        layout |= {"kind": "language_modeling", "column": "", "formatting": formatting_func}
        return layout | {"formats_batches": _formats_batches(formatting_func, row)}
    kinds = ("prompt_completion", "language_modeling")
    found = detect_format(columns, row, wanted=kinds, text_column=args.dataset_text_field)
    layout |= {"kind": found.kind, "conversational": found.conversational}
    if found.kind == "prompt_completion":
        layout["completion_only"] = args.completion_only_loss in (None, True)
    return layout | {"column": found.columns[0]}


def _check(args: Any, layout: Mapping[str, Any], columns: list[str], name: str, func: Any) -> None:
    """Arguments that do not fit this dataset: an error, or where TRL takes them, a warning."""
    tokenized = layout["kind"] == "tokenized"
    if tokenized and func is not None:
        logger.warning("the %s dataset has input_ids already: formatting_func is not used", name)
    if args.completion_only_loss and layout["formatting"] is not None:
        raise ValueError(
            "completion_only_loss=True needs prompt and completion apart, and formatting_func "
            "joins them in one text; drop one of the two"
        )
    masked = tokenized and {"assistant_masks", "labels"} & set(columns)
    if args.assistant_only_loss and not layout["conversational"] and not masked:
        raise ValueError(
            f"assistant_only_loss=True needs conversations, and the {name} dataset holds "
            f"{layout['kind']} rows ({', '.join(columns)}); use messages, or prompt and "
            "completion as lists of messages"
        )
    unused = "completion_mask" in columns and "completion_mask" not in layout["masks"]
    if tokenized and unused and "labels" not in columns:
        logger.warning(
            "the %s dataset's completion_mask is not used; completion_only_loss=True applies it",
            name,
        )
    if args.completion_only_loss and layout["kind"] == "language_modeling":
        logger.warning("completion_only_loss=True has no effect: %s has no prompt column", name)


def _window(args: Any, packing: bool) -> dict[str, Any]:
    if args.truncation_mode not in ("keep_start", "keep_end"):
        raise ValueError(
            f"truncation_mode must be keep_start or keep_end, not {args.truncation_mode!r}"
        )
    if packing and args.max_length is None:
        raise ValueError("packing needs max_length, the length of a packed row; it is None")
    keep_end = args.truncation_mode == "keep_end"
    return {"max_length": None if packing else args.max_length, "keep_end": keep_end}


def _packs(args: Any, name: str) -> bool:
    own = None if name == "train" else args.eval_packing
    return args.packing if own is None else own


def _eos(processing_class: Any, layout: Mapping[str, Any]) -> str | None:
    """What ends a row of plain text; conversations are ended by their template."""
    if layout["kind"] == "tokenized" or layout["conversational"]:
        return None
    eos = tokenizer_of(processing_class).eos_token
    if eos is None:
        raise ValueError("the tokenizer has no eos_token to end texts with; set eos_token in args")
    return eos


def prepare_sft(
    dataset: Dataset | IterableDataset,
    processing_class: Any,
    args: Any,
    formatting_func: Callable[[Any], Any] | None = None,
    name: str = "train",
    packing: bool | None = None,
    end_with_eos: bool = True,
) -> Dataset | IterableDataset:
    """Tokens and labels of every row, as TRL 1.16's SFTTrainer prepares them.

    Text gets EOS; conversations are rendered by the chat template. A prompt's completion begins
    where the tokens of prompt and prompt + completion part. Rows are cut to `max_length`, and those
    with nothing left to learn dropped and counted; packed rows are packed (`pack_dataset`).

    Args:
        dataset: rows of text, conversations, prompt and completion, or `input_ids` (with `labels`,
            `assistant_masks` or `completion_mask`); `tools` and `chat_template_kwargs` per row.
        processing_class: tokenizer, or processor with one.
        args: an `SFTConfig`; read are dataset_text_field, completion_only_loss,
            assistant_only_loss, max_length, truncation_mode, packing, eval_packing,
            packing_strategy, shuffle_dataset, seed, dataset_num_proc, remove_unused_columns.
        formatting_func: row -> text, or batch -> list of texts.
        name: what to call the dataset; `train` takes `args.packing`, others `args.eval_packing`
            where that is set.
        packing: overrides both.
        end_with_eos: whether plain texts that are not packed get EOS; up to TRL 0.11 they did not.

    Returns:
        Columns `input_ids` and `labels`, after `bfd` packing also `seq_lengths`; all others too if
        `remove_unused_columns=False` and nothing is packed.

    Raises:
        ValueError: rows, columns or arguments that do not fit; the row and column are named.
    """
    row = first_row(dataset, name)
    packing = _packs(args, name) if packing is None else packing
    layout = _layout(dataset, row, args, formatting_func)
    columns = column_names(dataset)
    _check(args, layout, columns, name, formatting_func)
    step = _SftRows(
        processing_class=processing_class,
        assistant_only=args.assistant_only_loss,
        chat_template=_marking(processing_class) if args.assistant_only_loss else None,
        eos=_eos(processing_class, layout) if end_with_eos or packing else None,
        **layout,
        **_window(args, packing),
    )
    with main_process_first():
        prepared = map_rows(
            dataset,
            step,
            {"input_ids": TOKENS, "labels": TOKENS},
            name=name,
            num_proc=args.dataset_num_proc,
            kept=() if packing or args.remove_unused_columns else columns,
            lost=f"within max_length={args.max_length} tokens no label is left to learn",
        )
        return _arranged(prepared, args, packing, name)


def _marking(processing_class: Any) -> str | None:
    """A template that marks the assistant's part, derived from the one set; None to use that one.

    Where none can be derived, what the assistant said is proven conversation by conversation.
    """
    template = getattr(processing_class, "chat_template", None)
    if template is None or has_generation_markers(template):
        return None
    try:
        return get_training_chat_template(processing_class)
    except NotProven:
        return None


def _arranged(prepared: Any, args: Any, packing: bool, name: str) -> Any:
    """Shuffled and packed as asked: before packing so that neighbours vary, and after."""
    shuffle = args.shuffle_dataset
    if packing:
        prepared = prepared.shuffle(seed=args.seed) if shuffle else prepared
        options: dict[str, Any] = {}
        if isinstance(prepared, Dataset):
            options = {"num_proc": args.dataset_num_proc, "desc": f"Packing {name} dataset"}
        prepared = pack_dataset(prepared, args.max_length, args.packing_strategy, options)
    return prepared.shuffle(seed=args.seed) if shuffle else prepared
