"""A template for training, derived from the model's own and proven by rendering.

Two changes are made to its syntax tree. Conditions that make earlier turns look otherwise than they
did when they were last (Qwen3 and others drop earlier reasoning) are fixed to one outcome. What is
printed within an assistant turn is put between `{% generation %}` and `{% endgeneration %}`: the
template is rendered with a mark before every print, and the marks that fall into a turn (as found
by rendering with and without it, see `masks`) name the prints to wrap.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import nodes

from fastrl.data.chat import chat_template_of, one_of, render, render_marked
from fastrl.data.jinja_source import parse, unparse
from fastrl.data.masks import Span, proven_spans
from fastrl.data.probes import Probe, probes_for
from fastrl.data.template_tree import one_print_each, prints, pruned, wrap_of, wrapped
from fastrl.data.templates import (
    has_generation_markers,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)

_MARK = re.compile("\ue000([0-9]+)\ue001")
# Conditions on a message's place or on its reasoning; only these may be fixed.
_ON_PLACE = re.compile(r"loop|last|index|length|think|reason|messages|ns")
_FIXED_AT_ONCE = 2
_SAMPLE = 8  # failing probes that tell which conditions matter
_SWITCH = "fastrl_fixed_"


class NotProven(ValueError):
    """No training template could be derived that does what it must on every probe."""


def get_training_chat_template(processing_class: Any = None, tokenizer: Any = None) -> str | None:
    """A template that marks the assistant's part and never changes earlier turns.

    Exchanges with tools whose earlier turns the original changes and no fixed condition mends are
    left as they are.

    Returns:
        None if the template set already does both, else one derived from it. On conversations whose
        earlier turns the original neither changes nor strips of reasoning, both give one text.

    Raises:
        NotProven: (a ValueError) none could be derived; it says what failed.
    """
    if tokenizer is not None and processing_class is None:
        warnings.warn(
            "get_training_chat_template(tokenizer=...) is now spelled processing_class=...",
            FutureWarning,
            stacklevel=2,
        )
    processing_class = one_of(processing_class, tokenizer, "get_training_chat_template")
    template = chat_template_of(processing_class)
    steady = not supports_tool_calling(processing_class) or is_chat_template_prefix_preserving(
        processing_class
    )
    if steady and has_generation_markers(template):
        return None
    trial = _Trial(processing_class, template)
    try:
        tree = trial.steadied()
    except NotProven:
        if not trial.leave_unsteady_tools():
            raise
        tree = trial.steadied()
    if has_generation_markers(template):
        return unparse(tree)
    return trial.marked(tree)


class _Trial:
    """One template, tried on every probe that it accepts."""

    def __init__(self, processing_class: Any, template: str) -> None:
        self.processing_class = processing_class
        self.original = template
        self.probes = [p for p in probes_for(processing_class) if self._accepts(p)]
        if not any(len(probe.messages) > 2 for probe in self.probes):
            raise NotProven("The chat template renders no conversation of several turns.")
        self.texts: dict[int, str] = {}
        sound = [p for p in self.probes if self._fault(template, p) is None]
        self.texts = {id(p): self._text(template, p) for p in sound}
        # Those that the template fails come first: they decide.
        self.probes = [p for p in self.probes if id(p) not in self.texts] + sound

    def leave_unsteady_tools(self) -> bool:
        """Gives up exchanges with tools that the original fails; whether there were any."""
        before = len(self.probes)
        self.probes = [p for p in self.probes if id(p) in self.texts or not p.with_tools]
        return len(self.probes) < before

    def _accepts(self, probe: Probe) -> bool:
        """Whether the template prints every message. It may refuse a probe with any exception."""
        try:
            text = self._text(self.original, probe)
        except Exception:
            return False
        return all(word in text for word in probe.printed)

    def _text(self, template: str, probe: Probe, **switches: bool) -> str:
        return render(
            [probe.messages],
            self.processing_class,
            probe.tools,
            chat_template=template,
            **switches,
        )[0]

    def _turns(self, template: str, probe: Probe, **switches: bool) -> tuple[str, list[Span]]:
        texts, spans = proven_spans(
            [probe.messages],
            self.processing_class,
            probe.tools,
            chat_template=template,
            **switches,
        )
        return texts[0], spans[0]

    def _fault(self, template: str, probe: Probe, **switches: bool) -> str | None:
        """Why a template will not do for a conversation."""
        try:
            text, _ = self._turns(template, probe, **switches)
        except Exception as error:  # of the template's making
            return str(error)
        lost = [word for word in probe.kept if word not in text]
        if lost:
            return f"{lost[0]!r} of an assistant message is missing in the text:\n{text}"
        if self.texts.get(id(probe), text) != text:
            return f"the text is no longer that of the original, but:\n{text}"
        return None

    def steadied(self) -> nodes.Template:
        """The tree, with as few conditions fixed as make it hold on every probe.

        A condition is tried either way by a variable of the template, so it is compiled once.
        """
        tree = parse(self.original)
        conditions = dict(enumerate(_conditions(tree)))
        tests = {k: node.test for k, node in conditions.items()}
        for k, node in conditions.items():
            switch = nodes.Name(f"{_SWITCH}{k}", "load")
            is_set = nodes.Test(switch, "defined", [], [], None, None)
            node.test = nodes.CondExpr(is_set, switch, tests[k])
        switched = unparse(tree)
        fixed = self._fixed(switched, list(conditions))
        for k, node in conditions.items():
            outcome = fixed.get(f"{_SWITCH}{k}")
            node.test = tests[k] if outcome is None else nodes.Const(outcome)
        tree.body = pruned(tree.body)
        return tree

    def _fixed(self, switched: str, conditions: list[int]) -> dict[str, bool]:
        """The switches to set, fewest first, each for a condition that matters where it fails."""
        if len(self.texts) == len(self.probes):
            return {}
        failing = self.probes[: len(self.probes) - len(self.texts)]
        sample = failing[:: 1 + len(failing) // _SAMPLE]
        plain = [self._stages(switched, probe) for probe in sample]
        matter = []
        for k in reversed(conditions):  # the last decide what is printed, with the least else
            ways = [(f"{_SWITCH}{k}", outcome) for outcome in (True, False)]
            if any(
                self._stages(switched, probe, **dict([way])) != texts
                for probe, texts in zip(sample, plain, strict=True)
                for way in ways
            ):
                matter.append(ways)
        probes = list(self.probes)
        for count in range(1, _FIXED_AT_ONCE + 1):
            chosen = itertools.combinations(matter, count)
            for choice in (ways for some in chosen for ways in itertools.product(*some)):
                switches = dict(choice)
                failed = next((p for p in probes if self._fault(switched, p, **switches)), None)
                if failed is None:
                    return switches
                probes.remove(failed)  # what fails one choice fails many: it is asked first
                probes.insert(0, failed)
        raise NotProven(
            "The chat template changes or drops earlier parts of a conversation, and fixing up to "
            f"{_FIXED_AT_ONCE} of its conditions does not mend it: "
            f"{self._fault(switched, self.probes[0])}"
        )

    def _stages(self, template: str, probe: Probe, **switches: bool) -> list[str]:
        """The texts of a conversation as it grows; '' where it is refused."""
        texts = []
        for end in range(1, len(probe.messages) + 1):
            try:
                texts.append(
                    self._text(template, Probe(probe.messages[:end], probe.tools), **switches)
                )
            except Exception:
                texts.append("")
        return texts

    def marked(self, tree: nodes.Template) -> str:
        """The tree's text with `{% generation %}` around what the assistant says."""
        plain = unparse(tree)
        one_print_each(tree.body)
        printing = list(prints(tree.body))
        marks = {id(output): f"\ue000{k}\ue001" for k, output in enumerate(printing)}
        traced = unparse(tree, marks)
        seen: dict[int, set[str | None]] = {}
        for probe in self.probes:
            _, spans = self._turns(plain, probe)
            for k, header in _headers(self._text(traced, probe), spans):
                seen.setdefault(k, set()).add(header)
        plan = {id(printing[k]): wrap_of(found) for k, found in seen.items() if found != {None}}
        tree.body = wrapped(tree.body, plan, None)
        template = unparse(tree)
        for probe in self.probes:
            self._prove(template, plain, probe)
        return template

    def _prove(self, template: str, plain: str, probe: Probe) -> None:
        """Marks of the template = turns found by rendering anew.

        A mark may begin earlier by an end of the generation prompt, which the turn repeats.
        """
        text, turns = self._turns(plain, probe)
        texts, marks = render_marked(
            [probe.messages], self.processing_class, probe.tools, chat_template=template
        )
        found = _joined(marks[0])
        first = next(i for i, m in enumerate(probe.messages) if m["role"] == "assistant")
        prompt = render(
            [probe.messages[:first]], self.processing_class, probe.tools, True, chat_template=plain
        )[0]
        if (
            texts[0] != text
            or [end for _, end in found] != [end for _, end in turns]
            or any(
                mark > start or not prompt.endswith(text[mark:start])
                for (mark, _), (start, _) in zip(found, turns, strict=True)
            )
        ):
            raise NotProven(
                "No training template could be derived: its marks would be "
                f"{[texts[0][a:b] for a, b in found]} where the assistant says "
                f"{[text[a:b] for a, b in turns]} in:\n{text}"
            )


def _joined(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif end > start:
            joined.append((start, end))
    return joined


def _conditions(tree: nodes.Template) -> Iterator[Any]:
    node: Any
    for node in tree.find_all((nodes.If, nodes.CondExpr)):
        written = unparse(nodes.Template([nodes.Output([node.test])]))
        if _ON_PLACE.search(written):
            yield node


def _headers(traced: str, spans: Sequence[Span]) -> Iterator[tuple[int, str | None]]:
    """(print, what it printed before the assistant's part); None if it printed no such part."""
    _, *parts = _MARK.split(traced)
    start = 0
    for k, printed in zip(parts[::2], parts[1::2], strict=True):
        end = start + len(printed)
        within = [first for first, last in spans if first < end and last > start]
        if printed:
            yield int(k), printed[: max(within[0] - start, 0)] if within else None
        start = end
