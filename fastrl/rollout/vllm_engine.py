"""vLLM in this process, on the GPUs that train."""

from __future__ import annotations

import gc
import importlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastrl.models import door
from fastrl.rollout import vllm_randomness, vllm_weights
from fastrl.rollout.completion import Completion, Request
from fastrl.rollout.sampling import Sampling
from fastrl.rollout.vllm_settings import Draws, Settings, assembled, calls, probe

# vLLM's memory profiler takes a larger batch (its default) for memory that is not there.
BATCHED_TOKENS = 4096


class Colocated:
    """An `Answerer`: vLLM's engine beside the trainer, one copy for each tensor-parallel group.

    The draws of a call follow from the seeds of all its requests together, not of each alone: the
    same call gives the same answers, as far as vLLM computes the same in another batch.

    Args:
        model: the policy, with adapters and wrappers if it has any; vLLM reads its configuration
            and first weights from where it was loaded.
        accelerator: whose processes hold the engines.
        settings: the `vllm_*` fields.
        sampling: how tokens are chosen by `answers`.
        max_num_seqs: answers decoded together; None: vLLM's default.
        trust_remote_code: run model code that comes with a checkpoint.
        generation_kwargs: more for vLLM's `SamplingParams`; they go before those of `sampling`.

    Raises:
        ImportError: vLLM is absent or too old.
        ValueError: for a setting or policy that vLLM cannot serve.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: Any,
        settings: Settings,
        sampling: Sampling,
        *,
        max_num_seqs: int | None = None,
        trust_remote_code: bool = False,
        generation_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        probe()
        parallel = settings.vllm_tensor_parallel_size
        if parallel < 1 or accelerator.num_processes % parallel:
            raise ValueError(
                f"vllm_tensor_parallel_size={parallel} must divide the number of processes, "
                f"{accelerator.num_processes}"
            )
        self._generation_kwargs = generation_kwargs
        self._regex = settings.vllm_structured_outputs_regex
        self._draws = self._settled(sampling)
        self._draws.params(1, 1)
        vllm_weights.check(model)
        source = _source(model)
        self._accelerator = accelerator
        self._sleeps = settings.vllm_enable_sleep_mode
        self._without_weights = False
        self._without_cache = False
        self._group = _group(accelerator, parallel)
        with _launched(accelerator), vllm_randomness.put_aside(accelerator.device):
            self._llm: Any = importlib.import_module("vllm").LLM(
                model=source,
                tensor_parallel_size=parallel,
                gpu_memory_utilization=settings.vllm_gpu_memory_utilization,
                max_model_len=settings.vllm_max_model_length,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=BATCHED_TOKENS,
                enable_sleep_mode=settings.vllm_enable_sleep_mode,
                model_impl=settings.vllm_model_impl,
                distributed_executor_backend="external_launcher",
                seed=accelerator.process_index // parallel,  # ranks of a group draw alike
                logprobs_mode="processed_logprobs",
                trust_remote_code=trust_remote_code,
            )
        self.sleep()
        accelerator.wait_for_everyone()

    def _settled(self, sampling: Sampling) -> Draws:
        return Draws.of(sampling, self._generation_kwargs, self._regex)

    def answers(self, requests: Sequence[Request]) -> list[tuple[Completion, ...]]:
        """Those to each request, in order, with the settings given at construction."""
        return self._generate(requests, self._draws)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> list[tuple[Completion, ...]]:
        """Answers to each request, in order.

        Raises:
            RuntimeError: if vLLM sleeps and was given no weights since.
            ValueError: for settings that vLLM does not take.
        """
        return self._generate(requests, self._settled(sampling))

    def _generate(self, requests: Sequence[Request], draws: Draws) -> list[tuple[Completion, ...]]:
        self.wake()
        everyone = self._everyone(list(requests))
        together = [request for several in everyone for request in several]
        made = self._drawn(together, draws)
        if self._group is None:
            return made
        rank = dist.get_rank(self._group)
        first = sum(len(several) for several in everyone[:rank])
        return made[first : first + len(requests)]

    def _everyone(self, requests: list[Request]) -> list[list[Request]]:
        """What each rank of the tensor-parallel group asks; all of them answer all of it."""
        if self._group is None:
            return [requests]
        asked: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(asked, requests, group=self._group)
        # The gradients' last collective may still hold channels that vLLM's are about to take.
        self._accelerator.wait_for_everyone()
        return asked

    def _drawn(self, requests: list[Request], draws: Draws) -> list[tuple[Completion, ...]]:
        asked = calls(requests)
        if not asked:
            return [() for _ in requests]
        prompts = [{"prompt_token_ids": list(requests[call.request].prompt_ids)} for call in asked]
        params = [draws.params(call.count, call.limit) for call in asked]
        seed = vllm_randomness.seed_of(requests)
        with vllm_randomness.put_aside(self._accelerator.device, seed):
            outputs = self._llm.generate(prompts, sampling_params=params, use_tqdm=False)
        made = [
            [
                draws.completion(o.token_ids, o.logprobs.logprobs, o.finish_reason, o.stop_reason)
                for o in sorted(output.outputs, key=lambda one: one.index)
            ]
            for output in outputs
        ]
        return assembled(requests, list(zip(asked, made, strict=True)))

    def sync(self, model: nn.Module, accelerator: Any) -> None:
        """Load the policy's weights as they now are; adapters are merged into copies.

        Raises:
            RuntimeError: if vLLM leaves weights unread, or the policy's own changed.
        """
        if self._without_weights:
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
            self._llm.wake_up(tags=["weights"])
        with vllm_weights.unchanged(model):
            blocks = vllm_weights.blocks(model, accelerator.device)
            weights = (named for block in blocks for named in block)
            arguments = {"weights_iterator": weights, "is_checkpoint_format": True}
            self._llm.collective_rpc("reload_weights", kwargs=arguments)
            left = next(weights, None)
        if left is not None:
            raise RuntimeError(f"vLLM stopped loading weights before {left[0]}")
        self._without_weights = False
        self._forget()

    def _forget(self) -> None:
        """Drop keys and values that other weights made."""
        if self._llm.reset_prefix_cache() is False:
            raise RuntimeError("vLLM kept its prefix cache, which the weights before made")

    def sleep(self) -> None:
        """With `vllm_enable_sleep_mode`: give up weights and cache until the next `sync`."""
        if not self._sleeps or self._without_cache:
            return
        self._llm.sleep(level=2)  # the weights are not kept: training changes them
        self._without_weights = True
        self._without_cache = True

    def wake(self) -> None:
        """Take up the cache's memory again; `answers` does so by itself.

        Raises:
            RuntimeError: if there are no weights, which only `sync` brings.
        """
        if self._without_weights:
            raise RuntimeError("vLLM gave up its weights to sleep; call sync before answers")
        if self._without_cache:
            self._llm.wake_up(tags=["kv_cache"])
            self._without_cache = False

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()


def _source(model: nn.Module) -> str:
    """The folder or hub name the policy was loaded from."""
    instance, _ = door.find(model)
    source = instance.name_or_path
    if not source:
        raise ValueError(
            "use_vllm: vLLM loads the policy by name, and this model was made without one; give a "
            "hub name or a folder written by save_pretrained"
        )
    return source


def _group(accelerator: Any, parallel: int) -> dist.ProcessGroup | None:
    """The ranks that share this rank's engine; None: it is alone."""
    if parallel == 1:
        return None
    count = accelerator.num_processes
    ranks = [list(range(first, first + parallel)) for first in range(0, count, parallel)]
    group, _ = dist.new_subgroups_by_enumeration(ranks)
    return group


@contextmanager
def _launched(accelerator: Any) -> Iterator[None]:
    """The variables of a launcher, which vLLM reads at its start and later starts must not."""
    wanted = {
        "RANK": str(accelerator.process_index),
        "LOCAL_RANK": str(accelerator.local_process_index),
        "WORLD_SIZE": str(accelerator.num_processes),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "localhost"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
