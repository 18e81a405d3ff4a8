"""GKDTrainer and GKDConfig as they were called in TRL 0.11 (fields: to 0.19)."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Table
from fastrl.legacy.sft import SFT, SFT_FIELDS

GKD = LegacyInit(
    order=("teacher_model", "args", "model"),
    changes=SFT.changes,
    first="0.11",
    rows=(
        "beta was the student's share in the mixture, and is the teacher's now (at 0.5 they are "
        "one)"
    ),
)

GKD_FIELDS: Table = SFT_FIELDS
