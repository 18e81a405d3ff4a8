"""`fastrl migrate`: the rewritten script binds the same arguments and trains the same."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path
from textwrap import dedent

import pytest

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


def test_classic_ppo_stays_classic():
    source = (OLD / "ppo_0_7.py").read_text()
    found = migrate(source).source
    assert "from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer" in found
    again = found.replace("fastrl", "trl").replace(", token=False", ", use_auth_token=False")
    assert again == source


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
