"""Old spellings that DPO and KTO have in common."""

from __future__ import annotations

from fastrl.legacy.changes import Ignored, Moved, Refused, Table
from fastrl.legacy.trainer_arguments import TRAINER_CHANGES

_CUT = "only max_length cuts, and only rows longer than it (a prompt as long as it is dropped)"
_LOAD_REFERENCE = "load the reference yourself and pass it as ref_model"
_ONE_ADAPTER = "train one adapter; the reference is its state at the start, or ref_model"
_GENERATE = "add LogCompletionsCallback to the callbacks"
_DECODER_ONLY = "only decoder-only models are trained on preferences"

PAIRED_ROWS = "prompts began with BOS, which now they do only if the tokenizer or template adds it"

# Since 0.8 these are fields of the config; in 0.7 they were arguments of DPOTrainer.
_EITHER: Table = {
    "generate_during_eval": Refused(_GENERATE),
    "is_encoder_decoder": Refused(_DECODER_ONLY),
    "label_pad_token_id": Refused("ignored positions are -100", (-100,)),
    "max_completion_length": Ignored(_CUT),
    "max_prompt_length": Ignored(_CUT),
    "max_target_length": Ignored(_CUT),
    "model_adapter_name": Refused(_ONE_ADAPTER, ("default",)),
    "padding_value": Ignored("padding is masked, whatever its id"),
    "ref_adapter_name": Refused(_ONE_ADAPTER),
    "ref_model_init_kwargs": Refused(_LOAD_REFERENCE, ({},)),
}

PAIRED_ARGUMENTS: Table = {
    **_EITHER,
    **TRAINER_CHANGES,
    "dataset_num_proc": Moved("dataset_num_proc"),
    "disable_dropout": Moved("disable_dropout"),
    "max_length": Moved("max_length"),
    "model_init_kwargs": Moved("model_init_kwargs"),
    "precompute_ref_log_probs": Moved("precompute_ref_log_probs"),
    "preprocess_logits_for_metrics": Refused("logits are never kept; override prediction_step"),
}

PAIRED_FIELDS: Table = {
    **_EITHER,
    "base_model_attribute_name": Ignored("the model itself knows where its head is"),
    "use_liger_loss": Ignored("the loss is always computed without keeping the logits"),
}
