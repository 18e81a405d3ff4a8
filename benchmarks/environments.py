"""The peers' environments: made once under .venvs/, used unmodified.

`FASTRL_BENCH_TRL07`, `FASTRL_BENCH_TRL011`, `FASTRL_BENCH_TRL028` and `FASTRL_BENCH_TRL116` name an
interpreter to use instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Peer:
    """A library to race against, and what its environment holds."""

    name: str
    variable: str
    requirements: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where its environment is made."""
        return ROOT / ".venvs" / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return Path(os.environ.get(self.variable) or self.folder / "bin" / "python")

    @property
    def ready(self) -> bool:
        """Whether the environment is complete, or the variable names an interpreter."""
        if os.environ.get(self.variable):
            return self.python.exists()
        made = self.folder / "complete"
        return made.exists() and made.read_text().split() == list(self.requirements)


PEERS = (
    Peer(
        "trl-0.7.11",
        "FASTRL_BENCH_TRL07",
        (
            "trl==0.7.11",
            "torch==2.13.0",
            "numpy<2",
            "transformers==4.38.2",
            "accelerate==0.27.2",
            "peft==0.8.2",
            "datasets==2.17.1",
            "tokenizers<0.19",
            "huggingface_hub<0.24",
            "pyarrow<16",
            "diffusers==0.26.3",
        ),
    ),
    Peer(
        "trl-0.11.4",
        "FASTRL_BENCH_TRL011",
        (
            "trl==0.11.4",
            "torch==2.13.0",
            "numpy<2",
            "transformers==4.45.2",
            "accelerate==0.34.2",
            "peft==0.13.2",
            "datasets==2.21.0",
            "huggingface_hub<0.26",
            "diffusers==0.30.3",
        ),
    ),
    Peer(
        "trl-0.28.0",
        "FASTRL_BENCH_TRL028",
        # With later releases of transformers its Nash-MD draws no answers.
        (
            "trl==0.28.0",
            "torch==2.13.0",
            "transformers==5.0.0",
            "peft",
            "scikit-learn",
            "requests",
        ),
    ),
    Peer("trl-1.16.0", "FASTRL_BENCH_TRL116", ("trl==1.16.0", "torch==2.13.0", "peft")),
)


def make_missing() -> list[str]:
    """Make the environments that are not there; the names of those that could not be made."""
    failed = []
    for peer in PEERS:
        if peer.ready:
            print(f"{peer.name}: using {shown(peer.python)}")
            continue
        if not (3, 11) <= sys.version_info[:2] <= (3, 12):
            print(f"{peer.name}: needs Python 3.11 or 3.12, this is {sys.version.split()[0]}")
            failed.append(peer.name)
            continue
        print(f"{peer.name}: making {shown(peer.folder)} with {' '.join(peer.requirements)}")
        try:
            subprocess.run([sys.executable, "-m", "venv", str(peer.folder)], check=True)
            install = [str(peer.folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*install, *peer.requirements], check=True)
            (peer.folder / "complete").write_text("\n".join(peer.requirements) + "\n")
        except subprocess.CalledProcessError as error:
            print(f"{peer.name}: could not be made ({error}); its rows are left out")
            failed.append(peer.name)
    return failed


def shown(path: Path) -> str:
    """A path as seen from the repository, or only its name if it is elsewhere."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else f"…/{path.name}"
