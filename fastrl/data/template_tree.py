"""Surgery on a template's syntax tree: which prints there are, and `{% generation %}` around some.

A `nodes.Scope` is a generation block (see `jinja_source`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes


@dataclass(frozen=True)
class Wrap:
    """How a print is wrapped: what it prints after `header`, where `shared` if the role fits."""

    header: str
    shared: bool


def pruned(statements: list[nodes.Node]) -> list[nodes.Node]:
    """The statements without the branches of fixed conditions that are never taken."""
    kept: list[nodes.Node] = []
    for node in statements:
        for body in _bodies(node):
            body[:] = pruned(body)
        while isinstance(node, nodes.If) and node.test == nodes.Const(False) and node.elif_:
            node = nodes.If(node.elif_[0].test, node.elif_[0].body, node.elif_[1:], node.else_)
        if isinstance(node, nodes.If) and isinstance(node.test, nodes.Const):
            kept += node.body if node.test.value else node.else_
        else:
            kept.append(node)
    return kept


def _bodies(node: Any) -> list[list[nodes.Node]]:
    """The statement lists within a statement that print where they stand."""
    if isinstance(node, nodes.If):
        return [node.body, *(branch.body for branch in node.elif_), node.else_]
    if isinstance(node, nodes.For):
        return [node.body, node.else_]
    return [node.body] if isinstance(node, nodes.Scope) else []


def one_print_each(statements: list[nodes.Node]) -> None:
    """Gives each printed part a statement of its own."""
    split: list[nodes.Node] = []
    for node in statements:
        for body in _bodies(node):
            one_print_each(body)
        parts = node.nodes if isinstance(node, nodes.Output) else []
        split += [nodes.Output([part]) for part in parts] or [node]
    statements[:] = split


def prints(statements: list[nodes.Node]) -> Iterator[nodes.Output]:
    """The prints that are not within macros or captured blocks, in the order of the source."""
    for node in statements:
        if isinstance(node, nodes.Output):
            yield node
        for body in _bodies(node):
            yield from prints(body)


def wrap_of(found: set[str | None]) -> Wrap:
    """From what a print was seen to give before the assistant's part (None: it gave no such part).

    Of several headers the shortest: a longer one goes on with what the prompt opens.
    """
    headers = sorted((header for header in found if header is not None), key=len)
    return Wrap(headers[0], None in found)


def wrapped(
    statements: list[nodes.Node], plan: dict[int, Wrap], message: str | None
) -> list[nodes.Node]:
    """The statements with prints wrapped, and what is wrapped entirely as one block.

    Args:
        statements: with one print each; their inner lists are changed.
        plan: id of a print -> how to wrap it.
        message: name of the message that an enclosing loop is at.
    """
    done: list[nodes.Node] = []
    for node in statements:
        inner = message
        if isinstance(node, nodes.For) and isinstance(node.target, nodes.Name):
            inner = message or node.target.name
        for body in _bodies(node):
            body[:] = wrapped(body, plan, inner)
        wrap = plan.get(id(node))
        new = [_hoisted(node)] if wrap is None else _wrapped_print(node, wrap, message)
        for statement in new:
            if done and isinstance(statement, nodes.Scope) and isinstance(done[-1], nodes.Scope):
                done[-1].body += statement.body
            else:
                done.append(statement)
    return done


def _wrapped_print(output: Any, wrap: Wrap, message: str | None) -> list[nodes.Node]:
    new: list[nodes.Node]
    if wrap.header:
        # turn = (printed ~ '').partition(header): before, header, the assistant's part
        turn = nodes.Name("assistant_turn", "load")
        printed = nodes.Concat([output.nodes[0], nodes.Const("")])
        parts = nodes.Call(
            nodes.Getattr(printed, "partition", "load"), [nodes.Const(wrap.header)], [], None, None
        )
        first, header, said = (nodes.Getitem(turn, nodes.Const(k), "load") for k in range(3))
        new = [
            nodes.Assign(nodes.Name("assistant_turn", "store"), parts),
            nodes.Output([nodes.Concat([first, header])]),
            nodes.Scope([nodes.Output([said])]),
        ]
    else:
        new = [nodes.Scope([output])]
    if not wrap.shared:
        return new
    one = (
        nodes.Name(message, "load")
        if message
        else nodes.Getitem(nodes.Name("messages", "load"), nodes.Const(-1), "load")
    )
    role = nodes.Getitem(one, nodes.Const("role"), "load")
    is_assistant = nodes.Compare(role, [nodes.Operand("eq", nodes.Const("assistant"))])
    return [nodes.If(is_assistant, new, [], [output])]


def _hoisted(node: Any) -> nodes.Node:
    """A statement whose every print is wrapped, wrapped as a whole instead."""
    bodies = [body for body in _bodies(node) if body]
    if isinstance(node, nodes.If):
        whole = all(len(body) == 1 for body in bodies)
    else:
        # What a loop sets stays within the loop, so it may go along.
        whole = isinstance(node, nodes.For) and not node.else_
    statements = [statement for body in bodies for statement in body]
    scopes = [s for s in statements if isinstance(s, nodes.Scope)]
    others = [s for s in statements if not isinstance(s, nodes.Scope)]
    silent = all(isinstance(s, nodes.Assign) or _only_sets(s) for s in others)
    if not (whole and scopes and silent) or (isinstance(node, nodes.If) and others):
        return node
    for body in bodies:
        body[:] = [inner for s in body for inner in (s.body if isinstance(s, nodes.Scope) else [s])]
    return nodes.Scope([node])


def _only_sets(node: nodes.Node) -> bool:
    return isinstance(node, nodes.If) and all(
        isinstance(s, nodes.Assign) or _only_sets(s) for body in _bodies(node) for s in body
    )
