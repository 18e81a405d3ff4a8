"""What vLLM has to be, what it is told of choosing tokens, and how its answers are read.

Facts of vLLM's interface hold for the versions from `MINIMUM` to `NEWEST`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from packaging.version import Version

from fastrl.legacy import warn_once
from fastrl.rollout.completion import Completion, Finish, Request
from fastrl.rollout.sampling import Sampling, ids_of

MINIMUM = "0.22.0"
NEWEST = "0.31.0"  # the newest whose interface was read
_PACKED_AT_INIT = Version("0.28.0")

LEAST_TEMPERATURE = 0.01  # vLLM raises a lower one to this by itself
# Settings that the rollout owns, with the argument that decides them.
_OWNED = {
    "n": "num_generations",
    "max_tokens": "max_completion_length",
    "logprobs": "the trainer",
    "prompt_logprobs": "the trainer",
    "flat_logprobs": "the trainer",
    "output_kind": "the trainer",
    "detokenize": "the trainer",
    "ignore_eos": "the trainer",
    "logprob_token_ids": "the trainer",
    "repetition_detection": "the trainer",
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_WITHOUT_EFFECT_ON_LOGITS = frozenset({"seed", "skip_special_tokens"})
_FINISH: dict[str, Finish] = {"length": "length", "stop": "eos"}


class Settings(Protocol):
    """The fields of a trainer's configuration that speak of vLLM."""

    vllm_model_impl: str
    vllm_enable_sleep_mode: bool
    vllm_structured_outputs_regex: str | None
    vllm_server_base_url: str | None
    vllm_server_host: str
    vllm_server_port: int
    vllm_server_timeout: float
    vllm_group_port: int
    vllm_gpu_memory_utilization: float
    vllm_max_model_length: int | None
    vllm_tensor_parallel_size: int


@dataclass(frozen=True)
class Capabilities:
    """What differs between the versions of vLLM that can be used."""

    version: str
    packed_at_init: bool  # whether weights travel packed is settled once, not at each update


def probe() -> Capabilities:
    """What the installed vLLM can do.

    Raises:
        ImportError: if it is not installed, too old, or cannot be imported; names the mend.
    """
    mend = f'pip install "vllm>={MINIMUM}"'
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"use_vllm: vLLM is not installed; {mend}") from None
    release = Version(Version(version).base_version)  # a build for a CUDA version is no newer
    if release < Version(MINIMUM):
        raise ImportError(f"use_vllm: vLLM {version} is installed, which is too old; {mend}")
    if release > Version(NEWEST):
        warn_once(f"vLLM {version} is newer than {NEWEST}, the newest that fastrl knows")
    try:
        importlib.import_module("vllm")
    except ImportError as error:
        raise ImportError(
            f"use_vllm: vLLM {version} is installed but cannot be imported: {error}"
        ) from error
    return Capabilities(version, release >= _PACKED_AT_INIT)


@dataclass(frozen=True)
class Draws:
    """How vLLM chooses tokens."""

    sampling: Sampling
    extra: Mapping[str, Any] = field(default_factory=dict)  # more for vLLM's SamplingParams
    structure: Mapping[str, Any] | None = None  # of its StructuredOutputsParams

    @staticmethod
    def of(
        sampling: Sampling, generation_kwargs: Mapping[str, Any] | None, regex: str | None
    ) -> Draws:
        """A trainer's settings; `generation_kwargs` go before those of `sampling`.

        Raises:
            ValueError: for a setting that vLLM would change by itself, or that is the trainer's.
        """
        given = dict(generation_kwargs or {})
        for name in given.keys() & _OWNED.keys():
            owner = _OWNED[name]
            raise ValueError(f"generation_kwargs: {name} is decided by {owner}; leave it out")
        changed: dict[str, Any] = {name: given.pop(name) for name in _SAMPLING if name in given}
        if "stop" in given:
            stop = given.pop("stop") or ()
            changed["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        if "stop_token_ids" in given:
            changed["eos"] = sampling.eos | ids_of(given.pop("stop_token_ids"))
        sampling = replace(sampling, **changed)
        if 0 < sampling.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature={sampling.temperature}: vLLM would raise it to {LEAST_TEMPERATURE}; "
                "set that, or 0 for the best token"
            )
        structure = given.pop("structured_outputs", None)
        if structure is not None and not isinstance(structure, Mapping):
            raise ValueError(
                "generation_kwargs: structured_outputs must be a dictionary, got "
                f"{type(structure).__name__}"
            )
        if regex is not None:
            if structure is not None:
                raise ValueError(
                    "vllm_structured_outputs_regex and generation_kwargs['structured_outputs'] "
                    "name two structures; set one"
                )
            structure = {"regex": regex}
        return Draws(sampling, given, structure)

    @property
    def plain(self) -> bool:
        """Whether an answer's log-probabilities are those of the logits over the temperature."""
        how = self.sampling
        untouched = self.structure is None and how.repetition_penalty == 1.0
        return untouched and how.plain and self.extra.keys() <= _WITHOUT_EFFECT_ON_LOGITS

    def arguments(self, count: int, limit: int) -> dict[str, Any]:
        """What both ways to vLLM call the settings, for `count` answers of `limit` tokens.

        An answer ends at the tokens that `Sampling.eos` names, and at no other that vLLM finds in
        the model's files.
        """
        how = self.sampling
        return {
            **self.extra,
            "n": count,
            "max_tokens": limit,
            "logprobs": 0,  # of the token that was drawn, and no other
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "min_p": how.min_p,
            "repetition_penalty": how.repetition_penalty,
            "ignore_eos": True,
            "stop_token_ids": sorted(how.eos),
            "stop": list(how.stop),
        }

    def params(self, count: int, limit: int) -> Any:
        """A `vllm.SamplingParams`, which checks the settings.

        Raises:
            ValueError: for a setting that vLLM does not know or take.
        """
        vllm = importlib.import_module("vllm")
        arguments = self.arguments(count, limit)
        # One list of numbers an answer, where each token would be an object in a dictionary.
        arguments |= {"flat_logprobs": True, "detokenize": bool(self.sampling.stop)}
        try:
            if self.structure is not None:
                params = importlib.import_module("vllm.sampling_params")
                structured = params.StructuredOutputsParams(**self.structure)
                arguments["structured_outputs"] = structured
            return vllm.SamplingParams(**arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"generation_kwargs: vLLM does not take them: {error}") from error

    def completion(
        self,
        token_ids: Sequence[int],
        logp: Sequence[float],
        finish_reason: str | None,
        stop_reason: int | str | None,
    ) -> Completion:
        """An answer; `logp` as vLLM processed it: after temperature, penalties and filters."""
        if len(logp) != len(token_ids):
            raise RuntimeError(
                f"vLLM gave {len(logp)} log-probabilities for {len(token_ids)} tokens"
            )
        finish = _FINISH.get(finish_reason or "")
        if finish is None:
            raise RuntimeError(f"vLLM ended an answer with {finish_reason!r}")
        if finish == "eos" and isinstance(stop_reason, str):
            finish = "stop"
        drawn = tuple(logp)
        full = drawn if self.plain else None
        if self.sampling.temperature == 0:
            drawn = (0.0,) * len(drawn)
        return Completion(tuple(token_ids), drawn, full, finish)


@dataclass(frozen=True)
class Call:
    """Answers to one prompt that are drawn together, so that the prompt is fed once."""

    request: int
    numbers: tuple[int, ...]  # which of the request's answers
    limit: int  # most tokens of each

    @property
    def count(self) -> int:
        """How many answers."""
        return len(self.numbers)


def calls(requests: Sequence[Request]) -> list[Call]:
    """The requests, each cut where its answers' limits differ."""
    found = []
    for i, request in enumerate(requests):
        by_limit: dict[int, list[int]] = {}
        for number, limit in enumerate(request.limits):
            by_limit.setdefault(limit, []).append(number)
        found += [Call(i, tuple(numbers), limit) for limit, numbers in by_limit.items()]
    return found


def assembled(
    requests: Sequence[Request], made: Sequence[tuple[Call, Sequence[Completion]]]
) -> list[tuple[Completion, ...]]:
    """The answers of each request, in the order of its seeds."""
    slots: list[list[Completion | None]] = [[None] * len(r.seeds) for r in requests]
    for call, answers in made:
        for number, answer in zip(call.numbers, answers, strict=True):
            slots[call.request][number] = answer
    return [tuple(c for c in answers if c is not None) for answers in slots]
