"""`fastrl migrate`: the rewritten script binds the same arguments and keeps its looks."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from textwrap import dedent

import pytest

from fastrl.cli.main import main
from fastrl.compat.as_trl import install_as_trl, uninstall_as_trl
from fastrl.compat.migration import migrate
from fastrl.compat.transformers_patch import patch_transformers, restore_transformers
from fastrl.legacy.binding import accepts_legacy

OLD = Path(__file__).parent / "old_scripts"
TRAINERS = {
    "fastrl.algos.dpo": "DPOTrainer",
    "fastrl.algos.grpo": "GRPOTrainer",
    "fastrl.algos.kto": "KTOTrainer",
    "fastrl.algos.online_dpo": "OnlineDPOTrainer",
    "fastrl.algos.ppo_train": "PPOv2Trainer",
    "fastrl.algos.reward": "RewardTrainer",
    "fastrl.algos.rloo": "RLOOTrainer",
    "fastrl.algos.sft": "SFTTrainer",
}


class Tokenizer:
    def __call__(self, text):
        return text

    def decode(self, ids):
        return ids


# --- the same meaning ----------------------------------------------------------------------------
def recorder(module, name, seen):
    """A trainer with the constructor's old and new spellings that keeps what it is bound to."""
    real = getattr(importlib.import_module(module), name)
    table, config = real._legacy_init
    signature = inspect.signature(real.__init__)

    def __init__(self, *args, **keywords):
        bound = signature.bind(self, *args, **keywords)
        bound.apply_defaults()
        given = {k: v for k, v in bound.arguments.items() if k != "self"}
        made = config.of(given.pop("args"), "tmp_trainer")
        fields = {k: v for k, v in vars(made).items() if not k.startswith(("_", "distributed_st"))}
        seen.append((name, given, {k: str(v) for k, v in fields.items()}, type(made)))

    __init__.__signature__ = signature
    return accepts_legacy(table, config)(type(name, (), {"__init__": __init__}))


@pytest.fixture
def bound(monkeypatch, tmp_path):
    """bound(source, old): what each trainer of a script is called with."""
    monkeypatch.chdir(tmp_path)
    seen = []
    for module, name in TRAINERS.items():
        monkeypatch.setattr(f"{module}.{name}", recorder(module, name, seen))

    def run(source, old):
        seen.clear()
        scope = {"tok": Tokenizer(), "ds": [], "rm": lambda texts: texts, "__name__": "script"}
        if old:
            install_as_trl(children=False)
            patch_transformers()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if old else "error", FutureWarning)
                exec(compile(source, "script.py", "exec"), scope)
        finally:
            restore_transformers()
            uninstall_as_trl()
        for _, given, _, _ in seen:
            for key, value in given.items():
                if value is scope["tok"] or value is scope["rm"]:
                    given[key] = "tok" if value is scope["tok"] else "rm"
        return list(seen)

    return run


SCRIPTS = {
    "sft_0_7": """
        from transformers import TrainingArguments
        from trl import SFTTrainer

        args = TrainingArguments("out", evaluation_strategy="no", no_cuda=True, learning_rate=3e-4)
        SFTTrainer("m", args=args, train_dataset=ds, tokenizer=tok, dataset_text_field="text",
                   packing=True, max_seq_length=64, num_of_sequences=10, neftune_noise_alpha=5)
        """,
    "sft_without_arguments": """
        import trl
        trl.SFTTrainer("m", train_dataset=ds, tokenizer=tok, dataset_text_field="body")
        """,
    "sft_arguments_inline_and_by_place": """
        import transformers
        from trl import SFTTrainer
        SFTTrainer("m", transformers.TrainingArguments("out", warmup_ratio=0.1), max_seq_length=9)
        """,
    "sft_old_order": """
        from transformers import TrainingArguments
        from trl import SFTTrainer
        args = TrainingArguments(output_dir="out", per_gpu_train_batch_size=3)
        SFTTrainer("m", args, None, ds, None, None, None, None, None, (None, None), None, None,
                   "text", True, None, 33)
        """,
    "sft_0_11": """
        from trl import SFTConfig, SFTTrainer
        config = SFTConfig(
            "out",
            max_seq_length=128,
            dataset_text_field="a",
            packing=False,
            use_liger=False,
        )
        SFTTrainer(model="m", args=config, train_dataset=ds, tokenizer=tok, packing=True,
                   max_seq_length=64, dataset_text_field="b")
        """,
    "sft_of_today": """
        from trl import SFTConfig, SFTTrainer
        SFTTrainer("m", SFTConfig("out", max_length=3), None, ds, None, tok)
        """,
    "dpo_0_7": """
        from transformers import TrainingArguments
        from trl import DPOTrainer
        DPOTrainer("m", None, 0.3, args=TrainingArguments("out", adafactor=True), tokenizer=tok,
                   train_dataset=ds, max_length=77, max_prompt_length=7, loss_type="aot_pair",
                   precompute_ref_log_probs=True, padding_value=0, label_pad_token_id=-100)
        """,
    "positional_arguments_in_parentheses": """
        from transformers import TrainingArguments
        from trl import DPOTrainer, SFTTrainer
        DPOTrainer(("m"), (None), (0.5), args=TrainingArguments("out"), tokenizer=(tok))
        SFTTrainer((lambda name: name)("m"), (TrainingArguments("out")), None, (  # the rows
            ds
        ), ((None)), (tok), max_seq_length=(9))
        """,
    "dpo_long_old_order": """
        from trl import DPOTrainer
        DPOTrainer("m", None, 0.3, 0.1, "hinge", None, None, -100, 0, "keep_end", ds, tokenizer=tok)
        """,
    "dpo_0_11": """
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer
        SIZE = 5
        DPOTrainer("m", args=DPOConfig("out", beta=0.5, max_prompt_length=2), tokenizer=tok,
                   beta=0.2, dataset_num_proc=SIZE, is_encoder_decoder=False)
        """,
    "kto": """
        from trl import KTOConfig, KTOTrainer
        KTOTrainer(model="m", args=KTOConfig("out", truncation_mode="keep_end"), tokenizer=tok,
                   train_dataset=ds, model_adapter_name=None)
        """,
    "kto_by_length": """
        from transformers import TrainingArguments
        from trl import KTOTrainer
        KTOTrainer("m", args=TrainingArguments("out", group_by_length=True), tokenizer=tok)
        args = TrainingArguments("out", group_by_length=True, logging_steps=2)
        KTOTrainer("m", args=args, tokenizer=tok)
        """,
    "reward": """
        from transformers import TrainingArguments
        from trl import RewardConfig, RewardTrainer
        RewardTrainer("m", args=RewardConfig("out", evaluation_strategy="no"), tokenizer=tok,
                      train_dataset=ds, max_length=12)
        RewardTrainer("m", TrainingArguments("out"), None, ds, None, tok, max_length=12)
        """,
    "grpo": """
        from trl import GRPOConfig, GRPOTrainer
        config = GRPOConfig(output_dir="out", max_prompt_length=9, vllm_max_model_len=100)
        GRPOTrainer("m", rm, args=config, train_dataset=ds, tokenizer=tok)
        """,
    "rloo": """
        from trl import RLOOConfig, RLOOTrainer
        c = RLOOConfig(output_dir="out", rloo_k=4, kl_coef=0.1, response_length=7, exp_name="e",
                       stop_token="eos", num_ppo_epochs=2, per_device_train_batch_size=4)
        RLOOTrainer(config=c, tokenizer=tok, policy="m", ref_policy="m", reward_model=rm,
                    train_dataset=ds)
        """,
    "online_dpo": """
        from trl import OnlineDPOConfig, OnlineDPOTrainer
        OnlineDPOTrainer("m", reward_model=rm, args=OnlineDPOConfig("out"), tokenizer=tok,
                         train_dataset=ds)
        """,
    "ppo_by_train": """
        from trl import PPOv2Config, PPOv2Trainer
        PPOv2Trainer(config=PPOv2Config("out", num_ppo_epochs=3), tokenizer=tok, policy="m",
                     ref_policy="r", reward_model="j", train_dataset=ds, value_model="v")
        """,
    "ppo_by_place": """
        from trl import PPOv2Config, PPOv2Trainer
        PPOv2Trainer(PPOv2Config("out"), tok, "m", "r", "j", ds, value_model="v")
        """,
    "subclasses": """
        from transformers import TrainingArguments
        from trl import SFTTrainer
        class Mine(SFTTrainer):
            def __init__(self, length):
                super().__init__("m", tokenizer=tok, max_seq_length=length, train_dataset=ds,
                                 args=TrainingArguments("out"))
        class Same(SFTTrainer):
            pass
        Mine(8)
        Same("m", train_dataset=ds, tokenizer=tok)
        """,
    "values_that_say_nothing": """
        from trl import DPOConfig, DPOTrainer
        DPOTrainer("m", None, args=DPOConfig("out", padding_value=None, past_index=-1),
                   tokenizer=tok, padding_value=None, generate_during_eval=False, max_length=None)
        """,
    "warmup_beside_its_old_name": """
        from transformers import TrainingArguments
        from trl import SFTTrainer
        SFTTrainer("m", TrainingArguments("a", warmup_ratio=0.5, warmup_steps=0), max_seq_length=4)
        SFTTrainer("m", TrainingArguments("b", warmup_steps=3, warmup_ratio=0.5), max_seq_length=4)
        """,
    "by_lines_and_inline": """
        from transformers import TrainingArguments
        from trl import SFTTrainer
        SFTTrainer(
            "m",
            train_dataset=ds,
            dataset_text_field="text")
        SFTTrainer("m",
                   train_dataset=ds,  # rows
                   dataset_text_field="text",
                   max_seq_length=12)
        args = TrainingArguments(
            output_dir="o",
            overwrite_output_dir=True,
            save_safetensors=True)
        SFTTrainer("m", args, packing=True)
        """,
    "old_spellings_in_what_is_moved": """
        import trl
        from trl import SFTTrainer
        trl.SFTTrainer("m", tokenizer=tok, model_init_kwargs=dict(
            quantization_config=trl.get_quantization_config(trl.ModelConfig(
                torch_dtype="float16",
                load_in_8bit=True))), max_seq_length=len(trl.__name__[-3:]))
        """,
    "parser": """
        from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser
        parser = TrlParser((SFTConfig, ModelConfig))
        config, model = parser.parse_args_and_config(["--output_dir", "out", "--max_length", "6"])
        SFTTrainer("m", args=config, train_dataset=ds, tokenizer=tok)
        print(ModelConfig(torch_dtype="float16").dtype)
        """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_arguments_are_bound(bound, name):
    """Before under `fastrl run`'s patches; after with none, and without an old spelling left."""
    source = dedent(SCRIPTS[name])
    migrated = migrate(source)
    before, after = bound(source, old=True), bound(migrated.source, old=False)
    assert before and before == after, migrated.source
    assert "trl" not in migrated.source.replace("fastrl", "")
    again = migrate(migrated.source)
    assert (again.source, again.notes) == (migrated.source, [])


# --- what stays as it is -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("SFTTrainer('m', **more, tokenizer=tok)", r"stays as it is \(tokenizer=\): what \* and"),
        ("SFTTrainer('m', args=f(), packing=True)", "does not show args= being made by Training"),
        ("DPOTrainer('m', x, y, tokenizer=tok)", "pass what follows the model by name"),
        ("DPOTrainer('m', reference_free=True)", "a loss without a reference is CPO's or ORPO's"),
        ("SFTTrainer('m', model_init=make)", r"pass the model itself: model=model_init\(\)"),
        (
            "c = SFTConfig('o')\nlong = int('3')\nSFTTrainer('m', args=c, max_seq_length=long)",
            r"stays as it is \(max_seq_length=\): make them fields of the SFTConfig where it is",
        ),
        (
            "c = SFTConfig('o')\nSFTTrainer('m', args=c, packing=True)\nSFTTrainer('n', args=c)",
            "make them fields of the SFTConfig",
        ),
    ],
)
def test_calls_that_are_not_understood_stay(source, note):
    whole = f"from trl import DPOTrainer, SFTConfig, SFTTrainer\n{source}\n"
    migrated = migrate(whole)
    assert migrated.source == whole.replace("from trl", "from fastrl")
    ((line, text),) = migrated.notes
    assert line == 2 + source[: source.index("Trainer('m'")].count("\n")
    assert re.search(note, text), text


@pytest.mark.parametrize(
    ("field", "note"),
    [
        ("logging_dir='x'", "logging_dir= is left out, it has no effect"),
        ("past_index=3", "no longer takes past_index=: memory across batches is gone"),
        ("warmup_ratio=share", "warmup_ratio= is warmup_steps= with a number below 1"),
        ("warmup_ratio=10", "warmup_ratio=10: it is a share of all steps, from 0 to 1"),
        ("warmup_ratio='a'", "warmup_ratio= is warmup_steps= with a number below 1 ('<=' not"),
        ("eval_strategy='no', evaluation_strategy='no'", "eval_strategy= and its old name"),
    ],
)
def test_fields_that_need_a_reader(field, note):
    source = f"from transformers import TrainingArguments as TA\n\nargs = TA('out', {field})\n"
    migrated = migrate(source)
    ((line, text),) = migrated.notes
    assert line == 3 and note in text
    assert ("logging_dir" in migrated.source) is False
    if "logging_dir" not in field:
        assert migrated.source == source


# --- looks ---------------------------------------------------------------------------------------
def test_comments_and_layout_stay():
    source = dedent('''
        """A script."""
        from transformers import (
            AutoTokenizer,  # tokens
            TrainingArguments,
        )
        from trl import SFTTrainer  # the trainer

        naïve = "ä€𝄞"; args = TrainingArguments("ä€𝄞",   # odd  spacing
            no_cuda=True,
            logging_steps = 5)
        trainer = SFTTrainer(
            model,  # the model
            args=args,
            # read by lines
            tokenizer=naïve,  # the tokenizer
            packing=True,  # goes
            train_dataset=ds
        )
    ''')
    expected = dedent('''
        """A script."""
        from transformers import (
            AutoTokenizer,  # tokens
        )
        from fastrl import SFTConfig, SFTTrainer  # the trainer

        naïve = "ä€𝄞"; args = SFTConfig("ä€𝄞",   # odd  spacing
            use_cpu=True,
            logging_steps = 5, learning_rate=5e-05, bf16=False, gradient_checkpointing=False, \
        logging_nan_inf_filter=True, packing_strategy="wrapped", packing=True)
        trainer = SFTTrainer(
            model,  # the model
            args=args,
            # read by lines
            processing_class=naïve,  # the tokenizer
            train_dataset=ds
        )
    ''')
    found = migrate(source).source
    assert found.replace(" \n        logging_nan", " logging_nan") == expected.replace(
        "        logging_nan_inf", "logging_nan_inf"
    ).replace(", \\\n", ", ")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("'o',\n    no=1,\n    ok=2)", "'o',\n    ok=2)"),
        ("'o',\n    ok=2,\n    no=1)", "'o',\n    ok=2)"),
        ("'o',\n    ok=2,\n    no=1,\n    no=1)", "'o',\n    ok=2)"),
        ("'o', no=1,\n    no=1,\n    ok=2)", "'o', ok=2)"),
        ("'o', no=1,\n    no=1,\n    )", "'o',\n    )"),
        ("'o',  # out\n    no=1)", "'o',  # out\n    )"),
        ("\n    no=1,  # no\n    no=1)", "\n    )"),
        ("no=1, no=1, )", " )"),
    ],
)
def test_arguments_go_by_lines_or_inline(before, after):
    names = iter(["overwrite_output_dir", "save_safetensors"])
    while "no=" in before:
        before = before.replace("no=1", f"{next(names)}=True", 1)
    head = "from transformers import TrainingArguments\nTrainingArguments("
    before, after = (text.replace("ok=", "seed=") for text in (before, after))
    assert migrate(f"{head}{before}\n").source == f"{head}{after}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "'m',\n    a=m,\n    max_seq_length=3)",
            "'m',\n    a=m,\n    args=SFTConfig(\n        'out',\n        max_length=3,\n    ))",
        ),
        (
            "'m',  # model\n    max_seq_length=3)",
            "'m',  # model\n    args=SFTConfig(\n        'out',\n        max_length=3,\n    ))",
        ),
    ],
)
def test_a_config_is_added_where_the_last_argument_was(before, after):
    found = migrate(f"from trl import SFTTrainer\nSFTTrainer({before}\n").source
    call = found[found.index("SFTTrainer(") :].replace('"tmp_trainer"', "'out'")
    kept = [n for n in call.splitlines() if not re.match(r" {8}(?!max_)\w+=", n)]
    assert "\n".join(kept) == f"SFTTrainer({after}"


def test_line_ends_of_windows_stay():
    source = "from trl import GRPOTrainer\r\nGRPOTrainer('m',\r\n    tokenizer=t,\r\n)\r\n"
    found = migrate(source).source
    assert found.count("\n") == found.count("\r\n") > 4 and "processing_class=t,\r\n" in found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import trl, os\ntrl.SFTTrainer", "import fastrl, os\nfastrl.SFTTrainer"),
        ("import trl.core as c\nc.whiten", "import fastrl.core as c\nc.whiten"),
        ("import trl as t\nt.PPOConfig()", "import fastrl as t\nt.PPOConfig()"),
        ("from trl.core import LengthSampler", "from fastrl.core import LengthSampler"),
        (
            "from trl.trainer.sft_trainer import SFTTrainer as S",
            "from fastrl import SFTTrainer as S",
        ),
        ("from  trl.trainer  import (\n    PPOTrainer)", "from  fastrl  import (\n    PPOTrainer)"),
        ("from trl import *", "from fastrl import *"),
        ("def trl(): ...\nx.trl = 'trl'", "def trl(): ...\nx.trl = 'trl'"),
        ("from . import trl", "from . import trl"),
        (
            "from transformers import AutoModelForVision2Seq as A, pipeline",
            "from transformers import AutoModelForImageTextToText as A, pipeline",
        ),
        (
            "from transformers import AutoModelForVision2Seq\nAutoModelForVision2Seq.x",
            "from transformers import AutoModelForImageTextToText\nAutoModelForImageTextToText.x",
        ),
        (
            "import peft\npeft.prepare_model_for_int8_training(m)",
            "import peft\npeft.prepare_model_for_kbit_training(m)",
        ),
        (
            "from transformers.deepspeed import HfDeepSpeedConfig",
            "from transformers.integrations.deepspeed import HfDeepSpeedConfig",
        ),
        (
            "from transformers import Trainer\nTrainer(m, tokenizer=t)",
            "from transformers import Trainer\nTrainer(m, processing_class=t)",
        ),
        (
            "from trl import apply_chat_template\napply_chat_template(row, tokenizer=t)",
            "from fastrl import apply_chat_template\napply_chat_template(row, processing_class=t)",
        ),
    ],
)
def test_imports_and_names(before, after):
    migrated = migrate(before)
    assert (migrated.source, migrated.notes) == (after, [])


LOADS = "AutoModelForCausalLM.from_pretrained('x', load_in_8bit=True)\n"
TRAINS = "SFTTrainer(m, args=TrainingArguments('out'), packing=True)\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (  # one import is dropped, the other extended
            "from transformers import TrainingArguments\n"
            "from transformers import AutoModelForCausalLM\n"
            f"from trl import SFTTrainer\n{LOADS}",
            "from transformers import BitsAndBytesConfig, AutoModelForCausalLM\n"
            "from fastrl import SFTConfig, SFTTrainer\n",
        ),
        (  # both happen to one
            "from transformers import (\n    TrainingArguments,\n    AutoModelForCausalLM,\n)\n"
            f"from trl import SFTTrainer\n{LOADS}",
            "from transformers import (\n    BitsAndBytesConfig,\n    AutoModelForCausalLM,\n)\n"
            "from fastrl import SFTConfig, SFTTrainer\n",
        ),
        (
            "from transformers import TrainingArguments, AutoModelForCausalLM\n"
            f"from trl import SFTTrainer\n{LOADS}",
            "from transformers import BitsAndBytesConfig, AutoModelForCausalLM\n"
            "from fastrl import SFTConfig, SFTTrainer\n",
        ),
        (  # nothing else is left of it
            "from transformers import TrainingArguments\n"
            "from trl import AutoModelForCausalLMWithValueHead as AutoModelForCausalLM, "
            f"SFTTrainer\n{LOADS}",
            "from transformers import BitsAndBytesConfig\nfrom fastrl import SFTConfig, "
            "AutoModelForCausalLMWithValueHead as AutoModelForCausalLM, SFTTrainer\n",
        ),
        (  # it is alone in its block
            "try:\n    from transformers import TrainingArguments\nexcept ImportError:\n    1\n"
            "from trl import SFTTrainer\n",
            "try:\n    from transformers import TrainingArguments\nexcept ImportError:\n    1\n"
            "from fastrl import SFTConfig, SFTTrainer\n",
        ),
        (  # the last import is dropped, and none is there to extend
            "# a\ndef f():\n    from trl import SFTTrainer\nfrom transformers import "
            "TrainingArguments\n",
            "# a\nfrom fastrl import SFTConfig\ndef f():\n    from fastrl import SFTTrainer\n",
        ),
        (
            "#!a\n@d\ndef f():\n    import trl\n    from trl import SFTTrainer\n"
            "    from transformers import TrainingArguments\n",
            "#!a\nfrom fastrl import SFTConfig\n@d\ndef f():\n    import fastrl\n"
            "    from fastrl import SFTTrainer\n",
        ),
        (
            "'doc'\ndef f():\n    from trl import SFTTrainer\n"
            "    from transformers import TrainingArguments\n",
            "'doc'\nfrom fastrl import SFTConfig\ndef f():\n    from fastrl import SFTTrainer\n",
        ),
    ],
)
def test_imports_that_are_dropped_and_extended(before, after):
    found = migrate(before + TRAINS).source
    calls = len(found.splitlines()) - (2 if LOADS in before else 1)
    assert "".join(found.splitlines(keepends=True)[:calls]) == after


def test_classic_ppo_stays_classic():
    source = (OLD / "ppo_0_7.py").read_text()
    found = migrate(source).source
    assert "from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer" in found
    again = found.replace("fastrl", "trl").replace(", token=False", ", use_auth_token=False")
    assert again == source


def test_loading():
    source = dedent("""
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import AutoModelForCausalLMWithValueHead
        AutoTokenizer.from_pretrained("a", use_auth_token=True)
        AutoModelForCausalLM.from_pretrained("a", torch_dtype="auto", load_in_8bit=False)
        transformers.AutoModel.from_pretrained("a", load_in_4bit=True)
        AutoModelForCausalLMWithValueHead.from_pretrained("a", load_in_8bit=True, token=None)
        other.from_pretrained("a", use_auth_token=True)
    """)
    migrated = migrate(source)
    assert migrated.source == dedent("""
        import transformers
        from transformers import BitsAndBytesConfig, AutoModelForCausalLM, AutoTokenizer
        from fastrl import AutoModelForCausalLMWithValueHead
        AutoTokenizer.from_pretrained("a", token=True)
        AutoModelForCausalLM.from_pretrained("a", dtype="auto")
        transformers.AutoModel.from_pretrained("a", quantization_config=%sload_in_4bit=True))
        AutoModelForCausalLMWithValueHead.from_pretrained("a", token=None, quantization_config=%s)
        other.from_pretrained("a", use_auth_token=True)
    """) % ("transformers.BitsAndBytesConfig(", "BitsAndBytesConfig(load_in_8bit=True)")
    assert migrated.notes == []


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("from trl import DDPOTrainr", "DDPOTrainr"),
        ("from trl import SFTTrainer\nSFTTrainer('m', tokenizer=t)", "learned without EOS"),
        ("from trl import KTOTrainer\nKTOTrainer('m', tokenizer=t)", "prompts began with BOS"),
        ("from transformers import AdamW", "transformers.AdamW is gone: torch.optim.AdamW, whose"),
        ("import transformers\ntransformers.AdamW(p)", "transformers.AdamW is gone"),
        ("from transformers import pipeline\npipeline('x', return_all_scores=True)", "by its name"),
        ("import importlib.util as u\nu.find_spec('trl')", "find_spec('trl') asks for TRL"),
        ("from trl import __version__", "fastrl counts versions of its own"),
        ("import trl\nprint(trl.__version__)", "stands for its latest release now"),
        (
            "from transformers import AutoModel\n"
            "AutoModel.from_pretrained('a', load_in_8bit=x, torch_dtype=y, dtype=y)",
            "torch_dtype= is the old name of dtype=",
        ),
    ],
)
def test_what_a_reader_must_do_is_noted(source, note):
    notes = migrate(source).notes
    assert notes[0][0] == 1 + source.count("\n") and note in notes[0][1]


def test_versions_are_written_out():
    source = (
        "import trl\nfrom importlib.metadata import version\nx = [trl.__version__, version('trl')]"
    )
    found = migrate(source).source
    assert found.endswith('x = ["1.16.0", "1.16.0"]') and "import fastrl\n" in found


# --- the command ---------------------------------------------------------------------------------
OLD_CALL = "from trl import GRPOTrainer\n\nGRPOTrainer('m', tokenizer=tok, nothing=1)\n"


def test_the_diff_is_printed_and_nothing_written(tmp_path, capsys):
    path = tmp_path / "s.py"
    path.write_text(OLD_CALL)
    assert main(["migrate", str(path)]) == 0
    shown = capsys.readouterr()
    head, lines = shown.out.splitlines()[:3], shown.out.splitlines()[3:]
    assert head[:2] == [f"--- {path}", f"+++ {path}"] and head[2].startswith("@@ -1,3 +1,")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    assert (old, new) == (OLD_CALL, migrate(OLD_CALL).source)
    assert path.read_text() == OLD_CALL


def test_write_rewrites_files_and_again_finds_nothing(tmp_path, capsys):
    path = tmp_path / "s.py"
    source = "# -*- coding: latin-1 -*-\nimport trl  # ä\nfrom transformers import AdamW\n"
    path.write_bytes(source.encode("latin-1"))
    assert main(["migrate", "--write", str(path)]) == 0
    shown = capsys.readouterr()
    assert path.read_bytes().decode("latin-1") == source.replace("trl", "fastrl")
    assert shown.out == "" and f"{path}:3: transformers.AdamW is gone" in shown.err
    assert shown.err.endswith("rewritten\n")
    assert main(["migrate", "--write", str(path)]) == 0
    assert "nothing to change" in capsys.readouterr().err


def test_files_that_cannot_be_read(tmp_path, capsys):
    broken, fine = tmp_path / "broken.py", tmp_path / "fine.py"
    broken.write_text("x = \n")
    fine.write_text("import trl\n")
    missing = tmp_path / "missing.py"
    assert main(["migrate", str(missing), str(broken), str(fine)]) == 2
    shown = capsys.readouterr()
    assert f"{missing}: [Errno 2]" in shown.err and f"{broken}: invalid syntax" in shown.err
    assert "+import fastrl" in shown.out


def test_a_file_that_fails_leaves_the_others_done(tmp_path, capsys, monkeypatch):
    from fastrl.compat import migration

    def fail_at_boo(source):
        assert "boo" not in source, "no boo"
        return migrate(source)

    monkeypatch.setattr(migration, "migrate", fail_at_boo)
    bad, fine = tmp_path / "bad.py", tmp_path / "fine.py"
    bad.write_text("boo\n")
    fine.write_text("import trl\n")
    assert main(["migrate", "--write", str(bad), str(fine)]) == 2
    assert (
        f"fastrl migrate: {bad}: not rewritten, AssertionError: no boo" in capsys.readouterr().err
    )
    assert (bad.read_text(), fine.read_text()) == ("boo\n", "import fastrl\n")


# --- both ways of running a script ---------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft_0_7", "dpo_0_11"])
def test_a_migrated_script_trains_to_the_same_numbers(tiny, tmp_path, name):
    migrated = tmp_path / "migrated.py"
    migrated.write_text(migrate((OLD / f"{name}.py").read_text()).source)
    reports = []
    for command, out in (
        (["-m", "fastrl", "run", str(OLD / f"{name}.py")], tmp_path / "before"),
        ([str(migrated)], tmp_path / "after"),
    ):
        out.mkdir()
        words = [sys.executable, *command, tiny[0], str(out)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert ("old spellings" in done.stderr) == (out.name == "before")
        reports.append(json.loads((out / "report.json").read_text()))
    assert reports[0] == reports[1]
    assert len(reports[0].get("losses") or reports[0]["margins"]) == 3
