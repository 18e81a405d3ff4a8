"""A chat format given to a model and its tokenizer: template, special tokens, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AddedToken, AutoTokenizer

from fastrl.legacy import InvalidChoice

_CHATML = (
    "{%- for message in messages -%}"
    "{{- bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- bos_token + 'assistant\\n' -}}{%- endif -%}"
)

# What TRL's scripts give a base model without a template: who speaks, by name; or what is said
# alone, ended by the end-of-sequence token.
SIMPLE_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'].capitalize() ~ ': ' ~ message['content'] ~ '\\n\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
SIMPLE_SFT_CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- ' ' ~ message['content'] -}}{%- endfor -%}{{- eos_token -}}"
)


@dataclass
class ChatMlSpecialTokens:
    """The special tokens of ChatML, and what follows from them.

    Args:
        bos_token: begins a turn, followed by who speaks.
        eos_token: ends it.
        pad_token: pads.
    """

    bos_token: str = "<|im_start|>"
    eos_token: str = "<|im_end|>"
    pad_token: str = "<|im_end|>"

    @property
    def system(self) -> str:
        """How a system's turn begins."""
        return f"{self.bos_token}system"

    @property
    def user(self) -> str:
        """How a user's turn begins."""
        return f"{self.bos_token}user"

    @property
    def assistant(self) -> str:
        """How an assistant's turn begins."""
        return f"{self.bos_token}assistant"

    @property
    def chat_template(self) -> str:
        """The Jinja template with these tokens written out."""
        begun = _CHATML.replace("bos_token", repr(self.bos_token))
        return begun.replace("eos_token", repr(self.eos_token))


# The formats that `setup_chat_format` knows: name -> class of its special tokens.
FORMAT_MAPPING: dict[str, type[ChatMlSpecialTokens]] = {"chatml": ChatMlSpecialTokens}


def clone_chat_template(
    model: Any,
    tokenizer: Any,
    source_tokenizer_path: str,
    resize_to_multiple_of: int | None = 64,
) -> tuple[Any, Any, list[int]]:
    """Gives a model and its tokenizer the chat template of another tokenizer.

    Its added tokens and its end-of-sequence token come along. The embeddings are resized to the
    vocabulary, rounded up; tokens `<extra_id_N>` fill the difference.

    Args:
        model: changed in place.
        tokenizer: changed in place.
        source_tokenizer_path: name or folder of the tokenizer with the template.
        resize_to_multiple_of: rows of the embeddings are a multiple of it; None: as many as tokens.

    Returns:
        (model, tokenizer, ids of the tokens added, in the order of adding).
    """
    source = AutoTokenizer.from_pretrained(source_tokenizer_path)
    tokenizer.chat_template = source.get_chat_template()
    vocabulary = tokenizer.get_vocab()
    added = [t for t in source.added_tokens_decoder.values() if t.content not in vocabulary]
    tokenizer.add_tokens(added)
    tokenizer.eos_token = source.eos_token
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.resize_token_embeddings(
        len(tokenizer.get_vocab()), pad_to_multiple_of=resize_to_multiple_of
    )
    rows = model.get_input_embeddings().weight.shape[0]
    number = 0
    while len(tokenizer.get_vocab()) < rows:
        filler = AddedToken(f"<extra_id_{number}>")
        number += 1
        if tokenizer.add_tokens(filler):
            added.append(filler)
    if len(tokenizer.get_vocab()) != rows:
        raise RuntimeError(
            f"The tokenizer has {len(tokenizer.get_vocab())} tokens and the model {rows} "
            "embeddings after resizing; their ids have gaps. Resize the embeddings by hand."
        )
    return model, tokenizer, tokenizer.convert_tokens_to_ids([t.content for t in added])


def setup_chat_format(
    model: Any,
    tokenizer: Any,
    format: str | None = "chatml",
    resize_to_multiple_of: int | None = None,
) -> tuple[Any, Any]:
    """Gives a base model the ChatML format (TRL 0.8 to 0.28): special tokens, template, embeddings.

    `<|im_start|>` becomes the beginning-of-sequence token, `<|im_end|>` end-of-sequence and
    padding, in the tokenizer, the model's configuration and its generation configuration.

    Args:
        model: changed in place.
        tokenizer: changed in place.
        format: a name in `FORMAT_MAPPING`: "chatml".
        resize_to_multiple_of: rows of the embeddings are a multiple of it; None: as many as tokens.

    Returns:
        (model, tokenizer).

    Raises:
        ValueError: another format.
    """
    if format not in FORMAT_MAPPING:
        known = ", ".join(FORMAT_MAPPING)
        raise InvalidChoice(f"format={format!r} is not available; choose among {known}")
    chat = FORMAT_MAPPING[format]()
    tokenizer.eos_token = chat.eos_token
    tokenizer.pad_token = chat.pad_token
    tokenizer.bos_token = chat.bos_token
    tokenizer.add_special_tokens({"additional_special_tokens": [chat.bos_token, chat.eos_token]})
    tokenizer.chat_template = chat.chat_template
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=resize_to_multiple_of)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
