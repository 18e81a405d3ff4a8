"""Virtual modules behave as modules do, and absent names say what to use."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import sys
from unittest import mock

import pytest

import fastrl
from fastrl.compat import finder
from fastrl.compat.missing import explain
from fastrl.compat.modules import MODULES


def test_every_form_of_import_gives_the_one_class():
    import fastrl.trainer.sft_trainer as by_alias
    from fastrl import trainer
    from fastrl.algos.sft import SFTTrainer
    from fastrl.trainer import SFTTrainer as by_package
    from fastrl.trainer.sft_trainer import SFTTrainer as by_module

    assert by_module is by_package is by_alias.SFTTrainer is SFTTrainer is fastrl.SFTTrainer
    assert trainer.sft_trainer is by_alias is sys.modules["fastrl.trainer.sft_trainer"]
    assert fastrl.trainer is trainer is importlib.import_module("fastrl.trainer")


def test_a_star_import_gives_the_modules_names():
    names = {}
    exec("from fastrl.rewards.other_rewards import *", names)
    wanted = {"get_repetition_penalty_reward", "get_soft_overlong_punishment"}
    assert names.keys() - {"__builtins__"} == wanted


def test_the_same_name_may_be_another_class_at_another_path():
    import fastrl.experimental.ppo as by_train
    import fastrl.trainer.ppo_trainer as by_step
    from fastrl.trainer import dpo_trainer, reward_trainer

    assert by_train.PPOTrainer is fastrl.PPOv2Trainer
    assert by_train.PPOConfig is fastrl.PPOTrainConfig
    assert by_step.PPOTrainer is fastrl.PPOTrainer is not fastrl.PPOv2Trainer
    pairs, sides = dpo_trainer.DataCollatorForPreference, reward_trainer.DataCollatorForPreference
    assert pairs.__module__ == "fastrl.data.collate_preference"
    assert sides.__module__ == "fastrl.data.collate_reward"


def test_the_module_itself():
    import fastrl.core as core

    assert core.__name__ == "fastrl.core" and core.__spec__.name == "fastrl.core"
    assert core.__doc__ and repr(core) == "<module 'fastrl.core' (the names of TRL)>"
    assert set(MODULES["core"]) <= set(dir(core))
    assert core.__all__ == sorted(MODULES["core"])
    assert inspect.ismodule(core)
    with pytest.raises(TypeError):
        inspect.getfile(core)
    assert not hasattr(core, "__file__") and not hasattr(core, "__wrapped__")


def test_inspect_finds_the_file_that_defines_a_name():
    from fastrl.core import whiten

    assert inspect.getmodule(whiten) is importlib.import_module("fastrl.ops.classic")
    assert inspect.getsource(whiten).startswith("def whiten(")


def test_pickles_that_name_an_old_path_are_read():
    from fastrl.trainer.utils import AdaptiveKLController

    assert pickle.loads(b"cfastrl.trainer.utils\nAdaptiveKLController\n.") is AdaptiveKLController
    kept = pickle.loads(pickle.dumps(AdaptiveKLController(0.2, 6, 10000)))
    assert type(kept) is AdaptiveKLController and kept.value == 0.2


def test_reload_keeps_the_module_and_forgets_what_was_set_on_it():
    import fastrl.trainer.judges as judges

    own = judges.BasePairwiseJudge
    judges.BasePairwiseJudge = "patched"
    assert importlib.reload(judges) is judges
    assert judges.BasePairwiseJudge is own
    with mock.patch("fastrl.trainer.judges.BasePairwiseJudge", "patched"):
        assert judges.BasePairwiseJudge == "patched"
    assert judges.BasePairwiseJudge is own


def test_find_spec_answers_without_importing():
    sys.modules.pop("fastrl.trainer.grpo_config", None)
    spec = importlib.util.find_spec("fastrl.trainer.grpo_config")
    assert spec.name == "fastrl.trainer.grpo_config" and spec.submodule_search_locations == []
    assert "fastrl.trainer.grpo_config" not in sys.modules
    assert importlib.util.find_spec("fastrl.experimental.async_grpo") is None
    assert importlib.util.find_spec("fastrl.nonsense") is None


def test_real_files_win_and_packages_that_are_both_have_both():
    import fastrl.models
    import fastrl.models.reference as real

    assert real.__file__.endswith("reference.py")
    assert fastrl.models.setup_chat_format is fastrl.setup_chat_format  # the table's
    assert fastrl.models.logprobs.__module__ == "fastrl.models.policy"  # its own
    assert fastrl.rewards.think_format_reward.__module__ == "fastrl.rewards.format"
    assert {"logprobs", "setup_chat_format", "utils"} <= set(dir(fastrl.models))
    assert importlib.util.find_spec("fastrl.models").origin == fastrl.models.__file__
    assert "def __getattr__" in inspect.getsource(fastrl.models)


def test_there_is_one_finder_however_often_it_is_installed():
    before = [f for f in sys.meta_path if isinstance(f, finder.Finder)]
    assert finder.install() is finder.install("fastrl") is before[0]
    assert [f for f in sys.meta_path if isinstance(f, finder.Finder)] == before


# How a name is asked for -> what the error says.
MISSING = {
    "import fastrl.models.sd_utils": "from diffusers.utils import convert_state_dict_to_diffusers",
    "from fastrl.models import OffloadActivations": "activation_offloading=True",
    "from fastrl import AsyncGRPOTrainer": "asynchronous GRPO is not there yet",
    "import fastrl.experimental.async_grpo": "asynchronous GRPO is not there yet",
    **{
        f"import fastrl.experimental.{name}": "none of the relatives of GRPO that are here"
        for name in ("a2po", "gfpo", "gmpo", "grpo_with_replay_buffer", "gspo_token", "papo")
    },
    **{
        f"import fastrl.experimental.{name}": "DistillationTrainer distils"
        for name in ("gold", "iw_opd", "minillm", "sdft", "sdpo")
    },
    **{
        f"import fastrl.experimental.{name}": "environment_factory"
        for name in ("harbor", "openenv", "openreward")
    },
    "import fastrl.experimental.async_distillation": "asynchronous distillation is not there yet",
    "import fastrl.experimental.server_distillation": "teacher on a server is not there yet",
    "import fastrl.experimental.tpo": "DPOTrainer has fifteen",
    "from fastrl.trainer.utils import add_fused_lm_head": "linear_token_logprobs",
    "from fastrl.core import LengthSamplr": "did you mean 'LengthSampler'",
    "from fastrl import whiten": "fastrl.core has it",
    "from fastrl.trainer import is_peft_available": "fastrl has it",
    "from fastrl.models import nonsense": "module 'fastrl.models' has no attribute 'nonsense'",
    "import fastrl.nonsense": "module 'fastrl' has no attribute 'nonsense'",
}


@pytest.mark.parametrize("asked", MISSING)
def test_absent_names_say_what_to_use(asked):
    with pytest.raises(ImportError) as error:
        exec(asked)
    assert MISSING[asked] in str(error.value)
    if asked.startswith("import"):
        assert error.type is ModuleNotFoundError and error.value.name == asked.split()[1]
    if asked.startswith("from"):
        _, module, _, name = asked.split()
        if importlib.util.find_spec(module) is None:
            return
        with pytest.raises(AttributeError) as attribute:
            getattr(importlib.import_module(module), name)
        assert MISSING[asked] in str(attribute.value)
        assert not hasattr(importlib.import_module(module), name)


def test_names_of_other_packages_are_left_alone():
    with pytest.raises(ImportError, match=r"cannot import name 'nonsense' from 'fastrl.ops'"):
        from fastrl.ops import nonsense  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'fastrl.ops.nonsense'"):
        import fastrl.ops.nonsense  # noqa: F401


def test_the_root_is_named_as_it_was_asked_for():
    assert explain("trl", "core", "whitn").startswith("module 'trl.core' has no attribute 'whitn'")
    assert "trl.core has it" in explain("trl", "", "whiten")
