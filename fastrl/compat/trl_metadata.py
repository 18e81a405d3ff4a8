"""What `importlib.metadata` says of `trl` where fastrl answers for it."""

from __future__ import annotations

from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import fastrl
from fastrl.compat.as_trl import trl_version


class TrlDistribution(Distribution):
    """A distribution `trl` of the release that the pinned API stands for."""

    def read_text(self, filename: str) -> str | None:
        """The text of a metadata file, or None for those that it does not have."""
        if filename == "METADATA":
            summary = f"fastrl {fastrl.__version__} under the name of TRL"
            return (
                f"Metadata-Version: 2.1\nName: trl\nVersion: {trl_version()}\nSummary: {summary}\n"
            )
        return "trl\n" if filename == "top_level.txt" else None

    def locate_file(self, path: Any) -> Path:
        """Where a file of it would lie: beside fastrl."""
        return Path(fastrl.__path__[0]).parent / path
