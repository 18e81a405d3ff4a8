"""Where the processes of one run meet."""

from __future__ import annotations

import os
import socket


def ensure_master_addr_port(addr: str | None = None, port: int | None = None) -> None:
    """Set `MASTER_ADDR` and `MASTER_PORT`, where torch.distributed has the processes meet.

    An address that is set stays. A port that is set stays unless another is given; none, 0 and
    "auto" become a free one.

    Args:
        addr: the address if none is set; None: this machine.
        port: the port; None: the one that is set; 0: a free one.
    """
    os.environ["MASTER_ADDR"] = os.environ.get("MASTER_ADDR") or addr or "localhost"
    if port is None:
        named = os.environ.get("MASTER_PORT", "").strip()
        port = int(named) if named.isdigit() else 0
    if port == 0:
        with socket.socket() as found:
            found.bind(("", 0))
            port = found.getsockname()[1]
    os.environ["MASTER_PORT"] = str(port)
