"""Every public name of TRL's releases, as recorded by record_names.py, against what fastrl has."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrl
from fastrl.compat.missing import comes_later, instead_of
from fastrl.compat.modules import MODULES

RECORD = json.loads((Path(__file__).parent / "trl_names.json").read_text(encoding="utf-8"))
# Names that TRL listed and could not import itself: they are peft's.
PEFTS = {"MultitaskPromptEmbedding", "MultitaskPromptTuningConfig", "MultitaskPromptTuningInit"}
SCRATCH = {"trainer.test"}  # a draft of a function, which one release shipped
# Submodules that scripts of 0.7 and 0.11 import from, whole; what they lack is named here.
CLASSIC = {
    "core": set(),
    "environment.base_environment": set(),
    "extras.best_of_n_sampler": set(),
    "extras.dataset_formatting": set(),
    "data_utils": {"common_prefix_length"},  # a helper of 1.16's own
    "import_utils": {"PACKAGE_DISTRIBUTION_MAPPING"},
    "models.modeling_base": set(),
    "models.modeling_value_head": set(),
    "trainer.base": set(),
    "trainer.callbacks": set(),
    "trainer.judges": set(),
    "trainer.model_config": set(),
}
UTILS_OF = ("0.7.11", "0.8.1", "0.9.6", "0.11.4")  # releases whose `trainer.utils` is here, whole
UTILS_WITHOUT = {
    "OnpolicyRuntimeConfig",  # fields that 0.9's trainers filled for themselves
    "SIMPLE_QUERY_CHAT_TEMPLATE",  # 0.9's example only
    "prepare_deepspeed",  # TRL's own trainers' set-up
}
# (module, name) -> arguments that a release had and that are not taken by that name here.
NOT_TAKEN = {
    ("chat_template_utils", "is_chat_template_prefix_preserving"): {"tokenizer"},  # first, of 1.0
    ("experimental.ppo.ppo_config", "PPOConfig"): {  # filled in, never given
        *("batch_size", "local_batch_size", "local_mini_batch_size", "micro_batch_size"),
        *("mini_batch_size", "num_total_batches", "world_size"),
    },
    ("experimental.utils", "truncate_dataset"): {"truncation_mode"},
    ("experimental.utils", "truncate_right"): {"stop_token_id"},  # the second, by any name
    ("trainer.base", "BaseTrainer"): {"config"},  # what it is called with is a subclass's affair
    ("trainer.grpo_trainer", "shuffle_tensor_dict"): {"tensor_dict"},  # the only argument
    ("trainer.sft_trainer", "DataCollatorForLanguageModeling"): {  # rows come with labels, cut
        *("completion_only_loss", "max_length", "truncation_mode"),
    },
    ("trainer.utils", "OnPolicyConfig"): {"world_size"},  # filled in
    ("trainer.utils", "get_peft_config"): {"model_config"},  # the only argument
    ("trainer.utils", "get_quantization_config"): {"model_config"},  # the only argument
    ("trainer.utils", "truncate_right"): {"stop_token_id"},
}


def of(module):
    return importlib.import_module(f"fastrl.{module}" if module else "fastrl")


def accepted(thing):
    """Every argument that a class or function takes, by today's names and by older ones."""
    parameters = inspect.signature(thing).parameters.values()
    names = {p.name for p in parameters} | set(getattr(thing, "_legacy_fields", ()))
    names |= set(getattr(thing, "_beside_fields", ()))
    if hasattr(thing, "_legacy_init"):
        names |= set(thing._legacy_init[0].changes)
    for train_form in {"PPOTrainer": [fastrl.PPOv2Trainer], "PPOConfig": [fastrl.PPOv2Config]}.get(
        thing.__name__, []
    ):
        names |= accepted(train_form)
    return names


def takes_anything(thing):
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(thing).parameters.values())


def definitions(name, release):
    """(module, what it is) of a name in a release; several where modules define it anew."""
    number = RECORD["releases"].index(release)
    return [
        (module, shown)
        for module, names in RECORD["modules"].items()
        for shown, releases in names.get(name, {}).items()
        if number in releases and not module.startswith("experimental.bema")  # another class
    ]


def check(thing, shown, where):
    """The right kind of thing, which takes what was recorded."""
    kind, _, arguments = shown.partition("(")
    if kind == "class":
        assert isinstance(thing, type), where
    elif kind == "function":
        assert callable(thing) and not isinstance(thing, type), where
    given = {a for a in arguments.removesuffix(")").split(", ") if a and not a.startswith("*")}
    if given and not takes_anything(thing):
        missing = given - accepted(thing) - NOT_TAKEN.get(where, set())
        assert not missing, f"{where} takes no {sorted(missing)}"


@pytest.mark.parametrize("release", RECORD["top"])
def test_every_name_of_the_top_level(release):
    for name in RECORD["top"][release]:
        if name in PEFTS:
            continue
        thing = getattr(fastrl, name)
        assert name in fastrl.__all__ and name in dir(fastrl)
        for module, shown in definitions(name, release):
            check(thing, shown, (module, name))


def test_what_is_to_come_says_so_and_has_no_placeholder():
    asked = {name for names in RECORD["top"].values() for name in names}
    for name in ("AsyncGRPOTrainer", "AsyncGRPOConfig"):
        assert name not in asked | set(fastrl.__all__)
        with pytest.raises(AttributeError, match=f"{name}.*: .* is not there yet"):
            getattr(fastrl, name)
        with pytest.raises(ImportError, match=f"{name}.*is not there yet"):
            exec(f"from fastrl import {name}")
    assert asked >= PEFTS
    for name in PEFTS:
        with pytest.raises(ImportError, match=f"it is peft's: from peft import {name}"):
            exec(f"from fastrl import {name}")


@pytest.mark.parametrize("module", sorted({*RECORD["packages"], *RECORD["modules"]}))
def test_every_module_is_there_or_says_what_serves(module):
    if module in MODULES or module in SCRATCH:
        return
    words = module.split(".")
    said = [comes_later(word) or instead_of(word) for word in words]
    assert any(said), f"{module} is neither there nor explained"
    if not comes_later(words[-1]):  # the error that a user meets, at the first word that lacks
        expected = next(s for s in said if s)
        with pytest.raises(ImportError, match=re.escape(expected)):
            importlib.import_module(f"fastrl.{module}")


@pytest.mark.parametrize("package", [p for p in RECORD["packages"] if p in MODULES])
def test_every_name_of_the_packages(package):
    for release, names in RECORD["packages"][package].items():
        for name in names:
            if comes_later(name) or instead_of(name) or name.startswith("_"):
                continue
            if name in RECORD["modules"]["import_utils"] and package != "import_utils":
                continue  # used in that file, not offered by it
            if package == "models" and name.startswith("prepare_"):
                continue  # TRL's own trainers' set-up
            thing = getattr(of(package), name)
            found = definitions(name, release)
            for module, shown in found if package == "trainer" else []:
                if module.startswith("trainer"):
                    check(thing, shown, (module, name))


@pytest.mark.parametrize("module", CLASSIC)
def test_every_name_of_the_classic_submodules(module):
    assert set(RECORD["modules"][module]) - MODULES[module].keys() <= CLASSIC[module]


def test_every_name_of_trainer_utils_to_0_11():
    numbers = {RECORD["releases"].index(release) for release in UTILS_OF}
    names = {
        name
        for name, shapes in RECORD["modules"]["trainer.utils"].items()
        if any(numbers & set(releases) for releases in shapes.values())
    }
    assert names - MODULES["trainer.utils"].keys() == UTILS_WITHOUT


def test_every_trainer_and_config_is_at_its_old_path():
    for module, names in RECORD["modules"].items():
        if not module.startswith("trainer.") or comes_later(module.removeprefix("trainer.")):
            continue
        for name in names:
            if name.endswith(("Trainer", "Config")) and not comes_later(name):
                if name in ("OnpolicyRuntimeConfig",):
                    continue
                assert name in MODULES[module], f"{module}.{name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m in RECORD["modules"]])
def test_what_a_module_answers_is_what_it_was(module):
    for name, shapes in RECORD["modules"][module].items():
        for shown in shapes if name in MODULES[module] else ():
            check(getattr(of(module), name), shown, (module, name))


@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_the_table_is_there(module):
    found = of(module)
    for name in MODULES[module]:
        thing = getattr(found, name)
        assert name in dir(found)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            home = sys.modules[thing.__module__]
            assert getattr(home, thing.__name__) is thing  # so that it pickles


def test_types_checkers_see_the_top_level():
    """The imports under TYPE_CHECKING name what `__getattr__` answers, from the same modules."""
    import ast

    tree = ast.parse(Path(fastrl.__file__).read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    listed = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in block.body
        for alias in statement.names
    }
    homes = {}
    for name, home in MODULES[""].items():
        module, _, attribute = home.partition(":")
        homes[name] = (module, attribute or name)
    assert listed == homes


def test_importing_paths_loads_no_model_library():
    code = (
        "import sys, fastrl, fastrl.core, fastrl.trainer.utils, fastrl.models.utils\n"
        "import fastrl.rewards, fastrl.experimental.ppo, fastrl.extras, fastrl.data_utils\n"
        "dir(fastrl.trainer.utils)\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'triton') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
