"""NashMDTrainer and XPOTrainer as they were called in TRL 0.11: no judge stood among the others."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.online_dpo import ONLINE_DPO

NASH_MD = LegacyInit(
    order=tuple(name for name in ONLINE_DPO.order if name != "judge"),
    changes=ONLINE_DPO.changes,
    first="0.11",
)
