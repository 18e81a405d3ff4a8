"""The model that a student is compared with, checked and loaded before anything is changed."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastrl.models import door
from fastrl.train import setup

_NAME = "args.teacher_model_name_or_path"


def teacher_model(given: Any, student: Any, args: Any) -> nn.Module:
    """The teacher: as given, or loaded by the name given here or in `args`.

    Args:
        given: a name or folder, a model, or None.
        student: what the trainer was given as `model`.
        args: with the fields `teacher_model_*` of `DistillationConfig`.

    Raises:
        ValueError: for none, two different ones, the student itself, one without a language-model
            head, or settings of loading beside a model that is loaded.
        TypeError: for what is neither a name nor a model.
    """
    named = args.teacher_model_name_or_path
    if given is None and named is None:
        raise ValueError(f"teacher_model is required: give a model, or a name there or in {_NAME}")
    given = named if given is None else given
    own = given if isinstance(given, str) else _name_of(given)
    if named not in (None, own):
        raise ValueError(
            f"teacher_model is {own!r} and {_NAME} {named!r}, two teachers; leave one of them out"
        )
    if isinstance(given, str):
        return _loaded(given, args)
    if given is student:
        raise ValueError(
            "teacher_model is the object given as model, so the student would be compared with "
            "itself and learn nothing; give another model"
        )
    if door.find(given)[0].get_output_embeddings() is None:
        raise ValueError(
            f"teacher_model: {type(given).__name__} has no language-model head, so it gives no "
            "distribution over tokens; give a causal language model"
        )
    for name in ("teacher_model_init_kwargs", "teacher_model_revision"):
        if getattr(args, name, None):
            raise ValueError(
                f"args.{name} is for a teacher given by name; this one is loaded already"
            )
    return given


def _name_of(model: Any) -> str:
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"teacher_model must be a name or a transformers model, got {type(model).__name__}"
        )
    return model.config._name_or_path


def _loaded(name: str, args: Any) -> nn.Module:
    keywords: dict[str, Any] = dict(args.teacher_model_init_kwargs or {})
    revision = getattr(args, "teacher_model_revision", None)
    if revision is not None:
        keywords.setdefault("revision", revision)
    if args.distributed_state.num_processes > 1:
        keywords["device_map"] = None
    keywords.setdefault("trust_remote_code", args.trust_remote_code)
    return setup.create_model_from_path(name, **keywords)


def refuse_soft_prompts(**models: nn.Module) -> None:
    """Refuse models that put virtual tokens before each row, which lengthen their logits.

    Raises:
        ValueError: naming the argument.
    """
    for name, model in models.items():
        if door.find(model)[1]:
            raise ValueError(
                f"{name} has a soft prompt (prompt tuning, prefix tuning, p-tuning), which puts "
                "its distributions at other places than the other model's; use LoRA"
            )
