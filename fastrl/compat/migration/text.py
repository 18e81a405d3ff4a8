"""A source text and the changes to be made to it, at the places that its syntax tree names."""

from __future__ import annotations

import ast
from collections.abc import Sequence

Node = ast.expr | ast.stmt | ast.keyword | ast.alias


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
        self._lines = [0]
        for line in self.raw.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def start(self, node: Node) -> int:
        """Offset of a node's first byte."""
        return self._lines[node.lineno - 1] + node.col_offset

    def end(self, node: Node) -> int:
        """Offset after a node's last byte."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._lines[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: Node) -> str:
        """A node's source."""
        return self.raw[self.start(node) : self.end(node)].decode()

    def margin(self, call: ast.Call) -> str:
        """The indentation of a call's arguments where each has its line, else of its own line."""
        inner = [*call.args, *call.keywords]
        alone = inner and self.fills_lines(inner[-1])
        return self._indentation(self.start(inner[-1] if alone else call))

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

    def edited(self) -> str:
        """The source with all edits made. Insertions at one place keep their order."""
        pieces = []
        place = 0
        for start, end, text in sorted(self._edits, key=lambda edit: edit[:2]):
            assert start >= place, "edits overlap"
            pieces += [self.raw[place:start], text.encode()]
            place = end
        return b"".join([*pieces, self.raw[place:]]).decode()

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
        left = [item for item in gone if not self._remove_lines(item)]
        place = 0
        while place < len(items):
            if items[place] not in left:
                place += 1
                continue
            first = place
            while place < len(items) and items[place] in left:
                place += 1
            if place < len(items):
                self.replace(self.start(items[first]), self.start(items[place]), "")
            elif first > 0:
                self.replace(self.end(items[first - 1]), self.end(items[-1]), "")
            else:
                end = self.end(items[-1])
                rest = self.raw[end:]
                comma = len(rest) - len(rest.lstrip()) + 1 if rest.lstrip()[:1] == b"," else 0
                self.replace(self.start(items[0]), end + comma, "")

    def _remove_lines(self, item: Node) -> bool:
        lines = self.fills_lines(item)
        if lines is not None:
            self.replace(*lines, "")
        return lines is not None

    def append(self, call: ast.Call, kept: Sequence[Node], added: Sequence[str]) -> None:
        """Add arguments to a call, after those of it that are kept, laid out like them."""
        if not added:
            return
        if not kept:
            self._append_first(call, added)
            return
        last = kept[-1]
        end = self.end(last)
        lines = self.fills_lines(last)
        if lines is None:
            self.replace(end, end, "".join(f", {text}" for text in added))
            return
        margin = self._indentation(self.start(last))
        if self.raw[end : lines[1]].strip().startswith(b","):
            self.replace(lines[1], lines[1], "".join(f"{margin}{text},\n" for text in added))
        else:
            self.replace(end, end, ",")
            joined = f",\n{margin}".join(added)
            self.replace(lines[1], lines[1], f"{margin}{joined}\n")

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
