"""Calls of trainers as they were written since TRL 0.7, bound to today's constructors.

    @accepts_legacy(DPO, DPOConfig)
    class DPOTrainer(Trainer):
        def __init__(self, model, ref_model=None, args=None, ...): ...

`DPO` is the table of old spellings. The constructor keeps its own signature and sees only today's
arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import TrainingArguments

from fastrl.legacy import closest
from fastrl.legacy.changes import Renamed, Settled, Table, settle
from fastrl.legacy.generation import pinned

_Class = TypeVar("_Class", bound=type)


@dataclass(frozen=True)
class LegacyInit:
    """How a trainer's constructor was called before.

    Attributes:
        order: positional order of 0.7 and 0.11, the longer of the two where one extends the other.
        changes: old argument -> what became of it.
        defaults: fields whose defaults differed; they hold where a legacy call gives no config of
            the trainer's own class.
        first: the release the trainer appeared in, "0.7" or "0.11".
        rows: what a legacy call makes of the dataset that one of today does not.
        once: fields that the config and an argument could not both set (others: the argument won).
    """

    order: Sequence[str]
    changes: Table
    defaults: Mapping[str, Any] = field(default_factory=dict)
    first: str = "0.7"
    rows: str = ""
    once: Sequence[str] = ()


def _is_config(value: Any) -> bool:
    return hasattr(value, "per_device_train_batch_size")


def _is_tokenizer(value: Any) -> bool:
    return hasattr(value, "decode")


def _is_function(value: Any) -> bool:
    return callable(value) and not _is_tokenizer(value)


def _is_rows(value: Any) -> bool:
    return (hasattr(value, "__getitem__") or hasattr(value, "__iter__")) and not isinstance(
        value, str | tuple
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# Argument -> what its value looks like. Arguments not named here may be anything, None always fits.
_LOOKS: dict[str, Callable[[Any], bool]] = {
    "args": _is_config,
    "beta": _is_number,
    "callbacks": lambda value: isinstance(value, list),
    "compute_loss_func": _is_function,
    "compute_metrics": _is_function,
    "config": _is_config,
    "data_collator": _is_function,
    "dataset_text_field": _is_text,
    "eval_dataset": _is_rows,
    "label_smoothing": _is_number,
    "loss_type": _is_text,
    "max_length": _is_number,
    "max_seq_length": _is_number,
    "model": lambda value: not _is_config(value),
    "model_init": _is_function,
    "optimizer_cls_and_kwargs": lambda value: isinstance(value, tuple),
    "optimizers": lambda value: isinstance(value, tuple),
    "peft_config": lambda value: hasattr(value, "peft_type"),
    "preprocess_logits_for_metrics": _is_function,
    "processing_class": _is_tokenizer,
    "quantization_config": lambda value: hasattr(value, "quant_method"),
    "teacher_model": lambda value: not _is_config(value),
    "tokenizer": _is_tokenizer,
    "train_dataset": _is_rows,
}


def misfit(order: Sequence[str], values: Sequence[Any]) -> str | None:
    """Why these positional values are not in this order, or None if they may be."""
    if len(values) > len(order):
        return f"takes {len(order)} positional arguments, got {len(values)}"
    for place, (name, value) in enumerate(zip(order, values, strict=False), 1):
        looks = _LOOKS.get(name)
        if looks is not None and value is not None and not looks(value):
            return f"argument {place} ({name}) cannot be {value!r:.80} ({type(value).__name__})"
    return None


class _Call:
    """One call of a decorated constructor on its way to today's arguments."""

    def __init__(self, owner: str, table: LegacyInit, config: Any, signature: inspect.Signature):
        self.owner = owner
        self.table = table
        self.config = config
        parameters = [p for p in signature.parameters.values() if p.name != "self"]
        self.takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    def by_name(self, values: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[dict, bool]:
        """(all arguments by name, whether the positional ones came in the old order)."""
        order, old = self._order(values)
        given = dict(zip(order, values, strict=False))
        twice = sorted(given.keys() & keywords.keys())
        if twice:
            raise TypeError(f"{self.owner} got {twice[0]}= twice, by position and by name")
        return given | dict(keywords), old

    def _order(self, values: Sequence[Any]) -> tuple[Sequence[str], bool]:
        """(the order these values are in, whether it is the old one): today's if both fit."""
        problem = misfit(self.names, values)
        fits_old = misfit(self.table.order, values) is None
        if problem is None and not (fits_old and self.pinned() and self._parts(len(values))):
            return self.names, False
        if not fits_old:
            raise TypeError(f"{self.owner}: {problem}")
        return self.table.order, True

    def _parts(self, count: int) -> bool:
        """Whether the two orders differ within so many arguments, renamings aside."""
        changes = (self.table.changes.get(name) for name in self.table.order[:count])
        renamed = [change.new if isinstance(change, Renamed) else None for change in changes]
        today = [new or old for new, old in zip(renamed, self.table.order, strict=False)]
        return today != list(self.names[:count])

    def pinned(self) -> str | None:
        """The generation before today's that is pinned, if this trainer had other defaults then."""
        generation = pinned()
        return generation if generation in getattr(self.config, "_was_defaults", {}) else None

    def check_known(self, names: Sequence[str]) -> None:
        """Raise TypeError for the first name that no release knew."""
        fields = {f.name for f in dataclasses.fields(self.config)}
        for name in names:
            if name in fields:
                cls = self.config.__name__
                raise TypeError(
                    f"{self.owner} has no argument {name!r}; it is a field: args={cls}({name}=...)"
                )
            hint = closest(name, [*self.names, *self.table.changes])
            raise TypeError(f"{self.owner} has no argument {name!r}{hint}")

    def translate(self, given: dict[str, Any], old_order: bool) -> tuple[dict[str, Any], str]:
        """(today's arguments, the generation the call is written for); warns of old spellings."""
        known = {name: value for name, value in given.items() if name in self.names}
        rest = {name: value for name, value in given.items() if name not in self.names}
        legacy = {name: value for name, value in rest.items() if name in self.table.changes}
        more = {name: value for name, value in rest.items() if name not in legacy}
        if not self.takes_more:
            self.check_known(list(more))
        settled = settle(self.owner, self.config.__name__, self.table.changes, legacy)
        for new, value in settled.arguments.items():
            if known.get(new) is not None:
                raise TypeError(f"{self.owner} got {new}= both by that name and by an older one")
            known[new] = value
        own = isinstance(known.get("args"), self.config)
        if not settled.told and not old_order:
            generation = self.pinned()
            if generation is None:
                return known | more, "1"
            if not own:
                known["args"] = self._config(known.get("args"), settled)
            return known | more, "0.11" if own else generation
        known["args"] = self._config(known.get("args"), settled)
        if old_order:
            settled.told.insert(0, "pass what follows the model by name (its order has changed)")
        told = "; ".join(settled.told)
        warnings.warn(f"{self.owner}, old spellings: {told}", FutureWarning, stacklevel=3)
        return known | more, "0.11" if own else self.table.first

    def _config(self, args: Any, settled: Settled) -> Any:
        """A copy of the config with the moved arguments in it; one of that time if none is given.

        Raises:
            TypeError: args is no configuration, or another trainer's.
            ValueError: a field that may be set once is set differently in args.
        """
        fields = settled.fields
        if isinstance(args, self.config):
            self._check_set_once(args, fields)
        else:
            if args is None:
                args = TrainingArguments("tmp_trainer")
            args = self.config.of(args, args.output_dir) if _is_config(args) else args
            if not isinstance(args, self.config):
                wanted = f"{self.config.__name__} or transformers.TrainingArguments"
                raise TypeError(f"{self.owner}: args must be {wanted}, got {type(args).__name__}")
            fields = dict(self.table.defaults) | fields
        return dataclasses.replace(args, **fields) if fields else args

    def _check_set_once(self, args: Any, fields: Mapping[str, Any]) -> None:
        defaults = {f.name: f.default for f in dataclasses.fields(args)}
        for name in self.table.once:
            held = getattr(args, name)
            if name in fields and held not in (None, defaults[name], fields[name]):
                raise ValueError(
                    f"{self.owner} got {name}={fields[name]!r} and args.{name}={held!r}: "
                    "give it in args only"
                )


def accepts_legacy(table: LegacyInit, config: type) -> Callable[[_Class], _Class]:
    """Class decorator: the constructor also takes the calls of TRL 0.7 to 0.11.

    Positional arguments are read in today's order if their types fit it and in the old one if not;
    `set_api` pinning an older generation has the old one where both fit.
    `tokenizer=` is `processing_class=`; arguments that became fields go into a copy of `args` and
    win over it; each legacy call warns once (FutureWarning) and names every new spelling. Calls in
    today's spelling pass through untouched.

    The instance's `_api_generation` ("0.7", "0.11" or "1") says what the call was written for,
    before the constructor runs: "0.7" is a legacy call whose `args` is none of the trainer's own
    config class. A call that fits all of them is of the generation that is pinned. `tokenizer`
    reads and sets `processing_class`.

    Args:
        table: the old spellings.
        config: the trainer's config class, a dataclass with `of(args, output_dir)`, which makes one
            from plain `TrainingArguments`.

    Raises (when called):
        TypeError: an unknown argument (with the closest known one), one given twice or under two
            names, one that can no longer be honoured (with what to write instead).
    """

    def decorate(cls: _Class) -> _Class:
        plain_init = cls.__init__
        call = _Call(cls.__name__, table, config, inspect.signature(plain_init))

        @functools.wraps(plain_init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            given, old_order = call.by_name(args, kwargs)
            arguments, generation = call.translate(given, old_order)
            if "_api_generation" not in vars(self):  # a subclass's own table has seen the call
                self._api_generation = generation
            plain_init(self, **arguments)

        cls.__init__ = __init__
        cls._legacy_init = (table, config)  # for those who rewrite calls
        if not hasattr(cls, "tokenizer"):
            cls.tokenizer = property(_processing_class, _set_processing_class)
        return cls

    return decorate


def _processing_class(trainer: Any) -> Any:
    """The tokenizer or processor, under its name of before."""
    return trainer.processing_class


def _set_processing_class(trainer: Any, value: Any) -> None:
    trainer.processing_class = value
