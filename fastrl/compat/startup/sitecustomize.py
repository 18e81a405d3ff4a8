"""Runs when a Python process starts whose parent has called `install_as_trl` (see `as_trl`).

Its folder stands first on PYTHONPATH then. It needs fastrl's import machinery only, no model
library, and does nothing where an interpreter has no fastrl. The machine's own `sitecustomize`,
which this one hides, runs afterwards.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _stand_in() -> None:
    """What the parent process did: `install_as_trl`, and `patch_transformers` if asked for."""
    try:
        from fastrl.compat.as_trl import install_as_trl
    except ModuleNotFoundError:
        return
    install_as_trl()
    if "FASTRL_PATCH_TRANSFORMERS" in os.environ:
        from fastrl.compat.transformers_patch import patch_transformers

        patch_transformers()


def _run_the_hidden_one() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    path = [folder for folder in sys.path if os.path.abspath(folder) != here]
    spec = PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    _stand_in()
    _run_the_hidden_one()
