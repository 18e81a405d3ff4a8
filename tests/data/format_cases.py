"""Rows for the functions that have a counterpart in TRL, and how each is called."""

from __future__ import annotations

import copy
from typing import Any

from chat_cases import ANSWER, ASK, SYSTEM, TEMPLATES, TOOLS, make_tokenizer, says, tool_call
from datasets import Dataset

_GREEN = says("assistant", "The dog is.")
_SHARE_GPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes", "weight": 1}]
_CALLING = [ASK, says("assistant", "", tool_calls=[tool_call({"a": 1})]), says("tool", "2")]

ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": "The sky is blue."},
    "messages": {"messages": [SYSTEM, ASK, ANSWER]},
    "prompt": {"prompt": [SYSTEM, ASK]},
    "prompt of tool": {"prompt": _CALLING},
    "prompt goes on": {"prompt": [ASK, ANSWER]},
    "prompt of system": {"prompt": [SYSTEM]},
    "completion": {"prompt": [ASK], "completion": [ANSWER]},
    "label": {"prompt": [ASK], "completion": [ANSWER], "label": True},
    "pair": {"prompt": [SYSTEM, ASK], "chosen": [ANSWER], "rejected": [_GREEN]},
    "implicit pair": {"chosen": [ASK, ANSWER], "rejected": [ASK, _GREEN]},
    "text prompt": {"prompt": "Is it", "chosen": [ASK, ANSWER], "rejected": [ASK, _GREEN]},
    "lone chosen": {"chosen": [ASK, ANSWER]},
    "kwargs": {"prompt": [ASK], "chat_template_kwargs": {"enable_thinking": False}},
    "role alone": {"messages": [{"role": "assistant"}]},
    "text pair": {"chosen": "The sky is blue", "rejected": "The sky is green"},
    "space pair": {"chosen": "The sky", "rejected": "The sea"},
    "word pair": {"chosen": "The cat", "rejected": "The dog"},
    "equal pair": {"chosen": "The", "rejected": "The"},
    "longer pair": {"chosen": "The", "rejected": "The sky"},
    "differing pair": {"chosen": "blue", "rejected": "green"},
    "explicit pair": {"prompt": "The sky is", "chosen": " blue", "rejected": " green"},
    "share gpt": {"conversations": _SHARE_GPT},
    "share gpt prompt": {"prompt": _SHARE_GPT[:1], "completion": _SHARE_GPT[1:], "id": 3},
    "chatml conversations": {"conversations": [ASK, ANSWER]},
    "no list": {"conversations": "The sky is"},
}
IMAGES = ["<image 0>", "<image 1>"]
_BLOCKS = [{"type": "image"}, {"type": "text", "text": "here"}, {"type": "image"}]
MULTIMODAL = {
    "no image": ([SYSTEM, ASK, ANSWER], []),
    "two images": ([SYSTEM, ASK, ANSWER, says("user", "and this?")], IMAGES),
    "in blocks": ([says("user", _BLOCKS), ANSWER], IMAGES),
    "one filled": ([says("user", [{"type": "image", "image": "x"}, *_BLOCKS])], IMAGES),
    "too few": ([says("user", _BLOCKS)], IMAGES[:1]),
    "tool calls": ([ASK, {"role": "assistant", "tool_calls": []}, says("tool", "3")], []),
    "unknown role": ([says("narrator", "x")], []),
}
_PAIRS = {"chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "score": [1, 2, 3]}
DATASETS = {
    "pairs": _PAIRS,
    "prompted": {"extra": [1, 2, 3], **_PAIRS, "prompt": ["p", "q", "r"]},
    "unpaired": {"prompt": ["p"], "completion": ["a"], "label": [True]},
}


def is_messages(row: dict[str, Any]) -> bool:
    """Whether every column that may hold messages does."""
    held = [v for k, v in row.items() if k not in ("label", "id", "chat_template_kwargs")]
    return all(isinstance(v, list) and "role" in v[0] for v in held)


def told(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What a function returns, or the type of error it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return {"raises": type(error).__name__}


def outputs(library: Any) -> dict[str, Any]:
    """What a library (TRL or fastrl) makes of every case."""
    found: dict[str, Any] = {}
    for name, row in ROWS.items():
        if name != "text prompt":  # TRL looks at any of its columns
            found[f"is_conversational: {name}"] = library.is_conversational(row)
        for function in (
            "is_conversational_from_value",
            "maybe_convert_to_chatml",
            "maybe_extract_prompt",
        ):
            found[f"{function}: {name}"] = told(getattr(library, function), copy.deepcopy(row))
        if {"chosen", "rejected"} <= set(row):
            found[f"extract_prompt: {name}"] = told(library.extract_prompt, row)
        if not set(row) & {"messages", "text", "conversations"} and not is_messages(row):
            continue  # TRL fails inside of a template, as it happens to
        for style, (template, _) in TEMPLATES.items():
            tokenizer = make_tokenizer(template)
            for tools in (None, [], TOOLS):
                key = f"{style}, {len(tools) if tools is not None else None} tools: {name}"
                found[f"apply_chat_template, {key}"] = told(
                    library.apply_chat_template, row, tokenizer, tools
                )
            found[f"maybe_apply_chat_template, {style}: {name}"] = told(
                library.maybe_apply_chat_template, row, tokenizer, unused=1
            )
    for style, (template, _) in TEMPLATES.items():
        found[f"supports_tool_calling: {style}"] = library.supports_tool_calling(
            make_tokenizer(template)
        )
    for name, (messages, images) in MULTIMODAL.items():
        found[f"prepare_multimodal_messages: {name}"] = told(
            library.prepare_multimodal_messages, messages, images
        )
    for name, columns in DATASETS.items():
        dataset = Dataset.from_dict(columns)
        for batch in (2, 1000):
            if "chosen" in columns:
                unpaired = library.unpair_preference_dataset(dataset, batch_size=batch)
                found[f"unpair_preference_dataset, {batch}: {name}"] = unpaired.to_dict()
        maybe = library.maybe_unpair_preference_dataset(dataset)
        found[f"maybe_unpair_preference_dataset: {name}"] = maybe.to_dict()
    return found
