"""Weights to a vLLM server: named over HTTP, sent over NCCL, both at once."""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from fastrl.rollout.vllm_http import Http
from fastrl.rollout.vllm_settings import Capabilities
from fastrl.rollout.vllm_weights import Named

_PATH = "vllm.distributed.weight_transfer"


class Transfer:
    """The way of the weights from this process to a server's workers.

    Args:
        http: the server.
        able: what the vLLM in this process can do; the server's must be as able.
        port: where the workers meet this process.
        device: where the weights come from.

    Raises:
        NotImplementedError: the device is no CUDA device, which NCCL needs.
        RuntimeError: the workers did not come.
    """

    def __init__(self, http: Http, able: Capabilities, port: int, device: torch.device) -> None:
        require_cuda(device)
        self._http = http
        self._able = able
        self._device = device
        workers = http.get("/get_world_size")["world_size"]
        info: dict[str, Any] = {
            "master_address": importlib.import_module("vllm.utils.network_utils").get_ip(),
            "master_port": port,
            "rank_offset": 1,  # this process is 0
            "world_size": workers + 1,
        }
        if able.packed_at_init:
            info["packed"] = True
        # The server answers once all have met, and so does the meeting here.
        _, self._group = self._at_once(
            lambda: http.post("/init_weight_transfer_engine", {"init_info": info}),
            lambda: self._meet(info),
        )

    def _meet(self, info: dict[str, Any]) -> Any:
        if self._able.packed_at_init:
            return importlib.import_module(f"{_PATH}.nccl_common").trainer_init(info)
        engine: Any = importlib.import_module(f"{_PATH}.nccl_engine").NCCLWeightTransferEngine
        return engine.trainer_init(info)

    def start(self) -> None:
        """Make the server ready for weights."""
        self._http.post("/start_weight_update", {})

    def finish(self) -> None:
        """Let the server use what it has been sent, and forget what other weights made."""
        self._http.post("/finish_weight_update", {})
        answer = self._http.post("/reset_prefix_cache", {})
        if answer is not None and not answer.get("success", True):
            raise RuntimeError("the vLLM server kept its prefix cache, which other weights made")

    def send(self, bucket: Named) -> None:
        """Send these weights, between `start` and `finish`."""
        info: dict[str, Any] = {
            "names": [name for name, _ in bucket],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
        }
        if not self._able.packed_at_init:
            info["packed"] = True
        # vLLM packs on streams of its own, which do not wait for the one that made the weights.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._at_once(
            lambda: self._http.post("/update_weights", {"update_info": info}),
            lambda: self._broadcast(bucket),
        )

    def _broadcast(self, bucket: Named) -> None:
        packed = importlib.import_module(f"{_PATH}.packed_tensor")
        packed.packed_nccl_broadcast_producer(
            iterator=iter(bucket), group=self._group, src=0, post_iter_func=lambda item: item[1]
        )

    def _at_once(self, *tasks: Callable[[], Any]) -> list[Any]:
        """What each task gives; the first that fails is raised, for then the others never end."""
        done: queue.SimpleQueue[tuple[int, Any, Exception | None]] = queue.SimpleQueue()

        def run(place: int, task: Callable[[], Any]) -> None:
            try:
                use(self._device)
                done.put((place, task(), None))
            except Exception as error:  # handed to the caller's thread
                done.put((place, None, error))

        for place, task in enumerate(tasks):
            threading.Thread(target=run, args=(place, task), daemon=True).start()
        results = [None] * len(tasks)
        for _ in tasks:
            place, result, error = done.get()
            if error is not None:
                raise RuntimeError(f"weights did not reach the vLLM server: {error}") from error
            results[place] = result
        return results

    def close(self) -> None:
        """Leave the meeting, so that the server does not wait for this process."""
        group, self._group = self._group, None
        inner = getattr(group, "group", None)
        if inner is not None:
            inner.store = None
            inner.socket = None


def require_cuda(device: torch.device) -> None:
    """Raise NotImplementedError where NCCL has no device to send from."""
    if device.type != "cuda":
        raise NotImplementedError(
            f"vllm_mode='server' sends weights over NCCL, which needs a CUDA device, not '{device}'"
        )


def use(device: torch.device) -> None:
    """Let this thread work on a device, which CUDA settles for each thread anew."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
