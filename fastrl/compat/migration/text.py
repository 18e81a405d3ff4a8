"""A source text and the changes to be made to it, at the places that its syntax tree names."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Sequence

from fastrl.compat.migration.names import arguments

Node = ast.expr | ast.stmt | ast.keyword | ast.alias
_MOVED = re.compile(r"\0(\d+):(\d+)\0")  # no source has a NUL


class Text:
    """A source, its tree, the edits collected so far and what could not be rewritten.

    Offsets count bytes of UTF-8, as the tree's columns do.

    Raises:
        SyntaxError: the source is no Python.
    """

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        self.raw = source.encode()
        self.notes: list[tuple[int, str]] = []  # (line, what its reader must do)
        self._edits: list[tuple[int, int, str]] = []
        self._gaps: list[tuple[int, int]] = []  # what is taken out
        self._lines = [0]
        for line in self.raw.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._around = self._with_parentheses(source)

    def _tokens(self, source: str) -> list[tuple[str, int, int]]:
        """(text, first byte, byte after its last) of each token that is no space or comment."""
        found = []
        for token in tokenize.generate_tokens(io.StringIO(source, newline="").readline):
            if token.type != tokenize.COMMENT and token.string.strip():
                row, column = token.start
                start = self._lines[row - 1] + len(token.line[:column].encode())
                found.append((token.string, start, start + len(token.string.encode())))
        return found

    def _with_parentheses(self, source: str) -> dict[ast.AST, tuple[int, int]]:
        """The stretch of each positional argument, with the parentheses that are its own."""
        tokens = self._tokens(source)
        at = {start: place for place, (_, start, _) in enumerate(tokens)}
        until = {end: place for place, (_, _, end) in enumerate(tokens)}
        found: dict[ast.AST, tuple[int, int]] = {}
        for call in (node for node in ast.walk(self.tree) if isinstance(node, ast.Call)):
            place = until.get(self._span(call.func)[1])
            if place is None:  # within a string
                continue
            opened = next(n for n in range(place + 1, len(tokens)) if tokens[n][0] == "(")
            for argument in call.args:
                start, end = self._span(argument)
                before, after = at[start] - 1, until[end] + 1
                while before > opened and (tokens[before][0], tokens[after][0]) == ("(", ")"):
                    before, after = before - 1, after + 1
                found[argument] = (tokens[before + 1][1], tokens[after - 1][2])
        return found

    def _span(self, node: Node) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self._lines[node.lineno - 1] + node.col_offset
        return start, self._lines[node.end_lineno - 1] + node.end_col_offset

    def start(self, node: Node) -> int:
        """Offset of a node's first byte, or of the parenthesis before a positional argument."""
        return self._around.get(node, self._span(node))[0]

    def end(self, node: Node) -> int:
        """Offset after a node's last byte, or after a positional argument's parenthesis."""
        return self._around.get(node, self._span(node))[1]

    def start_of_line(self, node: ast.stmt) -> int:
        """Offset of the first line of a statement, its decorators included."""
        above = [item.lineno for item in getattr(node, "decorator_list", ())]
        return self._lines[min([node.lineno, *above]) - 1]

    def of(self, node: Node) -> str:
        """A node's source."""
        return self.raw[self.start(node) : self.end(node)].decode()

    def moved(self, node: Node) -> str:
        """A stand-in for a node's source with the edits inside it, to be put at another place."""
        return f"\0{self.start(node)}:{self.end(node)}\0"

    def margin(self, call: ast.Call) -> str:
        """The indentation of a call's last argument if it begins a line, else of its own line."""
        place = self.start(arguments(call)[-1] if arguments(call) else call)
        begins = not self.raw[self.raw.rfind(b"\n", 0, place) + 1 : place].strip()
        return self._indentation(place if begins else self.start(call))

    def _indentation(self, place: int) -> str:
        line = self.raw[self.raw.rfind(b"\n", 0, place) + 1 :].decode()
        return line[: len(line) - len(line.lstrip())]

    def note(self, node: Node, text: str) -> None:
        """Keep what the reader must know about a line."""
        if (node.lineno, text) not in self.notes:
            self.notes.append((node.lineno, text))

    def replace(self, start: int, end: int, text: str) -> None:
        """Put a text in the place of a stretch (of none, to insert)."""
        if (start, end, text) not in self._edits:
            self._edits.append((start, end, text))

    def take_out(self, start: int, end: int) -> None:
        """Take out a stretch, and with it what is edited inside."""
        self._gaps.append((start, end))

    def edited(self) -> str:
        """The source with all edits made. Insertions at one place keep their order.

        Edits inside a stretch that is replaced or taken out are left out.
        """
        return self._edited(0, len(self.raw), [*self._edits, *((*gap, "") for gap in self._gaps)])

    def _edited(self, first: int, last: int, edits: Sequence[tuple[int, int, str]]) -> str:
        pieces = []
        place = first
        # At one place insertions first, then the widest.
        for start, end, text in sorted(edits, key=lambda e: (e[0], e[1] > e[0], -e[1])):
            if start >= place:
                pieces += [self.raw[place:start].decode(), _MOVED.sub(self._put_moved, text)]
            else:
                assert end <= place or not text, "edits overlap"
            place = max(place, end)
        return "".join([*pieces, self.raw[place:last].decode()])

    def _put_moved(self, stand_in: re.Match[str]) -> str:
        """The source of a node that is moved: its own removal is no edit inside it."""
        first, last = int(stand_in[1]), int(stand_in[2])
        gaps = [(*gap, "") for gap in self._gaps if gap != (first, last)]
        inside = [e for e in [*self._edits, *gaps] if first <= e[0] and e[1] <= last]
        return self._edited(
            first, last, [e for e in inside if e[:2] not in ((first,) * 2, (last,) * 2)]
        )

    # --- lists: arguments of a call, names of an import ------------------------------------------

    def fills_lines(self, node: Node) -> tuple[int, int] | None:
        """The lines of an item that has them for itself, its comma and comment included."""
        start, end = self.start(node), self.end(node)
        first = self.raw.rfind(b"\n", 0, start) + 1
        newline = self.raw.find(b"\n", end)
        last = len(self.raw) if newline < 0 else newline + 1
        after = self.raw[end:last].strip().removeprefix(b",").strip()
        alone = not self.raw[first:start].strip() and (not after or after.startswith(b"#"))
        return (first, last) if alone else None

    def remove(self, items: Sequence[Node], gone: Sequence[Node]) -> None:
        """Take items out of a comma-separated list, in order of their places."""
        place = 0
        while place < len(items):
            first = place
            while place < len(items) and items[place] in gone:
                place += 1
            if place > first:
                self._remove_run(items, first, place)
            place += 1

    def _remove_run(self, items: Sequence[Node], first: int, after: int) -> None:
        """Take out `items[first:after]`, whose neighbours stay."""
        lines = self._lines_of(items[first:after])
        if lines is not None:
            self._gaps += lines
            return
        start, end = self.start(items[first]), self.end(items[after - 1])
        if after < len(items):
            self._gaps.append((start, self.start(items[after])))
        elif first > 0:
            before = items[first - 1]
            self._gaps.append(
                (start if self._commented(before, items[first]) else self.end(before), end)
            )
        else:
            rest = self.raw[end:]
            comma = len(rest) - len(rest.lstrip()) + 1 if rest.lstrip()[:1] == b"," else 0
            self._gaps.append((start, end + comma))

    def _lines_of(self, items: Sequence[Node]) -> list[tuple[int, int]] | None:
        """The lines of items that all have them for themselves."""
        lines = [found for item in items if (found := self.fills_lines(item)) is not None]
        return lines if len(lines) == len(items) else None

    def _commented(self, item: Node, following: Node) -> bool:
        """Whether an item has a comment behind it, which stays with its comma."""
        return b"#" in self.raw[self.end(item) : self.start(following)]

    def append(self, call: ast.Call, gone: Sequence[Node], added: Sequence[str]) -> None:
        """Add arguments to a call, after those of it that are not gone, laid out like them."""
        items = arguments(call)
        kept = [item for item in items if item not in gone]
        if not added:
            return
        if not kept:
            self._append_first(call, added)
            return
        last = kept[-1]
        end = self.end(last)
        lines = self.fills_lines(last)
        margin = self._indentation(self.start(last))
        between = ", " if lines is None else f",\n{margin}"
        following = items[items.index(last) + 1 :]
        if self._lines_of(following) is None and self._commented(last, following[0]):
            place = self.start(following[0])  # in the place of what is taken out
            self.replace(place, place, between.join(added))
        elif lines is None or self._lines_of(following) is None:
            self.replace(end, end, "".join(f"{between}{text}" for text in added))
        elif self.raw[end : lines[1]].strip().startswith(b","):
            self.replace(lines[1], lines[1], "".join(f"{margin}{text},\n" for text in added))
        else:
            self.replace(end, end, ",")
            self.replace(lines[1], lines[1], f"{margin}{between.join(added)}\n")

    def prepend(self, item: Node, added: str) -> None:
        """Add an item before one of a list, on a line of its own if that one has one."""
        start = self.start(item)
        own_line = self.fills_lines(item) is not None
        self.replace(
            start, start, f"{added},\n{self._indentation(start)}" if own_line else f"{added}, "
        )

    def _append_first(self, call: ast.Call, added: Sequence[str]) -> None:
        place = self.raw.index(b"(", self.end(call.func)) + 1
        self.replace(place, place, ", ".join(added))
