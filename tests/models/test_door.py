"""The door among other things that replace or wrap a model's forward."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from fastrl.models import door, trial
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.types import Tokens

CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def test_the_signature_and_ordinary_calls_stay(tiny: Any, twin: Any) -> None:
    model = tiny("llama")
    plain = twin(model)
    prepare_policy(model)
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    ids = torch.randint(3, 97, (2, 5))
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert torch.equal(model(ids, labels=ids).loss, plain(ids, labels=ids).loss)
    before = model.forward
    door.install(model)
    assert model.forward == before


class Wrapper(nn.Module):
    """As DDP: the model under `module`, called through this forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: Any, **keywords: Any) -> Any:
        self.calls += 1
        return self.module(*args, **keywords)


def test_the_call_goes_through_the_outermost_wrapper_once(tiny: Any, rows: Tokens) -> None:
    model = tiny("llama")
    want = logprobs(model, rows).logp
    inner = Wrapper(model)
    outer = Wrapper(inner)
    got = logprobs(outer, rows).logp
    assert torch.equal(got, want)
    assert (outer.calls, inner.calls) == (1, 1)


@pytest.mark.parametrize("first", ["hook", "door"])
def test_accelerates_hooks_before_and_after(
    first: str, tiny: Any, rows: Tokens, separately: Any, twin: Any
) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    seen = []

    class Watch(hooks.ModelHook):
        def pre_forward(self, module: Any, *args: Any, **keywords: Any) -> Any:
            seen.append(set(keywords))
            return args, keywords

    model = tiny("llama")
    truth = separately(twin(model), rows)
    if first == "door":
        prepare_policy(model)
    hooks.add_hook_to_module(model, Watch())
    torch.testing.assert_close(logprobs(model, rows).logp, truth.logp, **CLOSE)
    seen.clear()
    assert model(input_ids=rows.ids).logits.shape == (4, 24, 97)
    assert seen == [{"input_ids"}]
    torch.testing.assert_close(logprobs(model, rows).logp, truth.logp, **CLOSE)


def test_a_compiled_model(tiny: Any, rows: Tokens) -> None:
    model = tiny("llama")
    want = logprobs(model, rows)
    compiled = torch.compile(model, backend="eager")
    got = logprobs(compiled, rows)
    torch.testing.assert_close(got.logp, want.logp, **CLOSE)
    torch.testing.assert_close(got.entropy, want.entropy, **CLOSE)


def alone(_, bucket):
    """The gradients of a bucket, averaged over one process.

    Gloo has no part in it: at its end, holding Python's lock, it would wait for a thread of its
    own, which may want that lock to end what it did last.
    """
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_the_answer_survives_a_trip_through_ddp(tiny: Any, rows: Tokens, grads: Any) -> None:
    # One process: what is tested is that DDP hands the request on and sees the tensors come back.
    distributed = torch.distributed
    model = tiny("llama")
    logprobs(model, rows).logp.sum().backward()
    want = grads(model)
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel.register_comm_hook(None, alone)
        out = logprobs(parallel, rows)
        out.logp.sum().backward()
        got = grads(model)
    finally:
        distributed.destroy_process_group()
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, **CLOSE)


def test_head_scale_and_cap_come_from_the_config() -> None:
    class Config:
        logit_scale = 0.5
        logits_scaling = 4.0
        final_logit_softcapping = 30.0

    assert door.Head.of_config(Config()) == door.Head(0.125, 30.0)
    assert door.Head.of_config(object()) == door.Head(1.0, None)


def test_the_plan_says_what_it_was_tried_on(tiny: Any) -> None:
    model = tiny("llama", torch.float32)
    plan = prepare_policy(model)
    assert plan.packed
    assert plan.reason is None
    assert plan.takes_positions
    assert plan.proven_on == trial.key(model) == ("cpu", torch.float32)
