"""Where processes meet: the address and port that torch.distributed reads."""

from __future__ import annotations

import os
import socket

import pytest

from fastrl.trainer.utils import ensure_master_addr_port


def meeting(monkeypatch, addr=None, port=None, **given):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, given.get(name, ""))
    ensure_master_addr_port(addr, port)
    return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


def test_what_is_set_stays(monkeypatch):
    there = {"MASTER_ADDR": "node7", "MASTER_PORT": "2345"}
    assert meeting(monkeypatch, **there) == ("node7", "2345")
    assert meeting(monkeypatch, "node8", **there) == ("node7", "2345")
    assert meeting(monkeypatch, "node8", 77, **there) == ("node7", "77")
    assert meeting(monkeypatch, "node8", 77) == ("node8", "77")


@pytest.mark.parametrize("named", ["", "0", "auto"])
def test_a_port_that_is_not_named_is_a_free_one(monkeypatch, named):
    address, port = meeting(monkeypatch, MASTER_PORT=named)
    assert address == "localhost" and int(port) > 0
    with socket.socket() as free:
        free.bind(("localhost", int(port)))
