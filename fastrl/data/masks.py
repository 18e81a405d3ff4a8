"""Which tokens of a conversation are the assistant's, proven or refused.

A template with `{% generation %}` says so itself. For any other the conversation is rendered again
up to each assistant message, with the generation prompt, and through it: where both are beginnings
of the whole text, the turn lies between their ends. Its end-of-turn token belongs to it, since the
model must learn to stop. A token that spans a border counts as the assistant's, as in TRL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

from jinja2 import TemplateError

from fastrl.data.chat import (
    Message,
    Tool,
    chat_template_of,
    render,
    render_marked,
    tokenizer_of,
)
from fastrl.data.formats import common_length
from fastrl.data.templates import has_generation_markers

Span = tuple[int, int]  # characters of a text, end exclusive
_REASONING = re.compile(r"<think>\s*(</think>\s*)?\Z")
_SHOWN = 600  # characters of a text in an error


def assistant_mask(
    messages: Sequence[Message],
    tokenizer: Any,
    tools: Sequence[Tool] | None = None,
    **template_kwargs: Any,
) -> tuple[list[int], list[int]]:
    """`assistant_masks` of one conversation: (input_ids, mask), T ints each."""
    ids, masks = assistant_masks([messages], tokenizer, tools, **template_kwargs)
    return ids[0], masks[0]


def assistant_masks(
    conversations: Sequence[Sequence[Message]],
    tokenizer: Any,
    tools: Sequence[Tool] | None = None,
    **template_kwargs: Any,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each conversation and 1 where the assistant speaks, to the end-of-turn token.

    Args:
        conversations: lists of messages.
        tokenizer: tokenizer or processor with a chat template.
        tools: functions or JSON schemas, the same for all.
        **template_kwargs: for the template; `chat_template=` replaces the one set.

    Raises:
        ValueError: a conversation whose mask cannot be proven: it shows the text and says why.
    """
    texts, spans = assistant_spans(conversations, tokenizer, tools, **template_kwargs)
    return tokenize_spans(texts, spans, tokenizer)


def assistant_spans(
    conversations: Sequence[Sequence[Message]],
    tokenizer: Any,
    tools: Sequence[Tool] | None = None,
    **template_kwargs: Any,
) -> tuple[list[str], list[list[Span]]]:
    """The text of each conversation and the characters of its assistant turns, in order.

    Arguments and errors as in `assistant_masks`.
    """
    template = chat_template_of(tokenizer, template_kwargs.pop("chat_template", None), tools)
    template_kwargs["chat_template"] = template
    if not has_generation_markers(template):
        return proven_spans(conversations, tokenizer, tools, **template_kwargs)
    texts, spans = render_marked(conversations, tokenizer, tools, **template_kwargs)
    for row, messages in enumerate(conversations):
        marked = "".join(texts[row][start:end] for start, end in spans[row])
        for i in _turns(messages):
            content = messages[i].get("content")
            said = content.split("</think>")[-1].strip() if isinstance(content, str) else ""
            if not marked or (said not in marked and said in texts[row]):
                raise ValueError(
                    f"Message {i} of conversation {row} is the assistant's, but the template does "
                    "not put it between {% generation %} and {% endgeneration %}. The text:\n"
                    + texts[row][:_SHOWN]
                )
    return texts, spans


def proven_spans(
    conversations: Sequence[Sequence[Message]],
    tokenizer: Any,
    tools: Sequence[Tool] | None = None,
    **template_kwargs: Any,
) -> tuple[list[str], list[list[Span]]]:
    """`assistant_spans` by rendering anew alone, whatever the template marks itself."""
    prover = _Prover(conversations, tokenizer, tools, template_kwargs)
    return prover.texts, [prover.spans(row) for row in range(len(conversations))]


def tokenize_spans(
    texts: Sequence[str], spans: Sequence[Sequence[Span]], tokenizer: Any
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the texts, without further special tokens, and 1 on each token that touches a span."""
    if not texts:
        return [], []
    tokenizer = tokenizer_of(tokenizer)
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    masks = []
    for row, ids in enumerate(encoded["input_ids"]):
        mask = [0] * len(ids)
        for start, end in spans[row]:
            if tokenizer.is_fast:
                first, last = _tokens_of(encoded.encodings[row], start, end)
            else:
                first = _border(tokenizer, texts[row], ids, start)
                last = _border(tokenizer, texts[row], ids, end)
            mask[first:last] = [1] * (last - first)
        masks.append(mask)
    return encoded["input_ids"], masks


def is_chat_template_stop_token_trained(
    processing_class: Any, chat_template: str | None = None
) -> bool:
    """Whether the assistant's part ends with a token of the added vocabulary, which ends its turn.

    Asked of a turn that another message follows; trailing white space is left aside. Templates
    without such a token (the next turn's header ends the turn, as in GLM-4) do not teach to stop.
    """
    talk = [
        {"role": role, "content": content}
        for role, content in (("user", "hello"), ("assistant", "yes"), ("user", "thanks"))
    ]
    try:
        ids, mask = assistant_mask(talk, processing_class, chat_template=chat_template)
    except (TemplateError, TypeError, ValueError):
        return False
    tokenizer = tokenizer_of(processing_class)
    added = set(tokenizer.get_added_vocab().values())
    said = [token for token, one in zip(ids, mask, strict=True) if one]
    while said and not tokenizer.decode(said[-1:]).strip():
        said.pop()
    return bool(said) and said[-1] in added


def _tokens_of(encoding: Any, start: int, end: int) -> Span:
    """Tokens that hold the characters; white space at the ends may lie in none."""
    while start < end and encoding.char_to_token(start) is None:
        start += 1
    while start < end and encoding.char_to_token(end - 1) is None:
        end -= 1
    if start == end:
        return 0, 0
    return encoding.char_to_token(start), encoding.char_to_token(end - 1) + 1


def _border(tokenizer: Any, text: str, ids: list[int], position: int) -> int:
    """For a tokenizer that knows no characters: how many ids the text before `position` has."""
    before = tokenizer(text[:position], add_special_tokens=False, verbose=False)["input_ids"]
    if ids[: len(before)] != before:
        raise ValueError(
            "The ids of a conversation do not begin with those of its own beginning, so a turn "
            f"cannot be found in them. The beginning:\n{text[:position][-_SHOWN:]}\nThe fast "
            "version of this tokenizer knows which characters a token stands for."
        )
    return len(before)


def _turns(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def _unfilled(prompted: str) -> str:
    """A text less the reasoning that its generation prompt opens: that counts as the assistant's.

    So turns begin at the same place with thinking on and off, as in TRL's training templates.
    """
    return _REASONING.sub("", prompted)


class _Prover:
    """Finds assistant turns by rendering conversations anew up to them.

    Text `before` ends with the generation prompt of a turn, text `through` with the turn.
    """

    def __init__(
        self,
        conversations: Sequence[Sequence[Message]],
        tokenizer: Any,
        tools: Sequence[Tool] | None,
        template_kwargs: dict[str, Any],
    ) -> None:
        self.conversations = conversations
        self.tokenizer = tokenizer
        self.tools = tools
        self.template_kwargs = template_kwargs
        self.texts = self._render(list(conversations))
        turns = [(row, i) for row, m in enumerate(conversations) for i in _turns(m)]
        begun = [(row, i) for row, i in turns if i > 0]
        ended = [(row, i) for row, i in turns if i + 1 < len(conversations[row])]
        befores = map(
            _unfilled, self._render([conversations[row][:i] for row, i in begun], prompt=True)
        )
        throughs = self._render([conversations[row][: i + 1] for row, i in ended])
        self.before = dict(zip(begun, befores, strict=True))
        self.through = dict(zip(ended, throughs, strict=True))

    def _render(self, conversations: list[Any], prompt: bool = False) -> list[str]:
        if not conversations:
            return []
        try:
            return render(
                conversations,
                self.tokenizer,
                self.tools,
                add_generation_prompt=prompt,
                **self.template_kwargs,
            )
        except TemplateError as error:
            if len(conversations) > 1:
                return [self._render([messages], prompt)[0] for messages in conversations]
            roles = [message["role"] for message in conversations[0]]
            raise ValueError(
                f"The chat template refuses a conversation of {roles}, which is one of the rows or "
                f"begins one: {error}"
            ) from error

    def spans(self, row: int) -> list[Span]:
        """Character spans of the assistant turns of one conversation."""
        found: list[Span] = []
        for i in _turns(self.conversations[row]):
            start = self._start(row, i, found[-1][1] if found else 0)
            found.append((start, self._end(row, i, start)))
        for (_, end), (start, _) in pairwise(found):
            assert end <= start
        return found

    def _start(self, row: int, i: int, least: int) -> int:
        text, before = self.texts[row], self.before.get((row, i))
        if before is not None and text.startswith(before) and len(before) >= least:
            return len(before)
        start = self._start_of_content(row, i, before, least)
        if start is None:
            self._refuse(row, i, "up to this message is rendered otherwise alone", before or "")
        return start

    def _start_of_content(self, row: int, i: int, before: str | None, least: int) -> int | None:
        """For a text that does not go on from the whole generation prompt.

        After the messages before, it goes on from the prompt's beginning at least: where it leaves
        the prompt, the turn begins. Other content shows that this is no chance of its first letter.
        A first message has no prompt; the text before its content must hold the usual one once.
        """
        messages = list(self.conversations[row])
        probes = [[*messages[:i], {**messages[i], "content": c}] for c in ("0", "1")]
        probed = self._render([probe + messages[i + 1 :] for probe in probes])
        text = self.texts[row]
        if before is not None:
            start = min(common_length(before, text), common_length(before, probed[0]))
            bare = self._ends(self._render([messages[:i]])[0])
            known = any(before.startswith(end) and start >= len(end) for end in bare)
            return start if known and start >= least else None
        content = common_length(*probed)
        if text[:content] != probed[0][:content]:
            return None
        prompted = _unfilled(self._render([messages], prompt=True)[0])
        for closed in self._ends(text):
            prompt = prompted.removeprefix(closed)
            if prompt not in ("", prompted) and text.count(prompt, least, content) == 1:
                return text.index(prompt, least, content) + len(prompt)
        return None

    def _ends(self, text: str) -> tuple[str, str]:
        """The text, also without the end-of-text token that some templates close any text with."""
        return text, text.removesuffix(tokenizer_of(self.tokenizer).eos_token or "")

    def _end(self, row: int, i: int, start: int) -> int:
        text, through = self.texts[row], self.through.get((row, i))
        if through is None:
            return len(text)
        for beginning in (*self._ends(through), *self._unprompted(row, i)):
            if text.startswith(beginning) and len(beginning) > start:
                return len(beginning)
        self._refuse(row, i, "through this message is rendered otherwise alone", through)

    def _unprompted(self, row: int, i: int) -> list[str]:
        """The text through a message with the generation prompt, less that prompt.

        For templates that end the last turn of all otherwise than those before it.
        """
        messages = self.conversations[row]
        if (row, i) not in self.before:
            return []
        (bare,) = self._render([messages[:i]])
        prompted = _unfilled(self._render([messages[: i + 1]], prompt=True)[0])
        prompts = [self.before[row, i].removeprefix(closed) for closed in self._ends(bare)]
        return [
            prompted.removesuffix(prompt)
            for prompt in prompts
            if prompt and prompt != self.before[row, i] and prompted.endswith(prompt)
        ]

    def _refuse(self, row: int, i: int, why: str, alone: str) -> NoReturn:
        text = self.texts[row]
        at = common_length(text, alone)
        raise ValueError(
            f"The assistant mask of conversation {row} cannot be proven at message {i}: the text "
            f"{why}. From character {at} on\nalone: {alone[at : at + 120]!r}\n"
            f"whole: {text[at : at + 120]!r}\nThe template drops or rewrites earlier turns. Mark "
            "the assistant's part with {% generation %} and {% endgeneration %} "
            "(get_training_chat_template can do it for many templates). The whole text:\n"
            + text[:_SHOWN]
        )
