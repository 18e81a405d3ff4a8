"""`fastrl migrate`: a script keeps its looks, and what becomes of its imports and names."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest

from fastrl.compat.migration import migrate


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


def test_versions_are_written_out():
    source = (
        "import trl\nfrom importlib.metadata import version\nx = [trl.__version__, version('trl')]"
    )
    found = migrate(source).source
    assert found.endswith('x = ["1.16.0", "1.16.0"]') and "import fastrl\n" in found
