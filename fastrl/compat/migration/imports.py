"""Imports: `trl` is `fastrl`; names from where they are today; names that rewritten calls need."""

from __future__ import annotations

import ast
import re
from collections.abc import Container
from typing import TYPE_CHECKING, TypeGuard

from fastrl.compat.as_trl import RELEASES
from fastrl.compat.finder import resolve
from fastrl.compat.modules import MODULES
from fastrl.compat.transformers_names import GONE, MOVED

if TYPE_CHECKING:
    from fastrl.compat.migration.script import Script

_PROBES = ("version", "find_spec", "import_module", "distribution", "files", "require_version")
_VERSION = "fastrl counts versions of its own"


def rewrite(script: Script) -> None:
    """Rewrite every import of the script and what was reached through `import trl`."""
    for node in ast.walk(script.text.tree):
        if isinstance(node, ast.Import):
            _plain(script, node)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            _from(script, node)
        elif isinstance(node, ast.Attribute):
            _attribute(script, node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            _name(script, node)
        elif isinstance(node, ast.Call):
            _probe(script, node)
    _rewrite_names(script)


def _plain(script: Script, node: ast.Import) -> None:
    """`import trl`, `import trl.core as core`, `import transformers.deepspeed`."""
    for alias in node.names:
        start = script.text.start(alias)
        if alias.name.split(".")[0] == "trl":
            script.text.replace(start, start + 3, "fastrl")
        elif alias.name in MOVED:
            script.text.replace(start, start + len(alias.name), MOVED[alias.name])


def _from(script: Script, node: ast.ImportFrom) -> None:
    assert node.module is not None
    root, _, below = node.module.partition(".")
    if root == "trl":
        _module(script, node, _home(node, below))
        for alias in node.names:
            _check(script, node, below, alias)
    elif node.module in MOVED:
        _module(script, node, MOVED[node.module])
    for alias in node.names:
        if alias.name in GONE.get(node.module, {}):
            new = _successor(script, node.module, alias.name, alias)
            if new is not None:
                start = script.text.start(alias)
                script.text.replace(start, start + len(alias.name), new)


def _home(node: ast.ImportFrom, below: str) -> str:
    """`fastrl` if all the names are at the top level and mean the same there."""
    here, top = MODULES.get(below, {}), MODULES[""]
    if all(a.name in here and here[a.name] == top.get(a.name) for a in node.names):
        return "fastrl"
    return f"fastrl.{below}" if below else "fastrl"


def _module(script: Script, node: ast.ImportFrom, new: str) -> None:
    start = script.text.start(node)
    found = re.compile(rb"from\s+([\w.]+)").match(script.text.raw, start)
    assert found is not None
    script.text.replace(*found.span(1), new)


def _check(script: Script, node: ast.ImportFrom, below: str, alias: ast.alias) -> None:
    """Note a name that fastrl does not have."""
    if alias.name == "*":
        return
    if alias.name == "__version__":
        script.text.note(node, _VERSION)
        return
    try:
        resolve("fastrl", below, alias.name)
    except (ImportError, AttributeError) as error:
        script.text.note(node, str(error))


def _successor(script: Script, module: str, name: str, node: ast.expr | ast.alias) -> str | None:
    """The name of today in the same module; None, and noted, if it is none of the same meaning."""
    where, instead = GONE[module][name]
    path, _, new = where.partition(":")
    if path.startswith("fastrl."):
        script.text.note(node, f"{module}.{name} is gone: {instead}")
        return None
    return new


def _attribute(script: Script, node: ast.Attribute) -> None:
    path = script.names.path(node) or ""
    module, _, name = path.rpartition(".")
    if path == "trl.__version__":
        _state_version(script, node)
    if path in MOVED:
        script.text.replace(script.text.start(node), script.text.end(node), MOVED[path])
    if name in GONE.get(module, {}):
        new = _successor(script, module, name, node)
        if new is not None:
            end = script.text.end(node)
            script.text.replace(end - len(name), end, new)


def _name(script: Script, node: ast.Name) -> None:
    """`trl` itself, and imported names whose successor is called otherwise."""
    path = script.names.path(node) or ""
    module, _, name = path.rpartition(".")
    new = None
    if node in script.replaced:
        return
    if path == "trl" and node.id == "trl":
        new = "fastrl"
    elif node.id == name and name in GONE.get(module, {}):
        new = _successor(script, module, name, node)
    if new is not None:
        script.text.replace(script.text.start(node), script.text.end(node), new)


def _state_version(script: Script, node: ast.expr) -> None:
    """The release of TRL whose spelling the script has now, as a literal."""
    script.text.replace(script.text.start(node), script.text.end(node), f'"{RELEASES["1"]}"')
    script.text.note(node, f"TRL's version stands for its latest release now: {_VERSION}")
    script.replaced.update(inner for inner in ast.walk(node) if isinstance(inner, ast.Name))


def _probe(script: Script, call: ast.Call) -> None:
    """`importlib.metadata.version("trl")` and its like ask for the package by a string."""
    func = call.func
    name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    given = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    if script.names.path(func) == "importlib.metadata.version" and given == "trl":
        _state_version(script, call)
    elif name in _PROBES and isinstance(given, str) and re.match(r"trl\b", given):
        script.text.note(call, f"{name}({given!r}) asks for TRL")


def _rewrite_names(script: Script) -> None:
    """Import what rewritten calls need; names whose every use was replaced are dropped."""
    unused = _unused(script)
    needed = _homes_of_needed(script, unused)
    dropped = {
        n: lines
        for n, names in unused.items()
        if len(names) == len(n.names) and n not in needed
        if (lines := script.text.fills_lines(n)) is not None
    }
    for statement in _alone_in_their_blocks(script, dropped):
        del dropped[statement]
    for statement, names in unused.items():
        left = [alias for alias in statement.names if alias not in names]
        if left:
            script.text.remove(statement.names, names)
            for name in needed.pop(statement, ()):
                script.text.prepend(left[0], name)
        elif statement in needed:
            first, last = statement.names[0], statement.names[-1]
            start, end = script.text.start(first), script.text.end(last)
            script.text.replace(start, end, ", ".join(needed.pop(statement)))
        elif statement in dropped:
            script.text.take_out(*dropped[statement])
    for home, wanted in needed.items():
        if isinstance(home, str):
            _import(script, home, wanted, dropped)
            continue
        for name in wanted:
            script.text.prepend(home.names[0], name)


def _unused(script: Script) -> dict[ast.ImportFrom, list[ast.alias]]:
    """The names that each import no longer needs to give."""
    used: dict[str, int] = {}
    for node in ast.walk(script.text.tree):
        if isinstance(node, ast.Name):
            used[node.id] = used.get(node.id, 0) + 1
    for node in script.replaced:
        used[node.id] -= 1
    gone = {node.id for node in script.replaced if used[node.id] == 0}
    imports = [n for n in ast.walk(script.text.tree) if isinstance(n, ast.ImportFrom)]
    found = {n: [a for a in n.names if (a.asname or a.name) in gone] for n in imports}
    return {statement: names for statement, names in found.items() if names}


def _homes_of_needed(
    script: Script, unused: dict[ast.ImportFrom, list[ast.alias]]
) -> dict[ast.ImportFrom | str, list[str]]:
    """The import that each needed name is added to, or its module -> the names.

    One that keeps a name of its own is preferred to one that is left with none.
    """
    homes: dict[ast.ImportFrom | str, list[str]] = {}
    for module, name in script.needed:
        roots = {module, "trl"} if module == "fastrl" else {module}
        takers = [n for n in script.text.tree.body if _takes(n, roots, script)]
        home = min(takers, key=lambda n: len(unused.get(n, ())) == len(n.names), default=module)
        homes.setdefault(home, []).append(name)
    return homes


def _alone_in_their_blocks(script: Script, dropped: Container[ast.stmt]) -> list[ast.ImportFrom]:
    """Those of the imports without which a block would be empty."""
    blocks = [
        block
        for node in ast.walk(script.text.tree)
        for field in ("body", "orelse", "finalbody")
        if isinstance(block := getattr(node, field, None), list) and node is not script.text.tree
    ]
    return [n for block in blocks if all(n in dropped for n in block) for n in block]


def _import(script: Script, module: str, names: list[str], dropped: Container[ast.stmt]) -> None:
    """Write an import of its own: below the last there is, else below the docstring."""
    line = f"from {module} import {', '.join(names)}"
    body = script.text.tree.body
    documented = ast.get_docstring(script.text.tree, clean=False) is not None
    above = body[:1] if documented else []
    above += [n for n in body if isinstance(n, ast.Import | ast.ImportFrom) and n not in dropped]
    if above:
        end = script.text.end(above[-1])
        script.text.replace(end, end, f"\n{line}")
    else:
        start = script.text.start_of_line(body[0])
        script.text.replace(start, start, f"{line}\n")


def _takes(node: ast.stmt, homes: set[str], script: Script) -> TypeGuard[ast.ImportFrom]:
    """Whether a name can be added to this import."""
    if not isinstance(node, ast.ImportFrom) or node.level or node.names[0].name == "*":
        return False
    if node.module in homes:
        return True
    root, _, below = (node.module or "").partition(".")
    return root in homes and root in ("trl", "fastrl") and _home(node, below) == "fastrl"
