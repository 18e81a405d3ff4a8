"""BCOTrainer and BCOConfig as they were called in TRL 0.11 (fields: to 0.28)."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Table
from fastrl.legacy.kto import KTO
from fastrl.legacy.pairs import PAIRED_ARGUMENTS, PAIRED_FIELDS
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

_THEN = {"max_length": 512, "max_prompt_length": 128}

BCO = LegacyInit(
    order=(*KTO.order, "embedding_func", "embedding_tokenizer"),
    changes=PAIRED_ARGUMENTS,
    defaults=_THEN,
    first="0.11",
)

BCO_DEFAULTS = defaults_of(**_THEN)

BCO_FIELDS: Table = {
    **TRAINING_ARGUMENTS,
    **{name: change for name, change in PAIRED_FIELDS.items() if name != "max_prompt_length"},
}
