"""Calls of trainers: old orders, old names, and arguments that are fields of a config today."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastrl.compat.migration.names import has_more, of_trl
from fastrl.compat.migration.plan import UNKNOWN, literal, spelled
from fastrl.legacy.binding import LegacyInit, misfit
from fastrl.legacy.changes import Moved, Refused, Renamed

if TYPE_CHECKING:
    from fastrl.compat.migration.script import Script

_PLAIN = "transformers.TrainingArguments"


def rewrite(script: Script, call: ast.Call, cls: type) -> None:
    """Rewrite a call of a trainer that states how it was called before; others are left alone."""
    stated = getattr(_in_form(cls, script, call), "_legacy_init", None)
    if stated is not None:
        _Trainer(script, call, _in_form(cls, script, call), *stated).rewrite()


def _in_form(cls: type, script: Script, call: ast.Call) -> type:
    """PPOTrainer in the form of `train()`, where the arguments are of that form."""
    from fastrl.algos.ppo import PPOTrainer
    from fastrl.algos.ppo_train import PPOv2Trainer

    if cls is not PPOTrainer:
        return cls
    table: LegacyInit = PPOv2Trainer._legacy_init[0]  # type: ignore[attr-defined]
    by_train = inspect.signature(PPOv2Trainer).parameters.keys() | table.changes.keys()
    by_step = inspect.signature(PPOTrainer).parameters.keys()
    return PPOv2Trainer if script.plan(call).given.keys() & (by_train - by_step) else cls


class _Trainer:
    """One call of a trainer."""

    def __init__(
        self, script: Script, call: ast.Call, cls: type, table: LegacyInit, config: type
    ) -> None:
        self.script = script
        self.call = call
        self.name = cls.__name__
        self.table = table
        self.config = config
        self.plan = script.plan(call)
        constructor: Any = cls.__init__  # type: ignore[misc]
        _, *parameters = inspect.signature(constructor).parameters.values()
        self.order = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    def rewrite(self) -> None:
        """Plan the changes, or note why the call stays as it is."""
        named = {name: keyword.value for name, keyword in self.plan.given.items()}
        old = [name for name in named if self._is_old(name)]
        if has_more(self.call):
            if old:
                self._leave(old, "what * and ** stand for is not seen here")
            return
        order = self._order()
        if order is None:
            if old:
                self._leave(["positional arguments"], "pass what follows the model by name")
            return
        placed = dict(zip(order, self.call.args, strict=False))
        # Those whose place has changed go by name.
        by_place = {
            name: node
            for n, (name, node) in enumerate(placed.items(), 1)
            if [self._today(name) for name in order[:n]] != self.order[:n]
        }
        values = named | placed
        old += [name for name in by_place if self._is_old(name)]
        if not old and not by_place:
            return
        told = [name for name in old if not self._says_nothing(name, values[name])]
        refused = [name for name in told if isinstance(self.table.changes[name], Refused)]
        if refused:
            self._leave(refused, self.table.changes[refused[0]].instead)  # type: ignore[union-attr]
        elif not told and not by_place:
            self._respell(by_place)
        elif self._into_config(values, told):
            self._respell(by_place)
            if self.table.rows:
                self.script.text.note(self.call, f"{self.name}(...): {self.table.rows}")

    def _leave(self, old: Sequence[str], why: str) -> None:
        spelled = ", ".join(name if " " in name else f"{name}=" for name in old)
        self.script.text.note(self.call, f"{self.name}(...) stays as it is ({spelled}): {why}")

    def _says_nothing(self, name: str, node: ast.expr) -> bool:
        value = literal(node)
        change = self.table.changes[name]
        return value is None or (isinstance(change, Refused) and change.allows(value))

    def _is_old(self, name: str) -> bool:
        return name not in self.order and name in self.table.changes

    def _today(self, name: str) -> str:
        change = self.table.changes.get(name)
        return change.new if isinstance(change, Renamed) else name

    def _order(self) -> Sequence[str] | None:
        """The order that the positional arguments are in: today's or the old one; None: unclear."""
        args = self.call.args
        if self.order[: len(args)] == [self._today(name) for name in self.table.order[: len(args)]]:
            return self.order
        seen = [_stand_in(self.script, node) for node in args]
        values = [None if value is _ANYTHING else value for value in seen]  # None fits every place
        fits_today = misfit(self.order, values) is None
        fits_before = misfit(self.table.order, values) is None
        if not fits_today:
            return self.table.order if fits_before else None
        places = zip(seen, self.order, self.table.order, strict=False)
        unclear = any(value is _ANYTHING for value, now, before in places if now != before)
        return None if unclear and fits_before else self.order

    def _respell(self, by_place: dict[str, ast.expr]) -> None:
        """Give every argument that is left its name of today."""
        for name, argument in by_place.items():
            change = self.table.changes.get(name)
            if name in self.order:
                self.plan.by_name(argument, name)
            elif isinstance(change, Renamed):
                self.plan.by_name(argument, change.new)
            else:
                self.plan.remove_positional(argument)
        moved = [n for n in self.plan.given if isinstance(self.table.changes.get(n), Moved)]
        for name in moved:
            if name not in self.order:
                self.plan.remove(name)
        rest = {name: c for name, c in self.table.changes.items() if not isinstance(c, Moved)}
        self.plan.translate(self.name, rest, set(self.order))

    # --- the config ------------------------------------------------------------------------------

    def _into_config(self, values: dict[str, ast.expr], told: Sequence[str]) -> bool:
        """Move what became fields into the config; False if that cannot be done (it is noted)."""
        old_args = [n for n, c in self.table.changes.items() if c == Renamed("args")]
        given = next((values[n] for n in ("args", *old_args) if n in values), None)
        kind, call = self._find_config(given)
        moved = {n: values[n] for n in told if isinstance(self.table.changes[n], Moved)}
        if kind == "unknown":
            wanted = f"TrainingArguments or {self.config.__name__}"
            self._leave(told, f"this file does not show args= being made by {wanted}")
            return False
        late = [n for n, node in moved.items() if not self._known_before(node, call)]
        if late or (moved and kind == "own" and call is None):
            name = self.config.__name__
            self._leave(late or list(moved), f"make them fields of the {name} where it is made")
            return False
        fields = {self._field(n): self._value(n, node) for n, node in moved.items()}
        if kind == "absent":
            self.plan.put("args", self._made(self._of_its_time(None) | fields), given)
        elif call is not None:
            self._extend(call, kind, fields)
        return True

    def _find_config(self, given: ast.expr | None) -> tuple[str, ast.Call | None]:
        """("absent", None); ("plain" or "own", the call that makes it, if there is one); unknown.

        Plain is `transformers.TrainingArguments`, own the trainer's config.
        """
        if given is None or (isinstance(given, ast.Constant) and given.value is None):
            return "absent", None
        names = self.script.names
        path = names.made_by(given)
        value = names.value(given)
        call = value if isinstance(value, ast.Call) else None
        if call is not None and (has_more(call) or not self._only_use(given)):
            call = None
        if path == _PLAIN and call is not None:
            return "plain", call
        made = of_trl(path)
        if isinstance(made, type) and issubclass(made, self._accepted()):
            return "own", call
        return "unknown", None

    def _accepted(self) -> tuple[type, ...]:
        from fastrl.algos.ppo_config import PPOConfig
        from fastrl.algos.ppo_train_config import PPOTrainConfig

        return (self.config, PPOConfig) if self.config is PPOTrainConfig else (self.config,)

    def _only_use(self, given: ast.expr) -> bool:
        """Whether no second call is given the same variable."""
        if not isinstance(given, ast.Name):
            return True
        passed = 0
        for node in ast.walk(self.script.text.tree):
            if isinstance(node, ast.Call):
                inputs = [*node.args, *(keyword.value for keyword in node.keywords)]
                passed += sum(isinstance(i, ast.Name) and i.id == given.id for i in inputs)
        return passed == 1

    def _known_before(self, node: ast.expr, config: ast.Call | None) -> bool:
        """Whether an expression means the same at the place where the config is made."""
        if config is None or literal(node) is not UNKNOWN:
            return True
        inside = self.script.text
        if inside.start(self.call) <= inside.start(config) <= inside.end(self.call):
            return True
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                value = self.script.names.value(part)
                if self.script.names.path(part) is None and (
                    value is None or _line(value) >= config.lineno
                ):
                    return False
        return True

    def _of_its_time(self, call: ast.Call | None) -> dict[str, str]:
        """Defaults of `TrainingArguments` and of the trainer then, where today's differ."""
        differing = differing_defaults(self.config)
        given = set()
        if call is not None:
            fields = [f.name for f in dataclasses.fields(self.config)]
            given = {*fields[: len(call.args)], *self.script.plan(call).given}
        kept = {name: value for name, value in differing.items() if name not in given}
        return {name: spelled(value) for name, value in {**kept, **self.table.defaults}.items()}

    def _field(self, name: str) -> str:
        change = self.table.changes[name]
        assert isinstance(change, Moved)
        return change.field

    def _value(self, name: str, node: ast.expr) -> str:
        change = self.table.changes[name]
        assert isinstance(change, Moved)
        value = literal(node)
        known = isinstance(value, str) and value in change.values
        return spelled(change.values[value]) if known else self.script.text.moved(node)

    def _config_name(self) -> str:
        return self.script.reference(self.call.func, "fastrl", self.config.__name__)

    def _made(self, fields: dict[str, str]) -> str:
        given = ['"tmp_trainer"', *(f"{name}={value}" for name, value in fields.items())]
        margin = self.script.text.margin(self.call)
        lines = "".join(f"\n{margin}    {field}," for field in given)
        return f"{self._config_name()}({lines}\n{margin})"

    def _extend(self, call: ast.Call, kind: str, fields: dict[str, str]) -> None:
        plan = self.script.plan(call)
        if kind == "plain":
            plan.becomes(self._config_name())
            self.script.replaced.update(n for n in ast.walk(call.func) if isinstance(n, ast.Name))
            for name, value in self._of_its_time(call).items():
                plan.default(name, value)
        for name, value in fields.items():
            plan.put(name, value)


def _line(node: ast.expr) -> int:
    first = node.value if isinstance(node, ast.Subscript) and not hasattr(node, "lineno") else node
    return first.lineno


@functools.cache
def differing_defaults(config: type) -> dict[str, Any]:
    """Fields of `TrainingArguments` whose default the config changes -> what it was."""
    from transformers import TrainingArguments

    plain = TrainingArguments("tmp_trainer")
    before = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    return {
        f.name: getattr(plain, f.name)
        for f in dataclasses.fields(config)
        if f.name in before and f.default != before[f.name]
    }


# --- what a positional argument looks like --------------------------------------------------------


class _Config:
    per_device_train_batch_size = 1


class _Tokenizer:
    def __call__(self) -> None: ...

    def decode(self) -> None: ...


_ANYTHING = object()


def _stand_in(script: Script, node: ast.expr) -> Any:
    """A value of the kind that an expression has, as far as the file shows; else `_ANYTHING`."""
    value = literal(node)
    if value is not UNKNOWN:
        return value
    if isinstance(node, ast.Lambda):
        return print
    made = script.names.made_by(node)
    if made is None:
        return _ANYTHING
    owner, _, name = made.rpartition(".")
    if name == "from_pretrained":
        return _Tokenizer() if "Tokenizer" in owner or "Processor" in owner else object()
    if name.endswith(("Arguments", "Config")) and not name.endswith(("LoraConfig", "PeftConfig")):
        return _Config()
    if name == "load_dataset" or owner.endswith("Dataset"):
        return []
    return print if name.startswith("DataCollator") else _ANYTHING
