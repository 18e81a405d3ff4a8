"""vLLM on a server (`vllm serve`): the main process asks, and gives each rank its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from fastrl.rollout import vllm_weights
from fastrl.rollout.completion import Completion, Request
from fastrl.rollout.sampling import Sampling
from fastrl.rollout.vllm_http import START, Http, HttpError
from fastrl.rollout.vllm_settings import Call, Draws, Settings, assembled, calls, probe
from fastrl.rollout.vllm_transfer import Transfer


class Server:
    """An `Answerer`: a client of a vLLM server.

    The server draws from a generator of its own: a request's seeds say how many answers it wants,
    and not which.

    Args:
        model: the policy, with adapters and wrappers if it has any.
        accelerator: whose processes train it; the main one speaks to the server.
        settings: the `vllm_*` fields.
        sampling: how tokens are chosen by `answers`.
        max_num_seqs, trust_remote_code: the server's own affair, given where it is started.
        generation_kwargs: more for vLLM's `SamplingParams`; they go before those of `sampling`.

    Raises:
        ImportError: vLLM is absent or too old.
        ConnectionError: no server within `vllm_server_timeout` seconds.
        RuntimeError: a server that was started without what this needs; says how to start it.
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
        able = probe()
        self._generation_kwargs = generation_kwargs
        self._regex = settings.vllm_structured_outputs_regex
        self._draws = self._settled(sampling)
        self._draws.params(1, 1)
        vllm_weights.check(model)
        self._accelerator = accelerator
        base_url = settings.vllm_server_base_url
        if base_url is None:
            base_url = f"http://{settings.vllm_server_host}:{settings.vllm_server_port}"
        self._http = Http(base_url)
        self._transfer: Transfer | None = None
        self._model_name = ""

        def connect() -> None:
            self._http.wait(settings.vllm_server_timeout)
            self._check_server()
            self._model_name = self._http.get("/v1/models")["data"][0]["id"]
            port, device = settings.vllm_group_port, accelerator.device
            self._transfer = Transfer(self._http, able, port, device)

        self._on_main(connect)

    def _settled(self, sampling: Sampling) -> Draws:
        return Draws.of(sampling, self._generation_kwargs, self._regex)

    def _check_server(self) -> None:
        """Refuse a server that cannot be sent weights, or that reports other log-probabilities."""
        base_url = self._http.base_url
        try:
            config = self._http.get("/server_info?config_format=json")["vllm_config"]
        except HttpError as error:
            if error.status != 404:
                raise
            raise RuntimeError(
                f"the vLLM server at {base_url} hides the endpoints that take weights; "
                f"start it with: {START}"
            ) from None
        transfer = config.get("weight_transfer_config")
        if transfer is None or transfer["backend"] != "nccl":
            raise RuntimeError(
                f"the vLLM server at {base_url} takes no weights over NCCL "
                f"(weight_transfer_config: {transfer}); start it with: {START}"
            )
        mode = config["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise RuntimeError(
                f"the vLLM server at {base_url} reports {mode}, not the log-probabilities of the "
                f"distribution it draws from; start it with: {START}"
            )

    def _on_main(self, work: Callable[[], Any]) -> None:
        """Do it on the main process; if it fails, every process raises."""
        failure: Exception | None = None
        if self._accelerator.is_main_process:
            try:
                work()
            except Exception as error:  # the others wait for word of it
                failure = error
        self._agree(failure)

    def _agree(self, failure: Exception | None) -> None:
        """Raise on every process what failed on the main one."""
        told = [None if failure is None else str(failure)]
        broadcast_object_list(told, from_process=0)
        if failure is not None:
            raise failure
        if told[0] is not None:
            raise RuntimeError(f"on the main process: {told[0]}")

    def answers(self, requests: Sequence[Request]) -> list[tuple[Completion, ...]]:
        """Those to each request, in order, with the settings given at construction."""
        return self._generate(requests, self._draws)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> list[tuple[Completion, ...]]:
        """Answers to each request, in order.

        Raises:
            HttpError: the server refused the requests, such as a prompt that is too long for it.
            ValueError: for settings that vLLM does not take.
        """
        return self._generate(requests, self._settled(sampling))

    def _generate(self, requests: Sequence[Request], draws: Draws) -> list[tuple[Completion, ...]]:
        everyone: list[list[Request]] = gather_object([list(requests)])
        shares: list[list[tuple[Completion, ...]]] = []

        def ask() -> None:
            made = self._drawn([r for several in everyone for r in several], draws)
            first = 0
            for several in everyone:
                shares.append(made[first : first + len(several)])
                first += len(several)

        self._on_main(ask)
        return self._dealt(shares)

    def _dealt(self, shares: list[list[tuple[Completion, ...]]]) -> list[tuple[Completion, ...]]:
        """This rank's share of what the main process has."""
        if self._accelerator.num_processes == 1:
            return shares[0]
        mine: list[Any] = [None]
        dist.scatter_object_list(mine, shares if self._accelerator.is_main_process else None, src=0)
        return mine[0]

    def _drawn(self, requests: list[Request], draws: Draws) -> list[tuple[Completion, ...]]:
        """One call for all prompts that want as many answers of the same limit."""
        alike: dict[tuple[int, int], list[Call]] = {}
        for call in calls(requests):
            alike.setdefault((call.count, call.limit), []).append(call)
        made: list[tuple[Call, list[Completion]]] = []
        for (count, limit), several in alike.items():
            prompts = [list(requests[call.request].prompt_ids) for call in several]
            found = self._complete(prompts, draws, count, limit)
            cut = [found[i * count : (i + 1) * count] for i in range(len(several))]
            made += zip(several, cut, strict=True)
        return assembled(requests, made)

    def _complete(
        self, prompts: list[list[int]], draws: Draws, count: int, limit: int
    ) -> list[Completion]:
        """`count` answers to each prompt, prompt by prompt."""
        body = {
            "model": self._model_name,
            "prompt": prompts,
            "return_token_ids": True,
            **draws.arguments(count, limit),
        }
        if draws.structure is not None:
            body["structured_outputs"] = dict(draws.structure)
        choices = self._http.post("/v1/completions", body)["choices"]
        if len(choices) != len(prompts) * count:
            raise RuntimeError(
                f"the vLLM server gave {len(choices)} answers to {len(prompts)} prompts that want "
                f"{count} each"
            )
        return [
            draws.completion(
                choice["token_ids"],
                choice["logprobs"]["token_logprobs"],
                choice["finish_reason"],
                choice["stop_reason"],
            )
            for choice in sorted(choices, key=lambda choice: choice["index"])
        ]

    def sync(self, model: nn.Module, accelerator: Any) -> None:
        """Send the policy's weights as they now are; adapters are merged into copies.

        Raises:
            RuntimeError: on every process, if the weights did not arrive or the policy's changed.
        """
        failure: Exception | None = None
        transfer = self._transfer
        self._on_main(lambda: transfer.start() if transfer is not None else None)
        with vllm_weights.unchanged(model):
            for bucket in vllm_weights.buckets(model, accelerator.device):
                if transfer is None or failure is not None:
                    continue  # takes part in gathering what is left
                try:
                    transfer.send(bucket)
                except Exception as error:  # raised where all ranks are again
                    failure = error
        self._agree(failure)
        self._on_main(lambda: transfer.finish() if transfer is not None else None)

    def sleep(self) -> None:
        """Nothing: the server's memory is its own."""

    def close(self) -> None:
        """Leave the server, which goes on."""
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None
