"""What scripts of TRL 0.4 to 0.11 ask of transformers and release 5 no longer has.

`fastrl run` calls `patch_transformers()`; nothing else does. transformers itself is not imported by
it: each of its modules is patched when the script imports it, so that environment variables which
the script sets first still count. Every old spelling warns once (FutureWarning) and names the new
one.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fastrl.compat.transformers_names import GONE, MOVED
from fastrl.legacy import warn_once

# Read by `startup/sitecustomize.py`.
CHILDREN = "FASTRL_PATCH_TRANSFORMERS"
_ABSENT = object()
_changes: list[tuple[Any, str, Any]] = []  # (owner, attribute, what it was or _ABSENT)
_done: set[str] = set()  # modules patched


def _set(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, to be restored later."""
    _changes.append((owner, name, vars(owner).get(name, _ABSENT)))
    setattr(owner, name, value)


def _tell(message: str) -> None:
    warn_once(message, FutureWarning, stacklevel=4)


# --- what is patched, by module ------------------------------------------------------------------


def _training_arguments(module: ModuleType) -> None:
    """`TrainingArguments` and its kin take the fields removed since 4.30."""
    from fastrl.legacy.fields import accepts_legacy_fields
    from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS

    for name in ("TrainingArguments", "Seq2SeqTrainingArguments"):
        cls = vars(module).get(name)
        if cls is not None and cls.__module__ == module.__name__:
            for attribute in ("__init__", "_legacy_fields"):
                _changes.append((cls, attribute, vars(cls).get(attribute, _ABSENT)))
            accepts_legacy_fields(TRAINING_ARGUMENTS)(cls)


def _parser(module: ModuleType) -> None:
    """`HfArgumentParser` reads the old flags of those arguments."""
    cls = module.HfArgumentParser
    plain = cls.parse_args_into_dataclasses

    @functools.wraps(plain)
    def parse_args_into_dataclasses(
        self: Any, args: Any = None, *rest: Any, **keywords: Any
    ) -> Any:
        from fastrl.train import flags
        from fastrl.train.parser import TrlParser

        def parse(parser: Any, words: list[str]) -> Any:
            reader = object.__new__(TrlParser)
            vars(reader).update(vars(parser))
            words, told = reader._modern_words(words)
            if told:
                _tell(f"HfArgumentParser, old flags: {'; '.join(told)}")
            return plain(parser, words, *rest, **keywords)

        words = list(sys.argv[1:] if args is None else args)
        if isinstance(self, TrlParser):  # it has read them
            return plain(self, words, *rest, **keywords)
        return flags.fill(self, parse, words)

    _set(cls, "parse_args_into_dataclasses", parse_args_into_dataclasses)


def _old_token(keywords: dict[str, Any]) -> dict[str, Any]:
    if "use_auth_token" not in keywords:
        return keywords
    from fastrl.models.loading import respell

    return respell(keywords)


def _old_loading(keywords: dict[str, Any]) -> dict[str, Any]:
    if not keywords.keys() & {"use_auth_token", "torch_dtype", "load_in_8bit", "load_in_4bit"}:
        return keywords
    from fastrl.models.loading import respell

    return respell(keywords)


_NEW_SPELLINGS = {
    "use_auth_token": "token=",
    "torch_dtype": "dtype=",
    "load_in_8bit": "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "load_in_4bit": "quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
}


def _respelled(plain: Callable[..., Any], respell: Callable[[dict], dict]) -> Callable[..., Any]:
    """The function with old keywords of `from_pretrained` translated."""

    @functools.wraps(plain)
    def call(*args: Any, **keywords: Any) -> Any:
        today = respell(keywords)
        for name in keywords.keys() - today.keys():
            _tell(f"{plain.__name__}: {name}= is {_NEW_SPELLINGS[name]}")
        return plain(*args, **today)

    return call


def _loads(respell: Callable[[dict], dict], *classes: str) -> Callable[[ModuleType], None]:
    """A patch of the classmethod `from_pretrained` of these classes of a module."""

    def patch(module: ModuleType) -> None:
        for name in classes:
            _patch_loading(getattr(module, name), respell)

    return patch


def _patch_loading(cls: type, respell: Callable[[dict], dict]) -> None:
    plain = vars(cls)["from_pretrained"].__func__
    _set(cls, "from_pretrained", classmethod(_respelled(plain, respell)))


def _auto_models(module: ModuleType) -> None:
    """`from_pretrained` of the auto classes, each of which has a copy of its own."""
    for cls in list(vars(module).values()):
        own = isinstance(cls, type) and cls.__module__ == module.__name__
        if own and "from_pretrained" in vars(cls):
            _patch_loading(cls, _old_loading)


def _pipelines(module: ModuleType) -> None:
    """`pipeline(use_auth_token=)`, wherever it has been imported to."""
    plain = module.pipeline
    patched = _respelled(plain, _old_token)
    _set(module, "pipeline", patched)
    package = sys.modules["transformers"]
    if vars(package).get("pipeline") is plain:
        _set(package, "pipeline", patched)


def _text_classification(module: ModuleType) -> None:
    """`return_all_scores=`: every label's score, in the labels' order (`top_k=None` sorts them)."""
    cls = module.TextClassificationPipeline
    plain = cls._sanitize_parameters

    @functools.wraps(plain)
    def _sanitize_parameters(self: Any, return_all_scores: Any = None, **keywords: Any) -> Any:
        before, during, after = plain(self, **keywords)
        if return_all_scores is not None and "top_k" not in after:
            _tell("pipeline: return_all_scores= is top_k=, which sorts the labels by score")
            after["top_k"] = None if return_all_scores else 1
        return before, during, after

    _set(cls, "_sanitize_parameters", _sanitize_parameters)


def _trainer(module: ModuleType) -> None:
    """`Trainer(tokenizer=)`, and overrides written before methods gained a parameter."""
    cls = module.Trainer
    plain = cls.__init__

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        from fastrl.train.trainer import Trainer

        if "tokenizer" in keywords:
            if keywords.get("processing_class") is not None:
                raise TypeError("Trainer got processing_class= both by that name and as tokenizer=")
            keywords["processing_class"] = keywords.pop("tokenizer")
            _tell("Trainer(tokenizer=) is Trainer(processing_class=)")
        plain(self, *args, **keywords)
        Trainer._adapt_old_overrides(self)
        if not hasattr(type(self), "tokenizer"):
            self.tokenizer = self.processing_class

    __init__.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    _set(cls, "__init__", __init__)


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.training_args": _training_arguments,
    "transformers.training_args_seq2seq": _training_arguments,
    "transformers.hf_argparser": _parser,
    "transformers.modeling_utils": _loads(_old_loading, "PreTrainedModel"),
    "transformers.models.auto.modeling_auto": _auto_models,
    "transformers.models.auto.tokenization_auto": _loads(_old_token, "AutoTokenizer"),
    "transformers.models.auto.configuration_auto": _loads(_old_token, "AutoConfig"),
    "transformers.models.auto.processing_auto": _loads(_old_token, "AutoProcessor"),
    "transformers.tokenization_utils_base": _loads(_old_token, "PreTrainedTokenizerBase"),
    "transformers.configuration_utils": _loads(_old_token, "PreTrainedConfig"),
    "transformers.generation.configuration_utils": _loads(_old_token, "GenerationConfig"),
    "transformers.pipelines": _pipelines,
    "transformers.pipelines.text_classification": _text_classification,
    "transformers.trainer": _trainer,
}


# --- names and modules that are gone -------------------------------------------------------------


def _give_names(module: ModuleType) -> None:
    """Let the module answer for the names it no longer has, each made at first use."""
    names = GONE[module.__name__]
    kind = type(module)

    def __getattr__(self: ModuleType, name: str) -> Any:
        if name in names:
            where, instead = names[name]
            path, _, attribute = where.partition(":")
            _tell(f"{self.__name__}.{name} is {instead}")
            return getattr(importlib.import_module(path), attribute)
        inherited = getattr(kind, "__getattr__", None)
        if inherited is not None:
            return inherited(self, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    _changes.append((module, "__class__", kind))
    module.__class__ = type(kind.__name__, (kind,), {"__getattr__": __getattr__})


class _Elsewhere(Loader):
    """Gives a module under the name it had before."""

    def __init__(self, name: str, now: str) -> None:
        self.name = name
        self.now = now

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of today."""
        _tell(f"{self.name} is {self.now}")
        module = importlib.import_module(self.now)
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed under its own name; its spec is its own again."""
        module.__spec__ = self.own


# --- when modules are imported -------------------------------------------------------------------


def _patch(name: str) -> None:
    """Patch a module that has been imported, once."""
    if name in _done:
        return
    _done.add(name)
    module = sys.modules[name]
    if name in _PATCHES:
        _PATCHES[name](module)
    if name in GONE:
        _give_names(module)


class _Finder(MetaPathFinder):
    """Patches modules as they are imported; answers for those that are gone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification that the other finders have, its loader followed by the patch."""
        if fullname in MOVED:
            return ModuleSpec(fullname, _Elsewhere(fullname, MOVED[fullname]))
        if fullname not in _PATCHES and fullname not in GONE:
            return None
        others = (f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is None or spec.loader is None:
            return None
        plain = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            plain(module)
            _patch(fullname)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _installed() -> _Finder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)


def patch_transformers(children: bool = False) -> None:
    """Make transformers take what it took between 4.30 and 4.47; `restore_transformers` undoes it.

    - `TrainingArguments` and `HfArgumentParser`: fields and flags removed since.
    - `from_pretrained`: `use_auth_token`, `torch_dtype`, `load_in_8bit`, `load_in_4bit`.
    - `pipeline`: `use_auth_token`, and `return_all_scores` of text classification.
    - `Trainer`: `tokenizer=`, overrides without the parameters gained since.
    - names that are gone: `AdamW`, `top_k_top_p_filtering`, `AutoModelForVision2Seq`,
      `transformers.deepspeed`; of neighbours `huggingface_hub.HfFolder`,
      `peft.prepare_model_for_int8_training`.

    Modules already imported are patched now, others when they are imported. A second call changes
    nothing.

    Args:
        children: whether Python processes that this one starts do the same, if `install_as_trl` was
            called too.
    """
    if _installed() is None:
        sys.meta_path.insert(0, _Finder())
        for name in (*_PATCHES, *GONE):
            if name in sys.modules:
                _patch(name)
    if children:
        os.environ[CHILDREN] = "1"


def restore_transformers() -> None:
    """Undo `patch_transformers`; objects made meanwhile keep what they are."""
    finder = _installed()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    for owner, name, before in reversed(_changes):
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
    _changes.clear()
    _done.clear()
    for name in MOVED:
        sys.modules.pop(name, None)
    os.environ.pop(CHILDREN, None)
