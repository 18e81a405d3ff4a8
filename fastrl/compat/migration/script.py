"""One script on its way from TRL's spellings to today's."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

from fastrl.compat.migration import imports, loading, trainers
from fastrl.compat.migration.names import Names, constructions, of_trl
from fastrl.compat.migration.plan import Plan
from fastrl.compat.migration.text import Text
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS

ARGUMENTS = ("transformers.TrainingArguments", "transformers.Seq2SeqTrainingArguments")
_TRAINERS = ("transformers.Trainer", "transformers.Seq2SeqTrainer")


@dataclass(frozen=True)
class Migrated:
    """A script rewritten.

    Attributes:
        source: the new source.
        notes: (line in the old source, what could not be rewritten or is to be known).
    """

    source: str
    notes: list[tuple[int, str]]


class Script:
    """A source, what its names stand for, and the plans for its calls."""

    def __init__(self, source: str) -> None:
        self.text = Text(source)
        self.names = Names(self.text.tree)
        self.needed: dict[tuple[str, str], None] = {}  # (module, name) to import
        self.replaced: set[ast.Name] = set()  # names no longer used at these places
        self._plans: dict[ast.Call, Plan] = {}

    def plan(self, call: ast.Call) -> Plan:
        """The one plan for a call."""
        return self._plans.setdefault(call, Plan(self.text, call))

    def reference(self, beside: ast.expr, module: str, name: str) -> str:
        """How to write `module.name` where `beside` names another thing of the module.

        It is imported if it has to be.
        """
        if isinstance(beside, ast.Attribute):
            base = self.text.of(beside.value)
            if base.split(".")[0] == "trl":
                return f"{module}.{name}"
            if self.names.path(beside.value) in ("trl", module):
                return f"{base}.{name}"
        for local, path in self.names.paths.items():
            if path in (f"trl.{name}", f"{module}.{name}"):
                return local
        self.needed[module, name] = None
        return name

    def write(self) -> None:
        """Make the edits of all plans."""
        for plan in self._plans.values():
            plan.write()


def _rewrite_call(script: Script, call: ast.Call, path: str) -> None:
    plan = script.plan(call)
    owner = path.rpartition(".")[2]
    made = of_trl(path)
    if path in ARGUMENTS:
        plan.translate(owner, TRAINING_ARGUMENTS, fields_of(path))
    elif path in _TRAINERS and "tokenizer" in plan.given:
        plan.rename("tokenizer", "processing_class")
    elif isinstance(made, type):
        if hasattr(made, "_legacy_fields"):
            known = {f.name for f in dataclasses.fields(made)}
            plan.translate(owner, made._legacy_fields, known)
        trainers.rewrite(script, call, made)
    elif inspect.isfunction(made):
        _rename_tokenizer(plan, made)
    loading.rewrite(script, call, path)


def fields_of(path: str) -> set[str]:
    """Names of the fields of a class of transformers' arguments."""
    import transformers

    cls: Any = getattr(transformers, path.rpartition(".")[2])
    return {f.name for f in dataclasses.fields(cls)}


def _rename_tokenizer(plan: Plan, function: Any) -> None:
    """Functions on chat templates called their tokenizer so too."""
    parameters = inspect.signature(function).parameters
    if "tokenizer" in plan.given and "processing_class" in parameters:
        plan.rename("tokenizer", "processing_class")


def migrate(source: str) -> Migrated:
    """Rewrite a script for TRL 0.7 to 1.16 into fastrl's spelling of today.

    Imports, module paths, arguments that were renamed or became fields of a config, fields that
    were renamed. What a call means stays: where it relied on defaults of its time, they are written
    out. Comments and layout stay. What cannot be told from the file alone is left as it is, which
    fastrl understands, and noted.

    Raises:
        SyntaxError: the source is no Python.
    """
    newline = "\r\n" if "\r\n" in source else "\n"
    script = Script(source.replace("\r\n", "\n"))
    for call, path in constructions(script.text.tree, script.names):
        _rewrite_call(script, call, path)
    script.write()
    imports.rewrite(script)
    new = script.text.edited()
    ast.parse(new)
    return Migrated(new.replace("\n", newline), sorted(script.text.notes))
