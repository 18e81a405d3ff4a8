"""The meeting of trainer and workers, which exists from 0.28 on; both come or neither goes."""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace
from typing import Any

import torch

meeting = threading.Barrier(2, timeout=10)
wire: queue.Queue[torch.Tensor] = queue.Queue()
came: list[dict[str, Any]] = []


class Group:
    """A communicator; what it broadcasts lies on the wire."""

    def __init__(self) -> None:
        self.group = SimpleNamespace(store=object(), socket=object())

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        assert src == 0
        wire.put(tensor.clone())


def trainer_init(init_info: dict[str, Any], rank: int = 0) -> Group:
    came.append({name: init_info[name] for name in ("master_address", "master_port", "world_size")})
    meeting.wait()
    return Group()
