"""Template text <-> syntax tree: Jinja's parser, and the way back that Jinja lacks.

Every tag written strips the white space around it, and plain text is written as a string, so line
breaks and indents of the result mean nothing. A `{% generation %}` block is a `nodes.Scope`, which
the parser makes of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

_BINARY = {
    nodes.Add: "+",
    nodes.Sub: "-",
    nodes.Mul: "*",
    nodes.Div: "/",
    nodes.FloorDiv: "//",
    nodes.Mod: "%",
    nodes.Pow: "**",
    nodes.And: "and",
    nodes.Or: "or",
}
_UNARY = {nodes.Not: "not ", nodes.Neg: "-", nodes.Pos: "+"}
_COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "lteq": "<=",
    "gt": ">",
    "gteq": ">=",
    "in": "in",
    "notin": "not in",
}


class _GenerationTag(Extension):
    tags = {"generation"}  # noqa: RUF012 (Jinja reads a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def parse(source: str) -> nodes.Template:
    """The syntax tree under the settings of transformers' chat templates."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    return environment.parse(source)


def unparse(tree: nodes.Template, marks: Mapping[int, str] | None = None) -> str:
    """Template text with the meaning of the tree.

    Args:
        tree: as `parse` gives it, perhaps changed.
        marks: id of an `Output` node -> text written before it.

    Raises:
        ValueError: a construct that chat templates do not use (inheritance, imports).
    """
    return "\n".join(_body(tree.body, marks or {}))


def _body(statements: list[nodes.Node], marks: Mapping[int, str]) -> list[str]:
    return [line for statement in statements for line in _statement(statement, marks)]


def _block(head: str, body: list[nodes.Node], tail: str, marks: Mapping[int, str]) -> list[str]:
    lines = ["  " + line for line in _body(body, marks)]
    return ["{%- " + head + " -%}", *lines, *(["{%- " + tail + " -%}"] if tail else [])]


def _statement(node: Any, marks: Mapping[int, str]) -> list[str]:
    match node:
        case nodes.Output():
            printed = [nodes.Const(marks[id(node)])] if id(node) in marks else []
            return ["{{- " + _expression(part) + " -}}" for part in printed + node.nodes]
        case nodes.If():
            lines = _block(f"if {_expression(node.test)}", node.body, "", marks)
            for branch in node.elif_:
                lines += _block(f"elif {_expression(branch.test)}", branch.body, "", marks)
            if node.else_:
                lines += _block("else", node.else_, "", marks)
            return [*lines, "{%- endif -%}"]
        case nodes.For():
            return _for(node, marks)
        case nodes.Assign():
            return ["{%- set " + f"{_target(node.target)} = {_expression(node.node)}" + " -%}"]
        case nodes.AssignBlock():
            filters = "" if node.filter is None else " | " + _filter(node.filter)
            return _block(f"set {_target(node.target)}{filters}", node.body, "endset", marks)
        case nodes.Macro():
            head = f"macro {node.name}({_parameters(node)})"
            return _block(head, node.body, "endmacro", marks)
        case nodes.CallBlock():
            head = f"call({_parameters(node)}) {_expression(node.call)}"
            return _block(head, node.body, "endcall", marks)
        case nodes.FilterBlock():
            return _block(f"filter {_filter(node.filter)}", node.body, "endfilter", marks)
        case nodes.Scope():
            return _block("generation", node.body, "endgeneration", marks)
        case nodes.Break():
            return ["{%- break -%}"]
        case nodes.Continue():
            return ["{%- continue -%}"]
    raise ValueError(f"line {node.lineno}: {type(node).__name__} is not for chat templates")


def _for(node: nodes.For, marks: Mapping[int, str]) -> list[str]:
    head = f"for {_target(node.target)} in {_expression(node.iter)}"
    if node.test is not None:
        head += f" if {_expression(node.test)}"
    if node.recursive:
        head += " recursive"
    if not node.else_:
        return _block(head, node.body, "endfor", marks)
    return _block(head, node.body, "", marks) + _block("else", node.else_, "endfor", marks)


def _target(node: Any) -> str:
    if isinstance(node, nodes.Tuple):
        return ", ".join(_target(item) for item in node.items)
    return _expression(node)


def _parameters(node: Any) -> str:
    bare = len(node.args) - len(node.defaults)
    names = [argument.name for argument in node.args]
    defaults = zip(names[bare:], node.defaults, strict=True)
    return ", ".join(names[:bare] + [f"{name}={_expression(value)}" for name, value in defaults])


def _arguments(node: Any) -> str:
    given = [_expression(value) for value in node.args]
    given += [f"{pair.key}={_expression(pair.value)}" for pair in node.kwargs]
    given += ["*" + _expression(node.dyn_args)] if node.dyn_args is not None else []
    given += ["**" + _expression(node.dyn_kwargs)] if node.dyn_kwargs is not None else []
    return "(" + ", ".join(given) + ")"


def _filter(node: nodes.Filter) -> str:
    """A filter without its outermost input, as a block takes it."""
    before = "" if node.node is None else _filter(node.node) + " | "  # type: ignore[arg-type]
    return before + node.name + _arguments(node)


def _constant(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _expression(node: Any) -> str:
    if type(node) in _BINARY:
        return f"({_expression(node.left)} {_BINARY[type(node)]} {_expression(node.right)})"
    if type(node) in _UNARY:
        return f"({_UNARY[type(node)]}{_expression(node.node)})"
    match node:
        case nodes.Const():
            return _constant(node.value)
        case nodes.TemplateData():
            return _constant(node.data)
        case nodes.Name():
            return node.name
        case nodes.NSRef():
            return f"{node.name}.{node.attr}"
        case nodes.Getattr():
            return f"{_expression(node.node)}.{node.attr}"
        case nodes.Getitem():
            return f"{_expression(node.node)}[{_expression(node.arg)}]"
        case nodes.Slice():
            parts = [node.start, node.stop, node.step]
            written = ["" if part is None else _expression(part) for part in parts]
            return ":".join(written if node.step is not None else written[:2])
        case nodes.Call():
            return _expression(node.node) + _arguments(node)
        case nodes.Filter():
            return f"({_expression(node.node)} | {node.name}{_arguments(node)})"
        case nodes.Test():
            given = "" if _arguments(node) == "()" else _arguments(node)
            return f"({_expression(node.node)} is {node.name}{given})"
        case nodes.Compare():
            ops = [f" {_COMPARISONS[op.op]} {_expression(op.expr)}" for op in node.ops]
            return f"({_expression(node.expr)}{''.join(ops)})"
        case nodes.Concat():
            return "(" + " ~ ".join(_expression(part) for part in node.nodes) + ")"
    return _display(node)


def _display(node: Any) -> str:
    """Conditional expressions, and the brackets of sequences and dictionaries."""
    match node:
        case nodes.CondExpr():
            text = f"{_expression(node.expr1)} if {_expression(node.test)}"
            return f"({text} else {_expression(node.expr2)})" if node.expr2 else f"({text})"
        case nodes.List():
            return "[" + ", ".join(_expression(item) for item in node.items) + "]"
        case nodes.Tuple():
            return "(" + "".join(_expression(item) + ", " for item in node.items) + ")"
        case nodes.Dict():
            pairs = [f"{_expression(p.key)}: {_expression(p.value)}" for p in node.items]
            return "{" + ", ".join(pairs) + "}"
    raise ValueError(f"line {node.lineno}: {type(node).__name__} is not for chat templates")
