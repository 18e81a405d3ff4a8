"""Triton kernels: the files are in `kernels/` at the root of a checkout, here in a wheel."""

from pathlib import Path

__path__.append(str(Path(__file__).resolve().parents[2] / "kernels"))
