"""Names that mean something else in another release of TRL: what decides, one test for each.

What is expected of a release was read off its source: defaults, order of arguments, rows.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import json
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

import fastrl
from fastrl.compat.transformers_patch import patch_transformers, restore_transformers
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.online import RLOO
from fastrl.legacy.online_dpo import ONLINE_DPO

WORDS = ["the", "cat", "sat", "on", "a", "mat", "user", "assistant"]
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
QUIET = {"use_cpu": True, "report_to": "none"}


@pytest.fixture(autouse=True)
def no_pin(monkeypatch):
    """Nothing is pinned before a test, nor after it."""
    monkeypatch.delenv("FASTRL_API", raising=False)
    yield
    fastrl.set_api(None)


@pytest.fixture
def tokenizer():
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def model(kind=GPT2LMHeadModel):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_positions=32, n_embd=8, n_layer=1, n_head=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, num_labels=1,
    )  # fmt: skip
    return kind(config)


def quietly(call, *args, **kwargs):
    """The result of a call whose old spellings are not this test's subject."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return call(*args, **kwargs)


def recorder(trainer, table, config):
    """A class with a trainer's constructor, which keeps what it is given."""

    class Recorder:
        def __init__(self, **given):
            self.given = given

    visible = inspect.signature(trainer.__init__)
    Recorder.__init__.__signature__ = visible
    return accepts_legacy(table, config)(Recorder)


# --- the pin --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["0.9", "1.16", "", 1, "latest"])
def test_set_api_refuses_what_is_no_generation(wrong):
    with pytest.raises(ValueError, match=r"set_api: .* give '0\.7', '0\.11', '1'"):
        fastrl.set_api(wrong)


def test_the_environment_pins_and_the_program_wins_over_it(monkeypatch):
    monkeypatch.setenv("FASTRL_API", "1")
    assert type(fastrl.PPOConfig(**QUIET)) is fastrl.PPOTrainConfig
    assert type(fastrl.PPOConfig(seed=1)) is fastrl.PPOTrainConfig
    fastrl.set_api("0.7")
    assert type(fastrl.PPOConfig(seed=1)) is fastrl.PPOConfig
    fastrl.set_api(None)
    assert type(fastrl.PPOConfig(seed=1)) is fastrl.PPOTrainConfig
    monkeypatch.setenv("FASTRL_API", "0.8")
    with pytest.raises(ValueError, match=r"FASTRL_API: '0\.8' is no generation"):
        fastrl.PPOConfig(seed=1)


# --- PPOTrainer, PPOConfig ------------------------------------------------------------------------


def test_ppo_config_by_its_fields():
    assert type(fastrl.PPOConfig(batch_size=4, init_kl_coef=0.1)) is fastrl.PPOConfig
    assert type(fastrl.PPOConfig("name")) is fastrl.PPOConfig  # by position, as only the one has
    assert type(fastrl.PPOConfig(num_ppo_epochs=2, **QUIET)) is fastrl.PPOTrainConfig
    assert type(fastrl.PPOConfig(output_dir="out", **QUIET)) is fastrl.PPOTrainConfig
    with pytest.raises(TypeError, match=r"step\(\) form \(init_kl_coef\).*train\(\) form"):
        fastrl.PPOConfig(init_kl_coef=0.1, num_ppo_epochs=2)
    shared = {"learning_rate": 1e-5, "gamma": 0.9, "cliprange": 0.1}
    for pin, form in (("0.7", fastrl.PPOConfig), ("0.11", fastrl.PPOConfig), (None, None)):
        fastrl.set_api(pin)
        assert type(fastrl.PPOConfig(**shared)) is (form or fastrl.PPOConfig)
    fastrl.set_api("1")
    made = fastrl.PPOConfig(**shared)
    assert type(made) is fastrl.PPOTrainConfig and made.gamma == 0.9
    classic = fastrl.PPOConfig(init_kl_coef=0.1)  # the field shows it, whatever is pinned
    assert type(classic) is fastrl.PPOConfig
    for kept in (copy.deepcopy(classic), pickle.loads(pickle.dumps(classic))):
        assert type(kept) is fastrl.PPOConfig and kept == classic


def test_ppo_config_of_0_11_keeps_the_step_form_with_its_two_fields_more():
    with pytest.warns(FutureWarning, match="gradient_checkpointing= has no effect: every pass"):
        config = fastrl.PPOConfig(gradient_checkpointing=True, batch_size=8)
    assert type(config) is fastrl.PPOConfig
    assert type(quietly(fastrl.PPOConfig, dataset_num_proc=2)) is fastrl.PPOConfig


def test_ppo_config_of_a_parser_by_flags_and_keys(tmp_path):
    parser = fastrl.TrlParser((fastrl.ScriptArguments, fastrl.PPOConfig, fastrl.ModelConfig))

    def form(*words):
        with_config = parser.parse_args_and_config(list(words))
        plain = parser.parse_args_into_dataclasses(list(words)) if "--config" not in words else None
        assert plain is None or [type(each) for each in plain] == [type(e) for e in with_config]
        return type(with_config[1])

    train = ("--output_dir", str(tmp_path), "--use_cpu", "True")
    assert form("--init_kl_coef", "0.3", "--batch_size", "4") is fastrl.PPOConfig
    assert form(*train, "--num_ppo_epochs", "2") is fastrl.PPOTrainConfig
    assert form(*train[:2], "--no_cuda", "True") is fastrl.PPOTrainConfig  # an old flag of it
    assert form("--learning_rate", "1e-6") is fastrl.PPOConfig
    with pytest.raises(ValueError, match="give those of one"):
        form("--init_kl_coef", "0.3", "--num_ppo_epochs", "2")
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {tmp_path}\nnum_ppo_epochs: 3\nuse_cpu: true\n")
    _, config, _ = parser.parse_args_and_config(["--config", str(file)])
    assert type(config) is fastrl.PPOTrainConfig and config.num_ppo_epochs == 3
    fastrl.set_api("1")
    assert form("--learning_rate", "1e-6") is fastrl.PPOTrainConfig
    assert form("--init_kl_coef", "0.3") is fastrl.PPOConfig
    config, *_ = fastrl.TrlParser(fastrl.PPOv2Config).parse_args_into_dataclasses(list(train))
    assert type(config) is fastrl.PPOTrainConfig


class OwnParser(fastrl.TrlParser):
    """Asks for no dataclasses and knows something."""

    def __init__(self):
        super().__init__((fastrl.PPOConfig, fastrl.ModelConfig), prog="own")
        self.known = 3
        self.add_argument("--mine", type=int, default=self.known)

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        return found, [word for word in rest if word != "--dropped"]


class OwnHfParser(HfArgumentParser):
    """The same of transformers'."""

    def __init__(self):
        super().__init__((fastrl.PPOConfig, fastrl.ModelConfig), prog="own")
        self.known = 3
        self.add_argument("--mine", type=int, default=self.known)


@pytest.mark.parametrize("kind", [OwnParser, OwnHfParser])
def test_a_parser_of_ones_own_stays_so_in_the_other_form(tmp_path, kind):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    patch_transformers()
    try:
        parser = kind()
        config, model, rest = parser.parse_args_into_dataclasses(words)
        assert type(config) is fastrl.PPOTrainConfig and rest.mine == 3
        assert config.learning_rate == 3e-6
        parser.set_defaults(learning_rate=7e-3, lora_r=5)
        config, model, rest = parser.parse_args_into_dataclasses([*words, "--mine", "4"])
        assert (config.learning_rate, model.lora_r, rest.mine) == (7e-3, 5, 4)
        classic, *_ = parser.parse_args_into_dataclasses(["--init_kl_coef", "0.3"])
        assert type(classic) is fastrl.PPOConfig and classic.learning_rate == 7e-3
    finally:
        restore_transformers()


def test_trl_parser_takes_its_defaults_and_its_class_to_the_other_form(tmp_path):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    parser = OwnParser()
    parser.set_defaults_with_config(gamma=0.5, lora_alpha=6)
    config, model, rest = parser.parse_args_and_config([*words, "--mine", "8", "--dropped"])
    assert type(config) is fastrl.PPOTrainConfig and rest.mine == 8
    assert (config.gamma, model.lora_alpha) == (0.5, 6)
    parser = fastrl.TrlParser(fastrl.PPOConfig)
    parser.set_defaults(output_dir=str(tmp_path), use_cpu=True)
    (config,) = parser.parse_args_and_config([])
    assert type(config) is fastrl.PPOTrainConfig and config.output_dir == str(tmp_path)


def test_ppo_trainer_by_its_config_and_keywords(monkeypatch):
    made = []
    monkeypatch.setattr(
        "fastrl.algos.ppo_forms.PPOv2Trainer", lambda *a, **k: made.append((a, k)) or "by train"
    )
    train = fastrl.PPOTrainConfig(**QUIET)
    assert fastrl.PPOTrainer(train, "tokenizer", "policy") == "by train"
    assert fastrl.PPOTrainer(args=train, reward_model="r") == "by train"
    assert fastrl.PPOTrainer(config=train, policy="p", tokenizer="t") == "by train"
    assert made[0] == ((train, "tokenizer", "policy"), {})
    with pytest.raises(ValueError, match="model must be"):  # the step() form's own check
        fastrl.PPOTrainer(fastrl.PPOConfig(batch_size=1), "model", None, "tokenizer")
    with pytest.raises(TypeError, match=r"of its step\(\) form .* and of its train\(\) form"):
        fastrl.PPOTrainer(fastrl.PPOConfig(batch_size=1), reward_model="r")
    assert fastrl.experimental.ppo.PPOTrainer is fastrl.PPOv2Trainer  # the path shows it


# --- SFTTrainer -----------------------------------------------------------------------------------

TEXTS = Dataset.from_list([{"text": "the cat sat"}, {"text": "on a mat"}])


def first_row(words, dataset=TEXTS, pin=None, **arguments):
    """The words of the first prepared row."""
    fastrl.set_api(pin)
    trainer = quietly(fastrl.SFTTrainer, model(), train_dataset=dataset, **arguments)
    return words.convert_ids_to_tokens(trainer.train_dataset[0]["input_ids"])


def test_sft_ends_texts_with_eos_since_1_and_not_before(tokenizer, tmp_path):
    plain = {"args": TrainingArguments(str(tmp_path), **QUIET)}
    own = {"args": fastrl.SFTConfig(str(tmp_path), **QUIET)}
    modern = {"processing_class": tokenizer}
    text = ["the", "cat", "sat"]
    assert first_row(tokenizer, **own, **modern) == [*text, "<eos>"]
    assert first_row(tokenizer, **own, tokenizer=tokenizer) == text  # the old name shows it
    assert first_row(tokenizer, **plain, **modern, dataset_text_field="text") == text
    assert first_row(tokenizer, **plain, **modern) == [*text, "<eos>"]  # fits all releases
    assert first_row(tokenizer, **plain, **modern, pin="0.7") == text
    assert first_row(tokenizer, **own, **modern, pin="0.11") == text
    assert first_row(tokenizer, **own, **modern, pin="1") == [*text, "<eos>"]
    packed = fastrl.SFTConfig(str(tmp_path), packing=True, max_length=8, **QUIET)
    rows = first_row(tokenizer, args=packed, tokenizer=tokenizer)
    assert rows == [*text, "<eos>", "on", "a", "mat", "<eos>"]  # between texts there always was


def test_sft_learns_prompt_and_completion_as_one_chat_before_1(tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": "the cat", "completion": " sat"}] * 2)
    tokenizer.chat_template = CHAT
    args = fastrl.SFTConfig(str(tmp_path), **QUIET)
    trainer = quietly(fastrl.SFTTrainer, model(), args, train_dataset=rows, tokenizer=tokenizer)
    row = trainer.train_dataset[0]
    words = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert words == ["user", "the", "cat", "assistant", "sat"]
    assert row["labels"] == row["input_ids"]  # all of it is learned
    modern = fastrl.SFTTrainer(model(), args, train_dataset=rows, processing_class=tokenizer)
    row = modern.train_dataset[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["the", "cat", "sat", "<eos>"]
    assert row["labels"][:2] == [-100, -100]
    column = first_row(tokenizer, rows, args=args, tokenizer=tokenizer, dataset_text_field="prompt")
    assert column == ["the", "cat"]


def test_sft_formatting_func_by_what_it_returns(tokenizer, tmp_path):
    args = {"args": fastrl.SFTConfig(str(tmp_path), **QUIET), "processing_class": tokenizer}
    batch = first_row(
        tokenizer, **args, formatting_func=lambda rows: [t + " on" for t in rows["text"]]
    )
    row = first_row(tokenizer, **args, formatting_func=lambda row: row["text"] + " on")
    assert batch == row == ["the", "cat", "sat", "on", "<eos>"]


def test_sft_seventh_positional_by_the_pin(tokenizer, tmp_path):
    args = fastrl.SFTConfig(str(tmp_path), **QUIET)
    given = (model(), args, None, TEXTS, None, tokenizer, lambda *_, **__: None)
    trainer = fastrl.SFTTrainer(*given)
    assert trainer.compute_loss_func is given[-1] and trainer._api_generation == "1"
    fastrl.set_api("0.7")  # there it was model_init, which made the model
    with pytest.raises(TypeError, match="no longer takes model_init"):
        fastrl.SFTTrainer(*given)
    trainer = fastrl.SFTTrainer(*given[:6])  # up to here the orders are one: nothing is old in it
    assert trainer.processing_class is tokenizer and trainer._api_generation == "0.11"


def test_sft_config_renamed_and_removed_fields():
    with pytest.warns(FutureWarning, match="max_seq_length= is max_length="):
        config = fastrl.SFTConfig("out", max_seq_length=7, use_liger=False, **QUIET)
    assert config.max_length == 7 and config.use_liger_kernel is False
    with pytest.warns(FutureWarning, match="num_of_sequences= has no effect"):
        fastrl.SFTConfig("out", num_of_sequences=16, **QUIET)


# --- DPOTrainer, KTOTrainer -----------------------------------------------------------------------

PAIRS = Dataset.from_list([{"prompt": "the cat", "chosen": " sat", "rejected": " a mat"}] * 2)


def prompt_of(words, trainer, args, **name):
    rows = PAIRS if trainer is fastrl.DPOTrainer else PAIRS.map(
        lambda row: {"completion": row["chosen"], "label": True},
        remove_columns=["chosen", "rejected"],
    )  # fmt: skip
    made = quietly(trainer, model(), model(), args=args, train_dataset=rows, **name)
    row = made.train_dataset[0]
    return words.convert_ids_to_tokens(row["prompt_ids"]), made


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_prompts_of_pairs_begin_with_bos_before_1(kind, tokenizer, tmp_path):
    trainer, config = getattr(fastrl, f"{kind}Trainer"), getattr(fastrl, f"{kind}Config")
    args = config(str(tmp_path), **QUIET)
    old, made = prompt_of(tokenizer, trainer, args, tokenizer=tokenizer)
    assert old == ["<bos>", "the", "cat"] and made._api_generation == "0.11"
    new, made = prompt_of(tokenizer, trainer, args, processing_class=tokenizer)
    assert new == ["the", "cat"] and made._api_generation == "1"
    fastrl.set_api("0.11")
    pinned, _ = prompt_of(tokenizer, trainer, args, processing_class=tokenizer)
    assert pinned == old


def test_dpo_third_positional_by_its_type(tokenizer, tmp_path):
    args = TrainingArguments(str(tmp_path), **QUIET)
    made = quietly(
        fastrl.DPOTrainer, model(), model(), 0.4, 0.1, "ipo", args, None, -100, 0, "keep_end",
        PAIRS, None, tokenizer,
    )  # fmt: skip
    told = made.args
    assert (told.beta, told.label_smoothing, told.loss_type) == (0.4, 0.1, ["ipo"])
    # What 0.7 had in the place of fields that were not given.
    assert (told.max_length, told.truncation_mode, told.f_alpha_divergence_coef) == (
        512,
        "keep_end",
        1.0,
    )
    config = fastrl.DPOConfig(str(tmp_path), **QUIET)
    made = fastrl.DPOTrainer(
        model(), model(), config, train_dataset=PAIRS, processing_class=tokenizer
    )
    assert made.args is config


def test_dpo_losses_of_old_names(tmp_path):
    with pytest.raises(ValueError, match=r"loss_type='kto_pair' is none of sigmoid"):
        fastrl.DPOConfig(str(tmp_path), loss_type="kto_pair", **QUIET)
    config = fastrl.DPOConfig(
        str(tmp_path), f_divergence_type=fastrl.FDivergenceType.JS_DIVERGENCE, **QUIET
    )
    assert config.f_divergence_type == "js_divergence"
    assert type(config.f_divergence_type) is str  # as a report or a YAML file can hold it


def test_get_batch_samples_by_its_first_argument(tokenizer, tmp_path):
    args = fastrl.DPOConfig(str(tmp_path), max_length=6, **QUIET)
    seen = []

    class Mine(fastrl.DPOTrainer):
        def get_batch_samples(self, model, batch):
            seen.append(model)
            return super().get_batch_samples(model, batch)

    made = Mine(model(), model(), args, train_dataset=PAIRS, processing_class=tokenizer)
    batch = {
        "prompt_input_ids": torch.tensor([[3, 4], [3, 4]]),
        "prompt_attention_mask": torch.ones(2, 2, dtype=torch.long),
        "reference_output": torch.tensor([[3, 4, 5, 2], [3, 4, 8, 2]]),
    }
    policy, reference = made.get_batch_samples(made.model, batch)
    assert reference == ["the cat sat", "the cat mat"]
    assert all(text.startswith("the cat") for text in policy) and seen == [made.model]
    batches, _ = made.get_batch_samples(iter([{"labels": torch.ones(1, 3)}]), 2, "cpu")
    assert len(batches) == 1 and len(seen) == 1  # transformers' loop does not see the override


# --- RewardTrainer --------------------------------------------------------------------------------


def test_reward_rows_by_their_columns(tokenizer, tmp_path):
    rows = {
        "input_ids_chosen": [[3, 4, 5], [3, 4]],
        "attention_mask_chosen": [[1, 1, 1], [1, 1]],
        "input_ids_rejected": [[3, 4, 8], [3]],
        "attention_mask_rejected": [[1, 1, 0], [1]],
    }
    args = fastrl.RewardConfig(str(tmp_path), **QUIET)
    classifier = model(GPT2ForSequenceClassification)
    made = quietly(
        fastrl.RewardTrainer, classifier, args, train_dataset=Dataset.from_dict(rows),
        tokenizer=tokenizer,
    )  # fmt: skip
    assert made.train_dataset["chosen_ids"][:] == [[3, 4, 5], [3, 4]]
    assert made.train_dataset["rejected_ids"][:] == [[3, 4], [3]]
    made = fastrl.RewardTrainer(
        model(GPT2ForSequenceClassification), args, train_dataset=PAIRS, processing_class=tokenizer
    )
    assert made.train_dataset["chosen_ids"][0] == [3, 4, 5, 2]


# --- the configs' defaults ------------------------------------------------------------------------

# Config -> fields that had another default in 0.11 (or in 0.7, where it was there already).
OLD = {
    "SFTConfig": {"learning_rate": 5e-5, "packing_strategy": "wrapped"},
    "DPOConfig": {
        "learning_rate": 5e-5,
        "max_length": 512,
        "truncation_mode": "keep_end",
        "f_alpha_divergence_coef": 1.0,
        "ref_model_mixup_alpha": 0.9,
        "ref_model_sync_steps": 64,
    },
    "KTOConfig": {"learning_rate": 5e-7, "max_length": 512},
    "RewardConfig": {"learning_rate": 5e-5, "max_length": None},
    "RLOOConfig": {
        "learning_rate": 5e-5,
        "max_completion_length": 53,
        "num_iterations": 4,
        "temperature": 0.7,
    },
    "OnlineDPOConfig": {"learning_rate": 5e-7},
    "PPOv2Config": {"learning_rate": 5e-5},
}
TRAINING = {"gradient_checkpointing": False, "logging_nan_inf_filter": True, "bf16": False}


@pytest.mark.parametrize("name", OLD)
def test_defaults_of_configs_by_the_pin(name):
    cls = getattr(fastrl, name)
    today = cls("out", **QUIET)
    for pin in ("0.7", "0.11"):
        fastrl.set_api(pin)
        then = cls("out", **QUIET)
        for field, value in (OLD[name] | TRAINING).items():
            assert getattr(then, field) == value, field
        assert then.logging_steps == (1 if name in ("PPOv2Config", "RLOOConfig") else 500)
        given = cls("out", learning_rate=0.5, **QUIET)  # what is given is what it is
        assert given.learning_rate == 0.5
        assert dataclasses.replace(today) == today  # nor does a copy change
    fastrl.set_api("1")
    assert cls("out", **QUIET).learning_rate == today.learning_rate


@pytest.mark.parametrize("pin", ["0.7", "0.11"])
@pytest.mark.parametrize("kind", ["file and line", "into dataclasses", "patched"])
def test_command_lines_have_the_pins_defaults(tmp_path, kind, pin):
    own = (fastrl.ScriptArguments, fastrl.DPOConfig, fastrl.ModelConfig)

    def read(parser, *words):
        words = ["--output_dir", str(tmp_path), "--use_cpu", "True", *words]
        if kind == "file and line":
            return parser.parse_args_and_config(words)
        return parser.parse_args_into_dataclasses(words)

    def defaults(config, model):
        found = (config.learning_rate, config.max_length, config.logging_steps)
        return *found, config.truncation_mode, config.gradient_checkpointing, model.dtype

    today = (1e-6, 1024, 10, "keep_start", True, "float32")
    if kind == "patched":
        patch_transformers()
    try:
        make = HfArgumentParser if kind == "patched" else fastrl.TrlParser
        parser, mine, changed = make(own), make(own), make(own)
        assert defaults(*read(make(own))[1:]) == today
        fastrl.set_api(pin)
        assert defaults(*read(parser)[1:]) == (5e-5, 512, 500, "keep_end", False, None)
        assert read(parser, "--max_length", "1024")[1].max_length == 1024
        mine.set_defaults(learning_rate=1e-6)  # today's, but chosen
        assert read(mine)[1].learning_rate == 1e-6
        changed.set_defaults(learning_rate=0.25)
        assert read(changed)[1].learning_rate == 0.25
        fastrl.set_api(None)
        assert defaults(*read(parser)[1:]) == today
    finally:
        restore_transformers()


def test_a_file_and_a_class_of_ones_own_win_over_the_pins_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nlearning_rate: 1.0e-6\n")

    @dataclasses.dataclass
    class Own(fastrl.DPOConfig):
        max_length: int | None = 77

    fastrl.set_api("0.11")
    (read,) = fastrl.TrlParser(fastrl.DPOConfig).parse_args_and_config(["--config", str(file)])
    assert (read.learning_rate, read.max_length) == (1e-6, 512)
    parser = fastrl.TrlParser(fastrl.DPOConfig)
    assert parser.set_defaults_with_config(learning_rate=1e-6) == []
    (read,) = parser.parse_args_and_config(["--output_dir", str(tmp_path), "--use_cpu", "True"])
    assert (read.learning_rate, read.max_length) == (1e-6, 512)
    (read,) = fastrl.TrlParser(Own).parse_args_and_config(["--config", str(file)])
    assert read.max_length == Own("out", use_cpu=True).max_length == 77


def test_a_trainer_without_config_takes_the_pins_defaults(tokenizer):
    def lr(pin, **given):
        fastrl.set_api(pin)
        return fastrl.SFTTrainer(
            model(), train_dataset=TEXTS, processing_class=tokenizer, **given
        ).args

    assert lr(None).learning_rate == lr("1").learning_rate == 2e-5
    assert lr("0.7").learning_rate == lr("0.11").learning_rate == 5e-5
    plain = TrainingArguments("out", learning_rate=0.25, **QUIET)
    for pin in (None, "0.7", "1"):
        assert lr(pin, args=plain).learning_rate == 0.25
    assert lr("0.7", args=plain).packing_strategy == "wrapped"
    assert lr("1", args=plain).packing_strategy == "bfd"


def test_model_config_dtype_by_name_and_pin():
    with pytest.warns(FutureWarning, match="torch_dtype= is dtype="):
        config = fastrl.ModelConfig(torch_dtype="bfloat16")
    assert config.dtype == config.torch_dtype == "bfloat16"
    assert fastrl.ModelConfig().dtype == "float32"
    fastrl.set_api("0.11")
    assert fastrl.ModelConfig().dtype is None


def test_trust_remote_code_of_the_model_or_of_the_trainer(tmp_path):
    """It was ModelConfig's to 1.15 and is the trainers' since: one flag sets what is there."""
    words = ["--trust_remote_code"]
    out = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    both = fastrl.TrlParser((fastrl.SFTConfig, fastrl.ModelConfig))
    for parse in (both.parse_args_and_config, both.parse_args_into_dataclasses):
        training, own = parse([*words, *out])
        assert training.trust_remote_code is own.trust_remote_code is True
        training, own = parse(out)
        assert training.trust_remote_code is own.trust_remote_code is False
    alone = fastrl.TrlParser((TrainingArguments, fastrl.ModelConfig))
    _, own = alone.parse_args_and_config([*words, *out])
    assert own.trust_remote_code is True
    _, own = alone.parse_args_into_dataclasses([*out, "--trust_remote_code=false"])
    assert own.trust_remote_code is False
    file = tmp_path / "run.yaml"
    file.write_text("trust_remote_code: true\n")
    _, own = alone.parse_args_and_config([*out, "--config", str(file)])
    assert own.trust_remote_code is True
    assert fastrl.ModelConfig(trust_remote_code=True).trust_remote_code is True
    assert "trust_remote_code" not in {f.name for f in dataclasses.fields(fastrl.ModelConfig)}


# --- RLOOTrainer, OnlineDPOTrainer ----------------------------------------------------------------


def test_rloo_first_positional_is_the_config_in_0_11(tokenizer):
    made = recorder(fastrl.RLOOTrainer, RLOO, fastrl.RLOOConfig)
    config = fastrl.RLOOConfig("out", **QUIET)
    policy, start, judge = model(), model(), model(GPT2ForSequenceClassification)
    with pytest.warns(FutureWarning, match="ref_policy= has no effect: the reference is the model"):
        old = made(config, tokenizer, policy, start, judge, TEXTS)
    wanted = {
        "args": config,
        "processing_class": tokenizer,
        "model": policy,
        "reward_funcs": judge,
        "train_dataset": TEXTS,
    }
    assert old.given == wanted and old._api_generation == "0.11"
    named = quietly(
        made, config=config, tokenizer=tokenizer, policy=policy, ref_policy=None,
        reward_model=judge, train_dataset=TEXTS,
    )  # fmt: skip
    assert named.given == wanted
    modern = made(policy, judge, config, TEXTS, processing_class=tokenizer)
    assert modern.given == wanted and modern._api_generation == "1"


def test_online_dpo_third_positional_by_its_type(tokenizer):
    made = recorder(fastrl.OnlineDPOTrainer, ONLINE_DPO, fastrl.OnlineDPOConfig)
    config = fastrl.OnlineDPOConfig("out", **QUIET)
    policy, judge = model(), model(GPT2ForSequenceClassification)
    old = quietly(made, policy, None, judge, None, config, None, TEXTS, None, tokenizer)
    assert old.given["reward_funcs"] is judge and old.given["args"] is config
    assert old.given["train_dataset"] is TEXTS and old.given["processing_class"] is tokenizer
    modern = made(policy, None, judge, config, None, TEXTS)
    assert modern.given["args"] is config and modern.given["train_dataset"] is TEXTS
    assert fastrl.experimental.online_dpo.OnlineDPOTrainer is fastrl.OnlineDPOTrainer
    assert fastrl.trainer.online_dpo_trainer.OnlineDPOTrainer is fastrl.OnlineDPOTrainer


# --- functions ------------------------------------------------------------------------------------


def test_apply_chat_template_tokenizer_by_either_name(tokenizer):
    tokenizer.chat_template = CHAT
    row = {"messages": [{"role": "user", "content": "the cat"}]}
    wanted = {"text": "user the cat "}
    for function in (fastrl.apply_chat_template, fastrl.maybe_apply_chat_template):
        assert function(row, tokenizer) == function(row, processing_class=tokenizer) == wanted
        assert function(row, tokenizer=tokenizer) == wanted
        with pytest.raises(TypeError, match="tokenizer"):
            function(row, tokenizer, tokenizer=tokenizer)


def test_unpair_preference_dataset_num_proc_of_0_11(tokenizer):
    wanted = [True, True, False, False]
    for made in (
        fastrl.unpair_preference_dataset(PAIRS, num_proc=None),
        fastrl.maybe_unpair_preference_dataset(PAIRS, num_proc=None, desc="Pairs"),
        fastrl.unpair_preference_dataset(PAIRS),
    ):
        assert made["label"][:] == wanted


def test_create_reference_model_is_one_function_at_all_paths():
    paths = (fastrl.models, fastrl.models.utils, fastrl.models.modeling_base)
    for module in (*paths, fastrl.experimental.utils, fastrl):
        reference = module.create_reference_model(model())
        assert module.create_reference_model is fastrl.create_reference_model
    assert not any(p.requires_grad for p in reference.parameters())


def test_unwrap_model_for_generation_third_positional():
    unwrap = fastrl.models.unwrap_model_for_generation
    accelerator = SimpleNamespace(unwrap_model=lambda m: m)
    plain = model()
    plain.gradient_checkpointing_enable()
    for third in (True, False):  # gather_deepspeed3_params, which this model has no use for
        with unwrap(plain, accelerator, third, {"max_new_tokens": 3}) as got:
            assert got is plain and not got.is_gradient_checkpointing
            assert got.generation_config.max_new_tokens == 3
        assert plain.is_gradient_checkpointing
        assert plain.generation_config.max_new_tokens is None
    wrapper = fastrl.AutoModelForCausalLMWithValueHead(model())
    bare = pytest.raises(ValueError, match="is_peft_model=True, but GPT2LMHeadModel has no adapter")
    with bare, unwrap(wrapper, accelerator, True):  # as in the releases that had the wrappers
        pass
    with unwrap(wrapper, accelerator, gather_deepspeed3_params=True) as got:
        assert got is wrapper
    fastrl.set_api("0.11")
    with pytest.raises(ValueError, match="is_peft_model=True"), unwrap(plain, accelerator, True):
        pass


def test_unwrap_model_for_generation_switches_adapters_off():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        model(), peft.LoraConfig(target_modules=["c_attn"], init_lora_weights=False)
    )
    wrapper = fastrl.AutoModelForCausalLMWithValueHead(adapted).eval()
    accelerator = SimpleNamespace(unwrap_model=lambda m: m)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        policy = wrapper(ids)[0]
        with adapted.disable_adapter():
            base = wrapper(ids)[0]
        with fastrl.models.unwrap_model_for_generation(wrapper, accelerator, True) as reference:
            assert torch.equal(reference(ids)[0], base)
        with fastrl.models.unwrap_model_for_generation(wrapper, accelerator) as same:
            assert torch.equal(same(ids)[0], policy)
    assert not torch.allclose(policy, base)


def test_exact_div_of_three_and_of_five_arguments():
    from fastrl.trainer.utils import exact_div

    assert exact_div(12, 4) == exact_div(12, 4, "why") == exact_div(12, 4, "a", "b", "why") == 3
    with pytest.raises(ValueError, match="why"):
        exact_div(12, 5, "why")
    with pytest.raises(ValueError, match=r"why.*rows=12 .*parts=5"):
        exact_div(12, 5, "rows", "parts", "why")


def test_entropy_from_logits_of_both_modules():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -torch.inf, 0.0, -torch.inf]])
    wanted = torch.log(torch.tensor([4.0, 2.0]))
    assert torch.allclose(fastrl.trainer.utils.entropy_from_logits(logits, chunk_size=1), wanted)
    assert torch.allclose(fastrl.core.entropy_from_logits(logits[:1]), wanted[:1])


def test_running_moments_are_tensors_that_a_file_can_hold(tmp_path):
    accelerator = Accelerator(cpu=True)
    running = fastrl.trainer.utils.RunningMoments(accelerator)
    running.update(torch.tensor([1.0, 2.0, 6.0]))
    assert running.std.to(torch.float16).item() == pytest.approx(7**0.5, rel=1e-3)  # as 0.7's PPO
    running.save_to_json(tmp_path / "running.json")  # as 0.11's
    kept = fastrl.RunningMoments.load_from_json(accelerator, tmp_path / "running.json")
    assert float(kept.mean) == 3.0 and float(kept.std) == pytest.approx(7**0.5)
    assert json.loads((tmp_path / "running.json").read_text())["count"] == pytest.approx(3)


def test_copies_take_along_what_is_no_field_of_the_class():
    config = fastrl.ModelConfig("x", trust_remote_code=True)
    script = fastrl.ScriptArguments("rows", gradient_checkpointing_use_reentrant=True)
    model, rows = dataclasses.replace(config, lora_r=8), dataclasses.replace(script)
    assert (model.trust_remote_code, model.lora_r, model.model_name_or_path) == (True, 8, "x")
    assert rows.gradient_checkpointing_use_reentrant is True and rows == script
    assert dataclasses.replace(config, trust_remote_code=False).trust_remote_code is False
    assert dataclasses.asdict(config)["trust_remote_code"] is True
    assert dataclasses.asdict(script)["gradient_checkpointing_use_reentrant"] is True
    assert pickle.loads(pickle.dumps(model)).trust_remote_code is True

    @dataclasses.dataclass
    class Own(fastrl.ModelConfig):
        more: int = 1

        def __post_init__(self):
            super().__post_init__()

    assert [f.name for f in dataclasses.fields(Own)][-1] == "more"
    assert dataclasses.replace(Own("x", more=2), lora_r=8).more == 2


def test_trl_parser_of_0_11(tmp_path):
    types = (fastrl.DPOScriptArguments, TrainingArguments)
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {tmp_path}\nbeyond: 3\ndataset_name: rows\n")
    words = ["--config", str(file), "--use_cpu", "True"]
    script, training = fastrl.TrlParser(types, ignore_extra_args=True).parse_args_and_config(words)
    assert script.dataset_name == "rows" and script.config is None
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}
    words += ["--gradient_checkpointing_use_reentrant", "True"]
    _, training = fastrl.TrlParser(parsers=types, ignore_extra_args=True).parse_args_and_config(
        words
    )
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": True}
    with pytest.raises(ValueError, match="unknown --beyond"):
        fastrl.TrlParser(types).parse_args_and_config(words)
    with pytest.raises(TypeError, match="parsers= is dataclass_types="):
        fastrl.TrlParser(types, parsers=types)
    modern = fastrl.TrlParser((fastrl.ScriptArguments, TrainingArguments))
    out = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    script, training = modern.parse_args_and_config(out)
    assert script.gradient_checkpointing_use_reentrant is False
    assert training.gradient_checkpointing_kwargs is None  # nothing was asked for
    flag = "--gradient_checkpointing_use_reentrant"
    script, training = modern.parse_args_and_config([*out, flag])
    assert script.gradient_checkpointing_use_reentrant is True
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": True}


def test_reward_script_arguments_name_the_dataset_of_0_11():
    from fastrl.commands.cli_utils import RewardScriptArguments

    assert RewardScriptArguments().dataset_name == "trl-lib/ultrafeedback_binarized"


def test_create_model_card_by_the_class():
    step = list(inspect.signature(fastrl.PPOTrainer.create_model_card).parameters)
    train = list(inspect.signature(fastrl.SFTTrainer.create_model_card).parameters)
    assert step == ["self", "path", "model_name"]
    assert train == ["self", "model_name", "dataset_name", "tags"]


def test_collators_are_those_of_their_path():
    from transformers import DataCollatorForLanguageModeling

    own = fastrl.trainer.sft_trainer.DataCollatorForLanguageModeling
    assert own is not DataCollatorForLanguageModeling
    assert own(pad_token_id=0)([{"input_ids": [3], "labels": [3]}])["labels"].tolist() == [[3]]


def test_predicates_are_at_the_top_level_and_in_import_utils():
    for name in ("peft", "wandb", "diffusers", "deepspeed"):
        predicate = getattr(fastrl, f"is_{name}_available")
        assert predicate is getattr(fastrl.import_utils, f"is_{name}_available")
        assert predicate() is (importlib.util.find_spec(name) is not None)
