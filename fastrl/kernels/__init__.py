"""Triton kernels: the files live in `kernels/` at the root of a checkout, here in an installed wheel."""

from pathlib import Path

__path__.append(str(Path(__file__).resolve().parents[2] / "kernels"))
