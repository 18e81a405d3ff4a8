"""Chat templates applied: messages -> text, for one row as TRL does it and for many at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from fastrl.data.formats import common_length, is_conversational

Message = Mapping[str, Any]
Tool = dict[str, Any] | Callable[..., Any]

_ROW_KINDS = (
    {"messages"},
    {"prompt"},
    {"prompt", "completion"},
    {"prompt", "chosen", "rejected"},
    {"chosen", "rejected"},
    {"prompt", "completion", "label"},
)
_SIDES = ("chosen", "rejected", "completion")
_ROLES = ("assistant", "system", "tool")


def one_of(processing_class: Any, tokenizer: Any, function: str) -> Any:
    """The tokenizer or processor, given under its name of today or the one before TRL 0.12."""
    if (processing_class is None) == (tokenizer is None):
        raise TypeError(f"{function}() takes one tokenizer: processing_class= (or tokenizer=)")
    return tokenizer if processing_class is None else processing_class


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer itself; a multimodal processor has one inside."""
    return getattr(processing_class, "tokenizer", processing_class)


def chat_template_of(
    processing_class: Any, chat_template: str | None = None, tools: Sequence[Tool] | None = None
) -> str:
    """The template text: the one given (a name or a text), else the one set.

    Raises:
        ValueError: none is set.
    """
    tokenizer = tokenizer_of(processing_class)
    if chat_template is None and tokenizer is not processing_class:
        chat_template = processing_class.chat_template
    if isinstance(chat_template, dict):
        chat_template = chat_template["default"]
    return tokenizer.get_chat_template(chat_template, list(tools) if tools else None)


def render(
    conversations: Sequence[Sequence[Message]],
    processing_class: Any,
    tools: Sequence[Tool] | None = None,
    add_generation_prompt: bool = False,
    chat_template: str | None = None,
    **template_kwargs: Any,
) -> list[str]:
    """The text of each conversation: `apply_chat_template(..., tokenize=False)` for many at once.

    Args:
        conversations: none may be empty.
        processing_class: tokenizer or processor.
        tools: functions or JSON schemas, for all conversations; none is as an empty list.
        add_generation_prompt: end with what begins an assistant's turn.
        chat_template: instead of the one set.
        **template_kwargs: for the template.
    """
    return _rendered(
        conversations, processing_class, tools, add_generation_prompt, chat_template,
        template_kwargs, False,
    )[0]  # fmt: skip


def render_marked(
    conversations: Sequence[Sequence[Message]],
    processing_class: Any,
    tools: Sequence[Tool] | None = None,
    chat_template: str | None = None,
    **template_kwargs: Any,
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """`render`, and for each text the (start, end) characters between `{% generation %}` marks."""
    return _rendered(
        conversations, processing_class, tools, False, chat_template, template_kwargs, True
    )


def _rendered(
    conversations: Sequence[Sequence[Message]],
    processing_class: Any,
    tools: Sequence[Tool] | None,
    add_generation_prompt: bool,
    chat_template: str | None,
    template_kwargs: dict[str, Any],
    marked: bool,
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    if processing_class is not tokenizer_of(processing_class):
        conversations = [prepare_multimodal_messages(messages) for messages in conversations]
    # Arrow fills absent keys with None, which templates would print.
    conversations = [
        [{k: v for k, v in message.items() if v is not None} for message in messages]
        for messages in conversations
    ]
    special_tokens = tokenizer_of(processing_class).special_tokens_map
    return render_jinja_template(  # type: ignore[return-value]
        conversations=conversations,  # type: ignore[arg-type]
        tools=list(tools) if tools else None,
        chat_template=chat_template_of(processing_class, chat_template, tools),
        return_assistant_tokens_mask=marked,
        add_generation_prompt=add_generation_prompt,
        **{**special_tokens, **template_kwargs},
    )


def _prompt_of(messages: Sequence[Message], apply: Callable[..., str]) -> str:
    """The prompt's text, ready for the assistant to begin or to go on."""
    role = messages[-1]["role"]
    if role not in ("user", "tool", "assistant"):
        raise ValueError(
            f"Invalid role in the last message: {role}. A prompt ends with a message of the user, "
            "of a tool, or with the beginning of the assistant's."
        )
    goes_on = role == "assistant"
    return apply(messages, add_generation_prompt=not goes_on, continue_final_message=goes_on)


def apply_chat_template(
    example: Mapping[str, Any],
    processing_class: Any = None,
    tools: Sequence[Tool] | None = None,
    *,
    tokenizer: Any = None,
    **template_kwargs: Any,
) -> dict[str, Any]:
    """A conversational row as text: `messages` becomes `text`, other columns keep their names.

    A prompt is rendered with the generation prompt (after a user or tool message) or left open
    (after an assistant message); completions are what follows it in the whole conversation. Where
    the two renderings differ early, the prompt ends there (templates whose generation prompt opens
    a block that the finished turn lacks).

    Args:
        example: one of messages | prompt | prompt, completion[, label] | [prompt,] chosen,
            rejected; `chat_template_kwargs` holds more keywords for its template.
        processing_class: tokenizer or processor (`tokenizer` is its old name).
        tools: functions or JSON schemas.
        **template_kwargs: for the template.

    Raises:
        KeyError: another set of columns.
        TypeError: the row holds no messages.
        ValueError: the prompt's last message is of another role.
    """
    processing_class = one_of(processing_class, tokenizer, "apply_chat_template")
    columns = {name for name in (*_SIDES, "prompt", "messages", "label") if name in example}
    if columns not in _ROW_KINDS:
        known = ["+".join(sorted(kind)) for kind in _ROW_KINDS]
        raise KeyError(f"Invalid keys in the example: {columns}. Known are {', '.join(known)}")
    if not is_conversational(example):
        raise TypeError(
            f"The row's columns {sorted(columns)} hold no messages (lists of 'role' and "
            "'content'); maybe_apply_chat_template gives such a row back as it is"
        )
    common = {**(example.get("chat_template_kwargs") or {}), **template_kwargs}

    def apply(messages: Sequence[Message], **kwargs: Any) -> str:
        return processing_class.apply_chat_template(
            messages, tools=tools or None, tokenize=False, **kwargs, **common
        )

    texts: dict[str, Any] = {}
    if "messages" in columns:
        texts["text"] = apply(example["messages"])
    start = 0
    if "prompt" in columns:
        texts["prompt"] = _prompt_of(example["prompt"], apply)
    before = example.get("prompt", [])
    whole = {side: apply(before + example[side]) for side in _SIDES if side in columns}
    if "prompt" in columns:
        start = common_length(texts["prompt"], *whole.values())
        texts["prompt"] = texts["prompt"][:start]
    texts.update({side: text[start:] for side, text in whole.items()})
    if "label" in columns:
        texts["label"] = example["label"]
    return texts


def maybe_apply_chat_template(
    example: Mapping[str, Any],
    processing_class: Any = None,
    tools: Sequence[Tool] | None = None,
    *,
    tokenizer: Any = None,
    **template_kwargs: Any,
) -> Any:
    """`apply_chat_template` for a conversational row; a standard one comes back as it is."""
    if not is_conversational(example):
        return example
    processing_class = one_of(processing_class, tokenizer, "maybe_apply_chat_template")
    return apply_chat_template(example, processing_class, tools, **template_kwargs)


def prepare_multimodal_messages(
    messages: Sequence[Message],
    images: Sequence[Any] | int | None = None,
    *,
    num_images: int | None = None,
) -> list[dict[str, Any]]:
    """Messages whose content is a list of blocks, each image in its place.

    A string becomes one text block. If the first user message is a string, the images go before it;
    blocks `{"type": "image"}` without an image are filled in order. The messages given stay as they
    are; but where a number is given for the images, as in TRL up to 0.24, they themselves get so
    many blocks to fill, as they did.

    Raises:
        ValueError: an unknown role, or as many places as images there are not.
    """
    count = images if isinstance(images, int) else num_images
    images = [] if isinstance(images, int) else list(images or [])
    prepared = []
    unplaced = len(images) if count is None else count
    for message in messages:
        message = dict(message)
        if message["role"] != "user" and message["role"] not in _ROLES:
            raise ValueError(
                f"Invalid role in message: {message['role']}. Expected 'system', 'user', "
                "'assistant', or 'tool'."
            )
        if isinstance(message.get("content"), str):
            blocks = [{"type": "text", "text": message["content"]}]
            if message["role"] == "user":
                blocks = [{"type": "image"}] * unplaced + blocks
                unplaced = 0
            message["content"] = blocks
        prepared.append(message)
    if count is None:
        _fill(prepared, images)
        return prepared
    for message, own in zip(messages, prepared, strict=True):
        message.update(own)
    return list(messages)


def prepare_multimodal_messages_vllm(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages with images as vLLM reads them: blocks `{"type": "image_pil", "image_pil": …}`.

    Other blocks and messages of plain text stay as they are; the messages given are not changed.
    """
    prepared = []
    for message in messages:
        message = copy.deepcopy(dict(message))
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            if block["type"] == "image":
                block["type"] = "image_pil"
                block["image_pil"] = block.pop("image")
        prepared.append(message)
    return prepared


def _fill(messages: list[dict[str, Any]], images: list[Any]) -> None:
    """Puts the images into the empty image blocks, a tool's aside."""
    holders = [m for m in messages if m["role"] != "tool" and m.get("content")]
    empty = [
        block
        for message in holders
        for block in message["content"]
        if block["type"] == "image" and "image" not in block
    ]
    if len(empty) != len(images):
        raise ValueError(
            f"Number of images provided ({len(images)}) does not match number of image "
            f"placeholders ({len(empty)})."
        )
    supply = iter(images)
    for message in holders if images else []:
        message["content"] = [
            {**block, "image": next(supply)}
            if block["type"] == "image" and "image" not in block
            else block
            for block in message["content"]
        ]
