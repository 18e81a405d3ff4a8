"""What to say of a name of TRL's that is not here: when it comes, what replaced it, or its like."""

from __future__ import annotations

from fastrl.compat.modules import MODULES
from fastrl.legacy import closest


def explain(root: str, module: str, name: str) -> str:
    """Why the module that TRL calls `module` has no `name`, and what to use.

    Args:
        root: the package under which the modules stand, "fastrl".
        module: path below the root; "" is the top level.
    """
    here = f"{root}.{module}" if module else root
    return f"module {here!r} has no attribute {name!r}{closest(name, MODULES.get(module, {}))}"
