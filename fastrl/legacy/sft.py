"""SFTTrainer and SFTConfig as they were called in TRL 0.7 to 0.11 (fields: to 0.19)."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Ignored, Moved, Renamed, Table
from fastrl.legacy.trainer_arguments import TRAINER_CHANGES, TRAINER_ORDER
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

_PACKS_EXACTLY = "packing works on token counts, in one pass over the dataset"

_DEFAULTS = {"packing_strategy": "wrapped"}  # rows run on from block to block, as they did

SFT = LegacyInit(
    order=(
        *TRAINER_ORDER,
        "peft_config",
        "dataset_text_field",
        "packing",
        "formatting_func",
        "max_seq_length",
        "infinite",
        "num_of_sequences",
        "chars_per_token",
        "dataset_num_proc",
        "dataset_batch_size",
        "neftune_noise_alpha",
        "model_init_kwargs",
        "dataset_kwargs",
        "eval_packing",
    ),
    changes={
        **TRAINER_CHANGES,
        "dataset_text_field": Moved("dataset_text_field"),
        "packing": Moved("packing"),
        "max_seq_length": Moved("max_length"),
        "infinite": Ignored("max_steps repeats the dataset as often as it takes"),
        "num_of_sequences": Ignored(_PACKS_EXACTLY),
        "chars_per_token": Ignored(_PACKS_EXACTLY),
        "dataset_num_proc": Moved("dataset_num_proc"),
        "dataset_batch_size": Ignored("rows are prepared in batches of a fitting size"),
        "neftune_noise_alpha": Moved("neftune_noise_alpha"),
        "model_init_kwargs": Moved("model_init_kwargs"),
        "dataset_kwargs": Moved("dataset_kwargs"),
        "eval_packing": Moved("eval_packing"),
    },
    defaults=_DEFAULTS,
    rows=(
        "texts were learned without EOS at their end, which they have now; prompt and completion "
        "were learned as one chat where there is a chat template, now the completion alone is"
    ),
)

SFT_DEFAULTS = defaults_of(**_DEFAULTS)

SFT_FIELDS: Table = {
    **TRAINING_ARGUMENTS,
    "chars_per_token": Ignored(_PACKS_EXACTLY),
    "dataset_batch_size": Ignored("rows are prepared in batches of a fitting size"),
    "max_seq_length": Renamed("max_length"),
    "num_of_sequences": Ignored(_PACKS_EXACTLY),
    "use_liger": Renamed("use_liger_kernel"),
}
