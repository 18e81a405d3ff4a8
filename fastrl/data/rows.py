"""A batch of a dataset's rows under preparation, which can name a row that is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastrl.data.chat import tokenizer_of
from fastrl.data.formats import common_length, is_message
from fastrl.data.masks import assistant_masks
from fastrl.data.tokenize import Encoder, Messages, TokenLists, over_equal

logger = logging.getLogger(__name__)
_told: set[str] = set()
_SPLIT_MOVED = (
    "the tokens of a prompt are not those that begin its prompt + completion (the tokenizer merges "
    "across the boundary, or the chat template renders the prompt alone differently). The "
    "completion begins where they part; %r, the prompt's end, is then no part of it, and the model "
    "is trained on another context than it will be asked in. Seen first in row %d."
)


def tell_once(topic: str, message: str, *values: Any) -> None:
    """Warn, the first time this process meets the topic."""
    if topic not in _told:
        _told.add(topic)
        logger.warning(message, *values)


@dataclass(frozen=True)
class Rows:
    """A batch of a dataset's rows."""

    dataset: str  # what it is called: train, eval, …
    columns: Mapping[str, list[Any]]  # N values each
    numbers: Sequence[int]  # N: which rows of the dataset these are

    def __len__(self) -> int:
        return len(self.numbers)

    def wrong(self, row: int, column: str, problem: str) -> ValueError:
        """The error that names a row of the batch, its column, and what to do about it."""
        return ValueError(
            f"row {self.numbers[row]} of the {self.dataset} dataset: {column!r} {problem}"
        )

    def _each(self, column: str, fits: Callable[[Any], bool], wanted: str) -> list[Any]:
        values = self.columns[column]
        for row, value in enumerate(values):
            if value is None:
                raise self.wrong(row, column, "is None; fill it in or filter the row out")
            if not fits(value):
                problem = f"holds {type(value).__name__} where earlier rows hold {wanted}"
                raise self.wrong(row, column, f"{problem}; convert the column with dataset.map")
        return values

    def texts(self, column: str) -> list[str]:
        """The column, every cell checked to be a string."""
        return self._each(column, lambda value: isinstance(value, str), "text")

    def chats(self, column: str) -> list[Messages]:
        """The column, every cell checked to be a list of messages; in `role`/`content` spelling."""
        chats = self._each(column, lambda value: isinstance(value, list), "lists of messages")
        converted = []
        for row, chat in enumerate(chats):
            chat = [_in_chatml(message) for message in chat]
            if not all(is_message(message) for message in chat):
                problem = "holds a message without a role; each is {'role': …, 'content': …}"
                raise self.wrong(row, column, problem)
            converted.append(chat)
        return converted

    def lists(self, column: str) -> list[list[Any]]:
        """The column, every cell checked to be a list."""
        return self._each(column, lambda value: isinstance(value, list), "lists of tokens")

    def flags(self, column: str) -> list[bool]:
        """The column, every cell checked to be true or false (or 1 or 0)."""
        return [bool(value) for value in self._each(column, lambda v: v in (0, 1), "true or false")]

    def numbers_of(self, column: str) -> list[float]:
        """The column, every cell checked to be a number."""
        values = self._each(column, lambda value: isinstance(value, int | float), "numbers")
        return [float(value) for value in values]

    def repeated(self, origin: Sequence[int]) -> Rows:
        """These rows in another order and number, with what a chat template reads of them."""
        read = [name for name in ("tools", "chat_template_kwargs") if name in self.columns]
        columns = {name: [self.columns[name][row] for row in origin] for name in read}
        return Rows(self.dataset, columns, [self.numbers[row] for row in origin])

    def template_arguments(self) -> list[dict[str, Any]]:
        """Per row what its chat template gets besides messages: `tools`, `chat_template_kwargs`."""
        nothing = [None] * len(self)
        tools = self.columns.get("tools", nothing)
        others = self.columns.get("chat_template_kwargs", nothing)
        arguments = []
        for row, (tool, other) in enumerate(zip(tools, others, strict=True)):
            if isinstance(tool, str):
                tool = self._parsed(row, tool)
            arguments.append({"tools": tool, **(other or {})})
        return arguments

    def _parsed(self, row: int, tools: str) -> Any:
        try:
            return json.loads(tools)
        except ValueError as error:
            raise self.wrong(row, "tools", f"is a string that is not JSON: {error}") from error

    def encode_chats(
        self, encoder: Encoder, column: str, chats: list[Messages], **options: Any
    ) -> TokenLists:
        """`Encoder.chats` of conversations of these rows; a row the template refuses is named."""
        return self._each_chat(lambda *rows: encoder.chats(*rows, **options), column, chats)

    def encode_prompts(self, encoder: Encoder, prompts: list[Messages]) -> TokenLists:
        """Token ids of prompts, which other conversations of these rows begin with."""
        return self.encode_chats(
            encoder, "prompt", prompts, add_generation_prompt=True, repeated=True
        )

    def encode_assistant(
        self, processing_class: Any, column: str, chats: list[Messages], template: str | None
    ) -> list[tuple[list[int], list[int]]]:
        """(ids, mask) of each conversation, 1 on the assistant's tokens; a row without is named.

        `template` replaces the chat template that is set, if it is not None.
        """
        marked = {} if template is None else {"chat_template": template}

        def encode(
            chats: list[Messages], arguments: list[dict[str, Any]]
        ) -> list[tuple[list[int], list[int]]]:
            def masked(some: list[Messages], **options: Any) -> list[Any]:
                options = {**marked, **options}
                return list(zip(*assistant_masks(some, processing_class, **options), strict=True))

            return over_equal(masked, chats, arguments)

        found = self._each_chat(encode, column, chats)
        for row, (_, mask) in enumerate(found):
            if 1 not in mask:
                problem = "has no assistant tokens to learn under assistant_only_loss=True"
                raise self.wrong(row, column, problem)
        return found

    def _each_chat(
        self, encode: Callable[..., list[Any]], column: str, chats: list[Messages]
    ) -> list[Any]:
        """All conversations in one call; if it fails, one by one to find the row."""
        arguments = self.template_arguments()
        for row, chat in enumerate(chats):
            if not chat:
                raise self.wrong(row, column, "has no messages; filter the row out")
        try:
            return encode(chats, arguments)
        except Exception:
            for row, chat in enumerate(chats):
                try:
                    encode([chat], [arguments[row]])
                except Exception as error:
                    raise self.wrong(row, column, f"cannot be rendered: {error}") from error
            raise


def split_points(
    rows: Rows, processing_class: Any, prompts: TokenLists, *continued: TokenLists
) -> list[int]:
    """Per row how many leading tokens its prompt and all that continue it have in common."""
    points = []
    for row, prompt in enumerate(prompts):
        point = common_length(prompt, *(ids[row] for ids in continued))
        if point < len(prompt):
            tail = tokenizer_of(processing_class).decode(prompt[point:])
            tell_once("split moved", _SPLIT_MOVED, tail, rows.numbers[row])
        points.append(point)
    return points


def with_eos(texts: list[str], eos: str | None) -> list[str]:
    """Each text, ended by the end-of-sequence token, if there is one, where it is not yet."""
    if eos is None:
        return texts
    return [text if text.endswith(eos) else text + eos for text in texts]


def _in_chatml(message: Any) -> Any:
    if not isinstance(message, dict) or "from" not in message:
        return message
    renamed = {"from": "role", "value": "content"}
    return {renamed.get(key, key): value for key, value in message.items()}
