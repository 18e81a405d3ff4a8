"""DPOTrainer and DPOConfig as they were called in TRL 0.7 to 0.11 (fields: to 1.0)."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Ignored, Moved, Refused, Table
from fastrl.legacy.pairs import PAIRED_ARGUMENTS, PAIRED_FIELDS, PAIRED_ROWS
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

_LOSSES = {"aot_pair": "aot_unpaired"}  # the same loss under the name that says what it compares
_NO_REFERENCE = "a loss without a reference is CPO's or ORPO's"
_NO_LOGITS = "logits of prompts are never computed"
_GIVEN_IS_USED = "a ref_model that is given is used"

_DEFAULTS = {
    "f_alpha_divergence_coef": 1.0,
    "max_length": 512,
    "ref_model_mixup_alpha": 0.9,
    "ref_model_sync_steps": 64,
    "truncation_mode": "keep_end",
}

DPO = LegacyInit(
    order=(
        "model",
        "ref_model",
        "beta",
        "label_smoothing",
        "loss_type",
        "args",
        "data_collator",
        "label_pad_token_id",
        "padding_value",
        "truncation_mode",
        "train_dataset",
        "eval_dataset",
        "tokenizer",
        "model_init",
        "callbacks",
        "optimizers",
        "preprocess_logits_for_metrics",
        "max_length",
        "max_prompt_length",
        "max_target_length",
        "peft_config",
        "is_encoder_decoder",
        "disable_dropout",
        "generate_during_eval",
        "compute_metrics",
        "precompute_ref_log_probs",
        "dataset_num_proc",
        "model_init_kwargs",
        "ref_model_init_kwargs",
        "model_adapter_name",
        "ref_adapter_name",
        "reference_free",
        "force_use_ref_model",
    ),
    changes={
        **PAIRED_ARGUMENTS,
        "beta": Moved("beta"),
        "label_smoothing": Moved("label_smoothing"),
        "loss_type": Moved("loss_type", _LOSSES),
        "force_use_ref_model": Ignored(_GIVEN_IS_USED),
        "reference_free": Refused(_NO_REFERENCE),
        "truncation_mode": Moved("truncation_mode"),
        "optimizer_cls_and_kwargs": Refused("write optimizers=(optimizer, scheduler)"),
    },
    defaults=_DEFAULTS,
    rows=PAIRED_ROWS,
)

DPO_DEFAULTS = defaults_of(**_DEFAULTS)

DPO_FIELDS: Table = {
    **TRAINING_ARGUMENTS,
    **PAIRED_FIELDS,
    "force_use_ref_model": Ignored(_GIVEN_IS_USED),
    "reference_free": Refused(_NO_REFERENCE),
    "tools": Refused("put them into the dataset, as a column tools"),
    "use_logits_to_keep": Ignored(_NO_LOGITS),
    "use_num_logits_to_keep": Ignored(_NO_LOGITS),
    "rpo_alpha": Refused("write loss_type=['sigmoid', 'sft'], loss_weights=[1.0, rpo_alpha]"),
}
