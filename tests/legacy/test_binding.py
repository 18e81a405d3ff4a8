"""Old calls of trainers, bound to today's constructors."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from dataclasses import dataclass

import pytest
from transformers import TrainingArguments

from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.dpo import DPO, DPO_FIELDS
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.kto import KTO
from fastrl.legacy.reward import REWARD
from fastrl.legacy.sft import SFT, SFT_FIELDS

LEARNING_RATE = 2e-5


class Own:
    """What a config's class needs to offer: itself from plain TrainingArguments."""

    @classmethod
    def of(cls, args, output_dir):
        if isinstance(args, cls):
            return args
        if args is not None and type(args) is not TrainingArguments:
            raise TypeError(f"args must be a {cls.__name__}")
        if args is None:
            return cls(output_dir)
        names = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
        return cls(**{name: getattr(args, name) for name in names})


@accepts_legacy_fields(SFT_FIELDS)
@dataclass
class SFTConfig(Own, TrainingArguments):
    learning_rate: float = LEARNING_RATE
    max_length: int | None = 1024
    packing: bool = False
    packing_strategy: str = "bfd"
    dataset_text_field: str = "text"
    dataset_num_proc: int | None = None
    model_init_kwargs: dict | None = None


@accepts_legacy_fields(DPO_FIELDS)
@dataclass
class DPOConfig(Own, TrainingArguments):
    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    max_length: int | None = 1024
    truncation_mode: str = "keep_start"
    disable_dropout: bool = True
    f_alpha_divergence_coef: float = 0.5
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512


class Recorder:
    """A trainer whose constructor keeps what it got."""

    def keep(self, given):
        self.given = {k: v for k, v in given.items() if k not in ("self", "__class__")}
        self.generation_seen = self._api_generation
        self.processing_class = given["processing_class"]


@accepts_legacy(SFT, SFTConfig)
class SFTTrainer(Recorder):
    def __init__(
        self,
        model,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_loss_func=None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        optimizer_cls_and_kwargs=None,
        preprocess_logits_for_metrics=None,
        quantization_config=None,
        peft_config=None,
        formatting_func=None,
    ):
        self.keep(locals())


PAIRED = (
    "model, ref_model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, "
    "processing_class=None, compute_metrics=None, callbacks=None, optimizers=(None, None), "
    "quantization_config=None, peft_config=None"
)


@accepts_legacy(DPO, DPOConfig)
class DPOTrainer(Recorder):
    exec(f"def __init__(self, {PAIRED}): self.keep(locals())")


@accepts_legacy(KTO, DPOConfig)
class KTOTrainer(Recorder):
    exec(f"def __init__(self, {PAIRED}): self.keep(locals())")


@accepts_legacy(REWARD, SFTConfig)
class RewardTrainer(Recorder):
    def __init__(
        self,
        model,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        optimizer_cls_and_kwargs=None,
        preprocess_logits_for_metrics=None,
        quantization_config=None,
        peft_config=None,
    ):
        self.keep(locals())


class Tokenizer:
    """As a tokenizer: callable, and able to decode."""

    def __call__(self, text):
        return text

    def decode(self, ids):
        return ids


TOKENIZER = Tokenizer()
ROWS = [{"text": "a"}]


def collate(rows):
    return rows


def measure(prediction):
    return {}


@pytest.fixture
def told(recwarn):
    """told() -> the text of the one FutureWarning so far."""

    def text():
        found = [
            w for w in recwarn if w.category is FutureWarning and "old spell" in str(w.message)
        ]
        assert len(found) == 1, [str(w.message) for w in recwarn]
        assert (
            found[0].category is FutureWarning and found[0].filename == __file__
        )  # it points at the caller
        return str(found[0].message)

    return text


def test_a_modern_call_passes_through_untouched_and_silent():
    config = SFTConfig("out", use_cpu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_name = SFTTrainer("m", args=config, train_dataset=ROWS, processing_class=TOKENIZER)
        by_place = SFTTrainer(
            "m", config, collate, ROWS, None, TOKENIZER, None, measure, [], (1, 2)
        )
    assert by_name.given["args"] is config and by_place.given["args"] is config
    assert by_place.given["compute_metrics"] is measure
    assert by_place.given["callbacks"] == []
    assert by_name.generation_seen == by_place.generation_seen == "1"


def test_modern_arguments_left_out_stay_out():
    trainer = SFTTrainer("m", compute_loss_func=measure)
    assert trainer.given["args"] is None
    assert trainer.given["compute_loss_func"] is measure


def test_the_visible_signature_is_todays():
    names = list(inspect.signature(SFTTrainer).parameters)
    assert names[:6] == [
        "model",
        "args",
        "data_collator",
        "train_dataset",
        "eval_dataset",
        "processing_class",
    ]
    assert "tokenizer" not in names


def test_sft_as_in_0_7(told):
    trainer = SFTTrainer(
        "m",
        tokenizer=TOKENIZER,
        train_dataset=ROWS,
        dataset_text_field="words",
        max_seq_length=77,
        packing=True,
        neftune_noise_alpha=5.0,
        chars_per_token=3.6,
        model_init=None,
    )
    config = trainer.given["args"]
    assert type(config) is SFTConfig
    assert (config.dataset_text_field, config.max_length, config.packing) == ("words", 77, True)
    assert config.neftune_noise_alpha == 5.0
    assert config.packing_strategy == "wrapped"  # the blocks of that time
    # and the training defaults of that time, for there was no other config
    plain = TrainingArguments("tmp_trainer")
    assert config.learning_rate == plain.learning_rate != LEARNING_RATE
    assert config.logging_steps == plain.logging_steps
    assert trainer.given["processing_class"] is TOKENIZER
    assert trainer.generation_seen == "0.7"
    message = told()
    for phrase in (
        "tokenizer= is processing_class=",
        "max_seq_length= is SFTConfig(max_length=...)",
        "packing= is SFTConfig(packing=...)",
        "chars_per_token= has no effect",
    ):
        assert phrase in message
    assert "model_init" not in message


def test_plain_training_arguments_keep_every_field(told):
    args = TrainingArguments("out", learning_rate=3e-3, hub_token="secret", use_cpu=True, seed=9)
    config = SFTTrainer("m", args=args, tokenizer=TOKENIZER).given["args"]
    for field in dataclasses.fields(TrainingArguments):
        assert getattr(config, field.name) == getattr(args, field.name), field.name
    assert config.hub_token == "secret"
    assert "tokenizer" in told()


def test_an_explicit_keyword_wins_over_the_config_which_stays_as_it_was(told):
    config = SFTConfig("out", max_length=10, learning_rate=7e-4, use_cpu=True)
    trainer = SFTTrainer("m", config, tokenizer=TOKENIZER, max_seq_length=20, packing=None)
    got = trainer.given["args"]
    assert (got.max_length, config.max_length) == (20, 10)
    assert got.learning_rate == 7e-4
    assert got.packing is False and got.packing_strategy == "bfd"
    assert trainer.generation_seen == "0.11"
    assert "packing=" not in told()


def test_dpo_third_positional_is_beta_if_a_number():
    args = TrainingArguments("out", use_cpu=True)
    with pytest.warns(FutureWarning, match="by name"):
        old = DPOTrainer("m", "ref", 0.3, 0.05, "ipo", args, None, -100, 0, "keep_end", ROWS)
    config = old.given["args"]
    assert (config.beta, config.label_smoothing, config.loss_type) == (0.3, 0.05, "ipo")
    assert (config.max_length, config.truncation_mode) == (512, "keep_end")
    assert config.output_dir == "out"
    assert old.given["ref_model"] == "ref" and old.given["train_dataset"] is ROWS
    assert old.generation_seen == "0.7"


def test_dpo_third_positional_is_args_if_a_config():
    config = DPOConfig("out", use_cpu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = DPOTrainer("m", None, config, collate, ROWS)
    assert new.given["args"] is config and new.given["train_dataset"] is ROWS
    assert new.generation_seen == "1"


def test_kto_fourth_positional_is_a_dataset_or_a_collator():
    config = DPOConfig("out", use_cpu=True)
    with pytest.warns(FutureWarning, match="by name"):
        old = KTOTrainer("m", None, config, ROWS, None, TOKENIZER, collate)
    assert old.given["train_dataset"] is ROWS and old.given["data_collator"] is collate
    assert old.given["processing_class"] is TOKENIZER and old.generation_seen == "0.11"
    new = KTOTrainer("m", None, config, collate, ROWS, None, TOKENIZER)
    assert new.given["data_collator"] is collate and new.given["processing_class"] is TOKENIZER


def test_reward_tells_orders_apart_where_they_part():
    config = SFTConfig("out", use_cpu=True)
    with pytest.warns(FutureWarning):
        old = RewardTrainer(
            "m", config, None, ROWS, None, TOKENIZER, None, measure, [], (None, None), None, 99
        )
    assert old.given["compute_metrics"] is measure and old.given["callbacks"] == []
    assert old.given["args"].max_length == 99
    new = RewardTrainer("m", config, None, ROWS, None, TOKENIZER, measure, [], (None, None))
    assert new.given["compute_metrics"] is measure and new.given["callbacks"] == []


def test_what_cannot_be_bound_is_refused():
    with pytest.raises(TypeError, match=r"DPOTrainer: argument 3 \(args\) cannot be 'x' \(str\)"):
        DPOTrainer("m", None, "x")
    with pytest.raises(TypeError, match="processing_class= both by that name and by an older one"):
        SFTTrainer("m", tokenizer=TOKENIZER, processing_class=TOKENIZER)
    with pytest.raises(TypeError, match="args= twice"):
        SFTTrainer("m", None, args=SFTConfig("out", use_cpu=True))
    with pytest.raises(TypeError, match="'tokeniser'; did you mean 'tokenizer'"):
        SFTTrainer("m", tokeniser=TOKENIZER)
    with pytest.raises(TypeError, match=r"a field: args=SFTConfig\(max_length=...\)"):
        SFTTrainer("m", max_length=5)
    with pytest.raises(TypeError, match=r"model_init=.*model=model_init"):
        SFTTrainer(None, model_init=measure)
    with pytest.raises(TypeError, match=r"reference_free=True: .*CPO"):
        DPOTrainer("m", reference_free=True)
    with pytest.raises(TypeError, match="label_pad_token_id=0"):
        DPOTrainer("m", label_pad_token_id=0)


def test_another_trainers_config_is_refused_in_a_legacy_call_too():
    with pytest.raises(TypeError, match="args must be a SFTConfig"):
        SFTTrainer("m", DPOConfig("out", use_cpu=True), tokenizer=TOKENIZER)


def test_harmless_values_of_refused_arguments_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = DPOTrainer(
            "m", label_pad_token_id=-100, is_encoder_decoder=False, ref_adapter_name=None
        )
    assert trainer.generation_seen == "1"


def test_old_loss_name():
    with pytest.warns(FutureWarning):
        trainer = DPOTrainer("m", loss_type="aot_pair")
    assert trainer.given["args"].loss_type == "aot_unpaired"


def test_tokenizer_reads_and_sets_processing_class():
    trainer = SFTTrainer("m", processing_class=TOKENIZER)
    assert trainer.tokenizer is TOKENIZER
    trainer.tokenizer = "other"
    assert trainer.processing_class == "other"


def test_a_subclass_states_the_generation_of_the_whole_call():
    @accepts_legacy(SFT, SFTConfig)
    class Distiller(SFTTrainer):
        def __init__(self, model, teacher=None, **kwargs):
            super().__init__(model, **kwargs)

    with pytest.warns(FutureWarning, match="^Distiller"):
        trainer = Distiller("m", tokenizer=TOKENIZER, train_dataset=ROWS)
    assert trainer._api_generation == "0.7"
    assert trainer.given["processing_class"] is TOKENIZER and trainer.given["train_dataset"] is ROWS
