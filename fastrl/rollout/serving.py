"""Running a model for the logits of next tokens: what it is called through, in which dtype."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fastrl.models import door, router, trial
from fastrl.models.attention import Attends
from fastrl.models.handshake import Plan
from fastrl.models.policy import prepare_policy
from fastrl.ops.decode_attention import Decoding
from fastrl.ops.few_rows import MOST_ROWS, FewRowsLinear
from fastrl.rollout.keyvalues import Decode, Prefill, Slots

_PROVEN = "_fastrl_decodes"
_KNOWN_GENERATE = ("transformers.generation.", "peft.", "fastrl.models.")
_FSDP = "torch.distributed.fsdp."


class _Probed(Exception):
    """Carries out of a model's wrappers what was found inside."""


class _Probe:
    """A request that learns in which dtype the wrappers let the model compute."""

    def with_hidden(self) -> _Probe:
        return self

    def answer(self, model: PreTrainedModel) -> Any:
        device = trial.key(model)[0]
        on = torch.is_autocast_enabled(device)
        raise _Probed(torch.get_autocast_dtype(device) if on else None)


def autocast_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of the autocast that a call of the model runs under, None if there is none."""
    inner = extract_model_from_parallel(model)
    inner = getattr(inner, "_orig_mod", inner)  # nothing is to be compiled for this
    try:
        inner(fastrl_request=_Probe())
    except _Probed as found:
        return found.args[0]
    raise RuntimeError(f"{type(model).__name__} answers without calling the model inside")


@dataclass(frozen=True)
class NextLogits:
    """Ask a model, through its door, for the logits after some of the tokens it is fed."""

    ids: torch.Tensor  # (N,) int64
    positions: torch.Tensor  # (N,) int64
    places: torch.Tensor | None  # (K,) int64: which of the tokens; None: all
    attends: Attends
    head: door.Head | None  # None: take them from the model's own forward

    def answer(self, model: PreTrainedModel) -> torch.Tensor:
        """(K, V) fp32 logits; called by the model's forward."""
        inputs: dict[str, Any] = {
            "input_ids": self.ids[None],
            "position_ids": self.positions[None],
            "attention_mask": torch.zeros(1, 1, 1, 1, device=self.ids.device),
            "fastrl_segments": self.attends,
            "use_cache": False,
        }
        if router.present(model):
            inputs[router.KEYWORD] = False
        if self.head is None:
            logits = door.original_forward(model)(**inputs).logits[0]
            return (logits if self.places is None else logits[self.places]).float()
        output = model.base_model(**inputs)
        hidden = (output[0] if isinstance(output, tuple) else output.last_hidden_state)[0]
        if self.places is not None:
            hidden = hidden.index_select(0, self.places)
        head: Any = model.get_output_embeddings()
        logits = head(hidden).float()
        if self.head.scale != 1.0:
            logits = logits * self.head.scale
        if self.head.softcap is not None:
            logits = self.head.softcap * torch.tanh(logits / self.head.softcap)
        return logits


@contextmanager
def shadowed(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, matrices that autocast would cast at each use are held cast.

    The parameters themselves are set aside and put back: nothing is written to them.
    """
    aside: list[tuple[nn.Module, str, nn.Parameter]] = []
    cast: dict[int, nn.Parameter] = {}
    try:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                continue
            for name, parameter in list(module._parameters.items()):
                if parameter is None or parameter.dtype != torch.float32:
                    continue
                if parameter.dim() < 2 and not isinstance(module, nn.Linear | Conv1D):
                    continue  # norms compute in their own dtype
                if id(parameter) not in cast:
                    held = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                    cast[id(parameter)] = held
                aside.append((module, name, parameter))
                module._parameters[name] = cast[id(parameter)]
        yield
    finally:
        for module, name, parameter in aside:
            module._parameters[name] = parameter


def _for_few_rows(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Its forward without gradients, by the operation made for decoding where that serves."""
    weight, bias = linear.weight, linear.bias
    product, dtype, most = FewRowsLinear(weight, bias), weight.dtype, MOST_ROWS * weight.shape[1]

    def forward(input: torch.Tensor) -> torch.Tensor:
        if input.dtype != dtype or input.numel() > most:
            return nn.functional.linear(input, weight, bias)
        return product(input)

    return forward


@contextmanager
def with_few_rows(model: nn.Module) -> Iterator[None]:
    """Inside, plain fp32 matrices of the CPU meet few rows by `few_rows_linear`."""
    changed: list[nn.Module] = []
    try:
        for module in model.modules():
            matrix = door.head_matrix(module)
            if matrix is None or not isinstance(matrix[0], nn.Parameter):
                continue  # FSDP's views of weights that are gathered pass by pass are no parameters
            if matrix[0].dtype != torch.float32 or not matrix[0].is_contiguous():
                continue
            module.__dict__["forward"] = _for_few_rows(cast(nn.Linear, module))
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


@dataclass(frozen=True)
class Served:
    """A model the engine can run."""

    instance: PreTrainedModel
    called: nn.Module  # what a pass goes through: the instance, or its wrappers where they matter
    head: door.Head | None
    partitioned: bool  # every rank has to take part in every pass

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        embeddings: Any = self.instance.get_input_embeddings()
        return embeddings.weight.device

    def logits(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        attends: Attends,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(K, V) fp32 logits after the tokens at `places`, or after all."""
        return self.called(fastrl_request=NextLogits(ids, positions, places, attends, self.head))


@contextmanager
def serving(model: nn.Module, served: Served) -> Iterator[None]:
    """Evaluation mode without gradients, in the dtype that the model's wrappers ask for."""
    device = served.device.type
    dtype = None if served.partitioned else autocast_dtype(model)
    with ExitStack() as stack:
        stack.enter_context(trial.undisturbed(served.instance))
        stack.enter_context(torch.no_grad())
        if dtype is not None:
            stack.enter_context(shadowed(served.instance, dtype))
            # Its own cache of casts would outlive us if the caller has an autocast open.
            stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
        elif device == "cpu" and not torch.is_autocast_enabled("cpu") and not served.partitioned:
            stack.enter_context(with_few_rows(served.instance))
        yield


def served(model: nn.Module) -> Served | str:
    """How to run a model, or why the engine cannot."""
    instance, soft_prompt = door.find(model)
    if _overridden(model):
        return "its generate is not transformers' own"
    if soft_prompt:
        return "a soft prompt precedes each row"
    if getattr(instance.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if instance.get_output_embeddings() is None:
        return "it has no language-model head"
    plan: Plan = prepare_policy(model)
    if not plan.packed:
        return plan.reason or "it is scored with padding"
    if trial.partitioned(instance):
        if hasattr(model, "pretrained_model"):
            return "its parameters are partitioned over processes, behind a value head"
        return Served(instance, model, plan.head, True)
    found = Served(instance, instance, plan.head, False)
    proven = instance.__dict__.get(_PROVEN)
    if proven is None or proven[0] != plan.proven_on:
        proven = (plan.proven_on, rehearse(found))
        instance.__dict__[_PROVEN] = proven
    return found if proven[1] is None else proven[1]


def _overridden(model: nn.Module) -> bool:
    """Whether a `generate` on the way to the model's is neither transformers', PEFT's nor ours."""
    for module in model.modules():
        own: Any = module.__dict__.get("generate")
        if own is not None:
            # FSDP's registration wraps the method, which then gathers what the root holds.
            if not getattr(own, "__globals__", {}).get("__name__", "").startswith(_FSDP):
                return True
            own = inspect.unwrap(own)
        else:
            own = getattr(type(module), "generate", None)
        if own is not None and not own.__module__.startswith(_KNOWN_GENERATE):
            return True
    return False


def rehearse(served: Served) -> str | None:
    """Why decoding on kept keys does not give what whole rows give; None if it does.

    Two prompts are fed, then two tokens for each of three rows, two of which share a prompt.
    """
    instance, device = served.instance, served.device
    ids = trial.rows(instance).ids
    prompts = (ids[0, :4], ids[1, :2])
    of_row, tails = [0, 0, 1], (ids[0, 4:6], ids[2, 4:6], ids[2, 6:8])
    prompt_keys, answers = Slots(), Slots()
    lengths = [len(prompt) for prompt in prompts]
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])
    plain = door.original_forward(instance)
    got: list[torch.Tensor] = []

    def logits(fed: torch.Tensor, positions: torch.Tensor, attends: Attends) -> torch.Tensor:
        # Not through the instance's forward, which may have been wrapped in autocast.
        return NextLogits(fed, positions, None, attends, served.head).answer(instance)

    plainly = torch.autocast(device.type, enabled=False)
    with trial.undisturbed(instance), torch.no_grad(), plainly:
        try:
            logits(torch.cat(prompts), positions, Prefill(tuple(lengths), prompt_keys, 0))
            for step in range(2):
                at = Decoding.of(of_row, [step] * 3, lengths, device)
                new = torch.stack([tail[step] for tail in tails])
                decode = Decode(at, prompt_keys, answers, (3, 2))
                got.append(logits(new, at.prompt_lengths + step, decode))
            whole = [torch.cat([prompts[p], tail]) for p, tail in zip(of_row, tails, strict=True)]
            want = [plain(input_ids=row[None], use_cache=False).logits[0, -2:] for row in whole]
            tolerance = trial.TOLERANCE.get(trial.key(instance)[1], 5e-2)
            trial.close("logits of decoding", torch.stack(got, 1), torch.stack(want), tolerance)
        except Exception as error:  # whatever a foreign model's parts fail with
            return trial.told(error)
    return None
