"""Stands in for vLLM: the signatures of 0.31, and what may be called when."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]
_ENGINE_ARGUMENTS = {
    "distributed_executor_backend",
    "enable_sleep_mode",
    "logprobs_mode",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "model_impl",
}
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def drawn(prompt: Sequence[int], number: int, params: SamplingParams) -> SimpleNamespace:
    """Answer `number` to a prompt: its sum and what follows, up to the limit or token 2."""
    start = sum(prompt) + number
    ids = [start + i for i in range(params.max_tokens)]
    reason, stop = "length", None
    if 2 in params.stop_token_ids and len(ids) > 3 + number:
        ids = [*ids[: 2 + number], 2]
        reason, stop = "stop", 2
    elif params.stop and len(ids) > 3:
        ids = ids[:3]
        reason, stop = "stop", params.stop[0]
    logprobs = FlatLogprobs()
    for token in ids:
        logprobs.append_fast([token], [-token / 128], iter([1]), [None])
    text = " ".join(map(str, ids)) if params.detokenize else ""
    return SimpleNamespace(
        index=number,
        text=text,
        token_ids=ids,
        logprobs=logprobs if params.logprobs is not None else None,
        finish_reason=reason,
        stop_reason=stop,
    )


class LLM:
    """An engine in this process."""

    made: ClassVar[list[LLM]] = []  # every one, for tests to look at
    checkpoint: frozenset[str] | None = None  # names its loader knows; None: all

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        **kwargs: Any,
    ) -> None:
        unknown = kwargs.keys() - _ENGINE_ARGUMENTS
        if unknown:
            raise TypeError(f"EngineArgs has no {sorted(unknown)}")
        self.arguments = {
            "model": model,
            "trust_remote_code": trust_remote_code,
            "tensor_parallel_size": tensor_parallel_size,
            "seed": seed,
            "gpu_memory_utilization": gpu_memory_utilization,
            **kwargs,
        }
        self.environment = {name: os.environ[name] for name in LAUNCHER}
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.drew: list[tuple[float, int, float]] = []
        self.log: list[Any] = []
        self.asked: list[tuple[list[int], SamplingParams]] = []
        self.weights: dict[str, torch.Tensor] = {"first": torch.zeros(1)}
        self.awake = {"weights", "kv_cache"}
        shut = SimpleNamespace(shutdown=lambda: self.log.append("shutdown"))
        self.llm_engine = SimpleNamespace(engine_core=shut)
        LLM.made.append(self)

    def generate(
        self,
        prompts: Any,
        sampling_params: Any = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        priority: list[int] | None = None,
    ) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}, self.awake
        assert self.weights, "no weights were loaded since it slept"
        assert len(prompts) == len(sampling_params)
        self.log.append("generate")
        self.drew.append((random.random(), int(np.random.randint(2**31)), torch.rand(()).item()))
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            ids = prompt["prompt_token_ids"]
            self.asked.append((ids, params))
            answers = [drawn(ids, number, params) for number in range(params.n)]
            outputs.append(SimpleNamespace(prompt_token_ids=ids, outputs=answers[::-1]))
        return outputs

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        assert method == "reload_weights"
        self.log.append(method)
        self.reload_weights(*args, **(kwargs or {}))
        return [None]

    def reload_weights(
        self,
        weights_iterator: Any = None,
        weights_path: str | None = None,
        is_checkpoint_format: bool = True,
    ) -> None:
        """Tensors are kept until all have come, as a layer's are, and only then copied."""
        assert "weights" in self.awake, "weights are asleep"
        assert is_checkpoint_format
        held = list(weights_iterator)
        known = LLM.checkpoint
        for name, _ in held:
            if known is not None and name not in known:
                raise ValueError(f"There is no module or parameter named {name!r}")
        self.weights = {name: tensor.clone() for name, tensor in held}
        assert len(self.weights) == len(held), "a name came twice"

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        self.log.append("reset_prefix_cache")
        return True

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        assert self.arguments["enable_sleep_mode"]
        self.log.append(f"sleep {level}")
        self.awake = set()
        if level == 2:
            self.weights = {}

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.log.append(f"wake {tags}")
        self.awake |= set(tags or ("weights", "kv_cache"))
