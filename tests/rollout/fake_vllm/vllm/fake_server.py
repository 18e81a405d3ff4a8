"""`vllm serve` on loopback: its endpoints for completions and for weights."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from vllm import drawn
from vllm.distributed.weight_transfer import nccl_common
from vllm.distributed.weight_transfer.packed_tensor import unpack_tensor
from vllm.sampling_params import SamplingParams

_OF_REQUEST = {"model", "prompt", "return_token_ids", "structured_outputs"}


@dataclass
class State:
    """What a server was started with and what it has been told."""

    transfer: dict[str, Any] | None = field(default_factory=lambda: {"backend": "nccl"})
    logprobs_mode: str = "processed_logprobs"
    dev_mode: bool = True
    starting: int = 0  # looks at its health that find it not up yet
    health: int = 503  # what they find
    packed_at_init: bool = True
    fails: str | None = None  # a path it answers by 500
    log: list[str] = field(default_factory=list)
    init: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    updating: bool = False

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/health":
            self.starting -= 1
            return (self.health if self.starting >= 0 else 200), None
        if path == "/v1/models":
            return 200, {"data": [{"id": "the-model"}]}
        if path == "/server_info?config_format=json" and self.dev_mode:
            config = {
                "weight_transfer_config": self.transfer,
                "model_config": {"logprobs_mode": self.logprobs_mode},
            }
            return 200, {"vllm_config": config}
        if path == "/get_world_size" and self.dev_mode:
            return 200, {"world_size": 2}
        return 404, {"detail": "Not Found"}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.log.append(path)
        if path == self.fails:
            return 500, {"error": {"message": "out of memory"}}
        answer = getattr(self, "_" + path.rpartition("/")[2])(body)
        return 200, answer

    def _init_weight_transfer_engine(self, body: dict[str, Any]) -> Any:
        self.init = body["init_info"]
        nccl_common.meeting.wait()
        return {"message": "Weight transfer initialized"}

    def _start_weight_update(self, body: dict[str, Any]) -> Any:
        assert not self.updating
        self.updating = True
        return {"message": "Weight update started"}

    def _update_weights(self, body: dict[str, Any]) -> Any:
        assert self.updating
        info = body["update_info"]
        self.updates.append(info)
        assert self.init.get("packed", False) == self.packed_at_init
        assert ("packed" in info) != self.packed_at_init
        dtypes = [getattr(torch, name) for name in info["dtype_names"]]
        sizes = [
            torch.empty(shape, dtype=dtype, device="meta").nbytes
            for shape, dtype in zip(info["shapes"], dtypes, strict=True)
        ]
        row = torch.cat([torch.empty(0, dtype=torch.uint8)])
        while row.numel() < sum(sizes):
            row = torch.cat([row, nccl_common.wire.get(timeout=10)])
        self.weights.update(unpack_tensor(row, info["names"], info["shapes"], dtypes, sizes))
        return {"message": "Weights updated"}

    def _finish_weight_update(self, body: dict[str, Any]) -> Any:
        assert self.updating
        self.updating = False
        return {"message": "Weight update finished"}

    def _reset_prefix_cache(self, body: dict[str, Any]) -> Any:
        return {"success": True} if self.packed_at_init else None

    def _completions(self, body: dict[str, Any]) -> Any:
        """As vLLM answers: choices prompt by prompt; here they come in another order."""
        assert not self.updating
        self.asked.append(body)
        settings = {name: value for name, value in body.items() if name not in _OF_REQUEST}
        params = SamplingParams(**settings)
        choices = []
        for prompt in body["prompt"]:
            for number in range(params.n):
                one = drawn(prompt, number, params)
                choice = {
                    "index": len(choices),
                    "text": one.text,
                    "logprobs": {"token_logprobs": one.logprobs.logprobs},
                    "finish_reason": one.finish_reason,
                    "stop_reason": one.stop_reason,
                    "prompt_token_ids": prompt,
                    "token_ids": one.token_ids,
                }
                choices.append(choice)
        return {"choices": choices[::-1]}


@contextlib.contextmanager
def running(state: State) -> Iterator[int]:
    """A server in a thread; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: Any) -> None:
            text = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self._answer(*state.get(self.path))

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            try:
                self._answer(*state.post(self.path, body))
            except Exception as error:
                self._answer(500, {"error": {"message": repr(error)}})

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
