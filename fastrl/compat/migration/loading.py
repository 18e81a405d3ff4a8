"""Keywords of `from_pretrained` and `pipeline` that transformers has renamed or given up."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from fastrl.compat.migration.plan import Plan, literal

if TYPE_CHECKING:
    from fastrl.compat.migration.script import Script

_RENAMED = {"use_auth_token": "token", "torch_dtype": "dtype"}
_QUANTIZED = ("load_in_8bit", "load_in_4bit")
_SCORES = (
    "return_all_scores= is top_k=None (False: top_k=1), which sorts the labels by score: look one "
    "up by its name, not by its place"
)


def rewrite(script: Script, call: ast.Call, path: str) -> None:
    """Rewrite a call if it is one of those."""
    owner, _, method = path.rpartition(".")
    plan = script.plan(call)
    if path == "transformers.pipeline":
        _rename(script, plan)
        if "return_all_scores" in plan.given:
            script.text.note(plan.given["return_all_scores"], _SCORES)
    elif method == "from_pretrained" and owner.split(".")[0] in ("transformers", "trl", "fastrl"):
        _rename(script, plan)
        _quantize(script, plan)


def _rename(script: Script, plan: Plan) -> None:
    for old, new in _RENAMED.items():
        if old not in plan.given:
            continue
        if new in plan.given:
            script.text.note(plan.given[old], f"{old}= is the old name of {new}=; give only {new}=")
        else:
            plan.rename(old, new)


def _quantize(script: Script, plan: Plan) -> None:
    """`load_in_8bit=True` is a quantization config; False says nothing."""
    asked = [name for name in _QUANTIZED if name in plan.given]
    values = {name: literal(plan.given[name].value) for name in asked}
    for name, value in values.items():
        if value in (False, None):
            plan.remove(name)
    wanted = [name for name, value in values.items() if value not in (False, None)]
    if not wanted:
        return
    keyword = plan.given[wanted[0]]
    if len(wanted) > 1 or values[wanted[0]] is not True or "quantization_config" in plan.given:
        script.text.note(keyword, "write quantization_config=BitsAndBytesConfig(load_in_8bit=...)")
        return
    plan.remove(wanted[0])
    func = plan.call.func
    assert isinstance(func, ast.Attribute)
    beside = (
        func.value if (script.names.path(func) or "").startswith("transformers") else ast.Name()
    )
    config = script.reference(beside, "transformers", "BitsAndBytesConfig")
    plan.put("quantization_config", f"{config}({wanted[0]}=True)")
