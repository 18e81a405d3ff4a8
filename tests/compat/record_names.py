"""Record the public names of TRL's releases: python record_names.py FOLDER... > names.json

Each FOLDER is an unpacked release (it holds `trl/` and `trl-<version>.dist-info/`, as site-packages
does). Only the syntax is read; nothing of TRL is imported.

The record: `releases`, in order; `top`, release -> names that `import trl` offers; `packages`,
package -> release -> names that its `__init__` offers; `modules`, module -> name -> what it is
("function(a, b)", "class(a, *rest)", "value") -> the places in `releases` where it is that. A class
that inherits its constructor is "class"; a dataclass shows its fields. Modules that are TRL's own
command line, server and algorithms of no other release are left out.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from pathlib import Path

SKIPPED = ("cli", "commands.scripts", "kernels", "scripts.chat", "scripts.vllm_serve", "skills")
EXPERIMENTAL = (
    "bema_for_ref_model",
    "judges",
    "kto",
    "merge_model_callback",
    "online_dpo",
    "ppo",
    "utils",
    "winrate_callback",
)


def is_recorded(module: str) -> bool:
    parts = module.split(".")
    if any(part.startswith("_") for part in parts) or module.startswith(SKIPPED):
        return False
    return parts[0] != "experimental" or len(parts) == 1 or parts[1] in EXPERIMENTAL


def version_of(folder: Path) -> str:
    (metadata,) = folder.glob("trl-*.dist-info")
    return metadata.name.removeprefix("trl-").removesuffix(".dist-info")


def module_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arguments(function: ast.FunctionDef) -> str:
    args = function.args
    names = [a.arg for a in [*args.posonlyargs, *args.args] if a.arg not in ("self", "cls")]
    names += [f"*{args.vararg.arg}"] if args.vararg else []
    names += [a.arg for a in args.kwonlyargs]
    names += [f"**{args.kwarg.arg}"] if args.kwarg else []
    return ", ".join(names)


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def fields(node: ast.ClassDef) -> str:
    found = [
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and "init=False" not in ast.unparse(statement)
        and "ClassVar" not in ast.unparse(statement.annotation)
    ]
    return ", ".join(n for n in found if not n.startswith("_"))


def described(node: ast.stmt) -> dict[str, str]:
    """Public name -> what it is, of one statement at the top of a module."""
    if isinstance(node, ast.FunctionDef):
        found = {node.name: f"function({arguments(node)})"}
    elif isinstance(node, ast.ClassDef):
        init = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if init:
            shown = f"class({arguments(init[0])})"
        else:
            shown = f"class({fields(node)})" if is_dataclass(node) else "class"
        found = {node.name: shown}
    elif isinstance(node, ast.Assign):
        found = {t.id: "value" for t in node.targets if isinstance(t, ast.Name) and t.id.isupper()}
    else:
        found = {}
    return {name: shown for name, shown in found.items() if not name.startswith("_")}


def offered(tree: ast.Module) -> list[str]:
    """The names a package's `__init__` offers: of its import structure, or of its imports."""
    lazy = [
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_import_structure"
    ]
    if lazy:
        names = {name for listed in lazy[0].values() for name in listed}
        for n in ast.walk(tree):  # `_import_structure["…"].extend([…])`, for optional packages
            if isinstance(n, ast.Call) and ast.unparse(n.func).startswith("_import_structure["):
                names |= set(ast.literal_eval(n.args[0]))
        return sorted(names)
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    return sorted({a.asname or a.name for n in imports for a in n.names} - {"_LazyModule"})


def record(folders: list[Path]) -> dict:
    top = {}
    packages: dict[str, dict[str, list[str]]] = defaultdict(dict)
    modules: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, folder in enumerate(folders):
        version = version_of(folder)
        for path in sorted((folder / "trl").rglob("*.py")):
            module = module_of(path, folder / "trl")
            if not is_recorded(module):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if path.name == "__init__.py":
                names = offered(tree)
                if module:
                    packages[module][version] = names
                else:
                    top[version] = names
            for node in tree.body:
                for name, shown in described(node).items():
                    modules[module][name][shown].append(number)
    releases = [version_of(folder) for folder in folders]
    return {"releases": releases, "top": top, "packages": packages, "modules": modules}


def written(found: dict) -> str:
    """JSON with one module, or one list of names, on a line."""
    parts = [f'"releases": {json.dumps(found["releases"])}']
    for part in ("top", "packages", "modules"):
        rows = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in found[part].items() if row]
        parts.append(f'"{part}": {{\n' + ",\n".join(rows) + "\n}")
    return "{" + ",\n".join(parts) + "}\n"


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]]
    sys.stdout.write(written(record(folders)))
