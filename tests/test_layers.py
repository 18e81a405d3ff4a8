"""The house rules that a reader can lean on: floors, budgets, and nothing left lying about."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folder or file of fastrl -> floor. A module imports from lower floors or from its own folder.
FLOORS = {
    "types": 0,
    "legacy": 0,
    "ops": 1,
    "data": 2,
    "models": 2,
    "rewards": 2,
    "rollout": 3,
    "train": 4,
    "algos": 5,
    "compat": 6,
    "cli": 7,
    "__main__": 8,
}
FILE_LINES = 400
COLUMNS = 100
FUNCTION_LINES = 60
TRAINER_INIT_LINES = 40

PACKAGE = sorted((ROOT / "fastrl").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").glob("*.py"))
NATIVE = sorted(
    p for p in (ROOT / "csrc").rglob("*.*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def home_of(module: str) -> str:
    """fastrl.ops.gae -> ops; fastrl -> '' (the package itself). Kernels are ops' own backends."""
    home = module.split(".")[1] if "." in module else ""
    return "ops" if home == "kernels" else home


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":
        parts = ("fastrl", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, module) of each import of fastrl, those under TYPE_CHECKING and in functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "fastrl":
                found += [(node.lineno, f"fastrl.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module or ""))
    return [(line, name) for line, name in found if name.split(".")[0] == "fastrl"]


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_imports_go_down(path):
    home = home_of(module_of(path))
    if home == "":
        return  # fastrl/__init__.py names everything, at first use
    assert home in FLOORS, f"{name_of(path)} is on no floor; add its folder to FLOORS"
    for line, module in imported(parsed(path)):
        target = home_of(module)
        if target in ("", "__version__"):
            assert FLOORS[home] >= 6, f"{name_of(path)}:{line} imports the package itself"
            continue
        assert target in FLOORS, f"{name_of(path)}:{line} imports {module}, which is on no floor"
        assert target == home or FLOORS[target] < FLOORS[home], (
            f"{name_of(path)}:{line} is on floor {FLOORS[home]} ({home}) and imports {module} "
            f"from floor {FLOORS[target]}"
        )


def test_legacy_imports_nothing_of_fastrl():
    for path in (ROOT / "fastrl" / "legacy").rglob("*.py"):
        others = [m for _, m in imported(parsed(path)) if home_of(m) != "legacy"]
        assert others == [], name_of(path)


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS, *NATIVE], ids=name_of)
def test_file_budget(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= FILE_LINES, f"{name_of(path)} has {len(lines)} lines"
    for number, line in enumerate(lines, 1):
        assert len(line) <= COLUMNS, f"{name_of(path)}:{number} has {len(line)} columns"


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_function_budget_and_one_statement_a_line(path):
    tree = parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Trainer"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                    length = member.end_lineno - member.lineno + 1
                    assert length <= TRAINER_INIT_LINES, f"{node.name}.__init__ has {length} lines"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{name_of(path)}: {node.name} has {length} lines"
        for body in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if isinstance(body, list):
                starts = [statement.lineno for statement in body]
                assert len(starts) == len(set(starts)), f"{name_of(path)}:{starts} share a line"


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_public_functions_are_typed_and_explained(path):
    tree = parsed(path)
    assert ast.get_docstring(tree) or path.stat().st_size == 0, f"{name_of(path)} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            where = f"{name_of(path)}: {node.name}"
            assert ast.get_docstring(node), f"{where} has no docstring"
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                bare = [argument.arg for argument in arguments if argument.annotation is None]
                assert bare == [], f"{where} has arguments without a type: {bare}"
                assert node.returns is not None, f"{where} has no return type"


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS, *NATIVE], ids=name_of)
def test_nothing_is_left_lying_about(path):
    assert path.stem != "utils", f"{name_of(path)}: a helper lives beside the noun it serves"
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text), name_of(path)
    if path.suffix == ".py" and text.strip():
        tree = parsed(path)
        futures = [n.module for n in tree.body if isinstance(n, ast.ImportFrom)]
        defines = any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in tree.body)
        assert "__future__" in futures or not defines or path in KERNELS, (
            f"{name_of(path)}: from __future__ import annotations"
        )


def test_csrc_knows_no_torch():
    for path in NATIVE:
        included = re.findall(r'#include\s*[<"]([^>"]+)', path.read_text(encoding="utf-8"))
        assert not [name for name in included if re.match(r"(torch|ATen|c10)/", name)], name_of(
            path
        )


def test_folder_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    for path in [*PACKAGE, *KERNELS]:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                assert "kernels" not in [alias.name for alias in node.names], name_of(path)
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "kernels", name_of(path)
