"""What only a GPU can show: real backends through the public door, no waits, addresses past 2^31.

The kernels' own numbers are tested in tests/ops/test_kernels_*.py, which run for real here too.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from fastrl import ops
from fastrl.ops import use_backend
from fastrl.ops._dispatch import OPS

pytestmark = pytest.mark.gpu

BACKENDS = ["cuda", "triton"]


def arguments(name, rows=5, columns=300):
    """Arguments of an operation on the device."""
    torch.manual_seed(0)
    values, more = torch.randn(2, rows, columns, device="cuda")
    mask = torch.rand(rows, columns, device="cuda") > 0.3
    mask[:, 0] = True
    ids = torch.randint(0, columns, (rows,), device="cuda")
    return {
        "gae": (values, more, mask, 1.0, 0.95),
        "whiten": (values, mask),
        "shaped_rewards": (values[:, 0].contiguous(), values, more, mask, 0.2),
        "token_logprobs": (values.bfloat16(), ids, 0.7),
        "sample": (values, ids, 3, 0.9, 40, 0.95, 0.01),
        "penalise": (values, ids[:, None].expand(rows, 4), 1.2),
    }[name]


def served(name, backend):
    return OPS[name].missing(backend) is None


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


NAMES = ["gae", "whiten", "shaped_rewards", "token_logprobs", "sample", "penalise"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_each_backend_gives_what_the_reference_gives(name, backend):
    if not served(name, backend):
        pytest.skip(str(OPS[name].missing(backend)))
    inputs = arguments(name)
    with use_backend("reference"):
        expected = as_tuple(getattr(ops, name)(*inputs))
    with use_backend(backend):
        actual = as_tuple(getattr(ops, name)(*inputs))
    for found, value in zip(actual, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("name", NAMES)
def test_left_alone_a_gpu_tensor_is_served_by_a_kernel(name):
    if not (served(name, "cuda") or served(name, "triton")):
        pytest.skip("the CUDA library was not built")
    assert OPS[name].pick(arguments(name)[0]) is not OPS[name]._load("reference")


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name, backend):
    if not served(name, backend):
        pytest.skip(str(OPS[name].missing(backend)))
    inputs = arguments(name)
    with use_backend(backend):
        getattr(ops, name)(*inputs)  # compilation may wait
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            getattr(ops, name)(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_logprobs_do_not_wait_and_are_right(backend):
    if not served("token_logprobs", backend):
        pytest.skip(str(OPS["token_logprobs"].missing(backend)))
    logits, targets, temperature = arguments("token_logprobs")
    weights = torch.randn(2, len(targets), device="cuda")
    leaf = logits.clone().requires_grad_()

    def run():
        logp, entropy = ops.token_logprobs(leaf, targets, temperature)
        return torch.autograd.grad((logp * weights[0] + entropy * weights[1]).sum(), leaf)[0]

    with use_backend(backend):
        run()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            actual = run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with use_backend("reference"):
        expected = run()
    torch.testing.assert_close(actual.float(), expected.float(), rtol=2.0**-7, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_the_same_bits_every_time(backend):
    for name in NAMES:
        if not served(name, backend):
            continue
        inputs = arguments(name, 300, 5000)
        with use_backend(backend):
            first = as_tuple(getattr(ops, name)(*inputs))
            for _ in range(5):
                again = as_tuple(getattr(ops, name)(*inputs))
                for a, b in zip(first, again, strict=True):
                    assert torch.equal(a.nan_to_num(), b.nan_to_num()), name


def compiled(kernel):
    """How many variants of a Triton kernel exist for this device."""
    return len(kernel.device_caches[torch.cuda.current_device()][0])


def test_triton_compiles_one_variant_for_all_shapes_and_temperatures():
    if not served("token_logprobs", "triton"):
        pytest.skip(str(OPS["token_logprobs"].missing("triton")))
    module = {
        name: importlib.import_module(f"fastrl.kernels.{name}")
        for name in ("token_logprobs", "gae", "whiten", "shaped_rewards")
    }
    kernels = [
        module["token_logprobs"]._forward_shares,
        module["token_logprobs"]._finish_rows,
        module["gae"]._gae_rows,
        module["whiten"]._find_moments,
        module["whiten"]._apply,
        module["shaped_rewards"]._shape_rows,
    ]
    generator = torch.Generator().manual_seed(0)
    before = None
    with use_backend("triton"):
        for trial in range(30):
            rows, columns = torch.randint(1, 700, (2,), generator=generator).tolist()
            columns = [1, 16, 64, columns][trial % 4]
            for name in ("gae", "whiten", "shaped_rewards"):
                getattr(ops, name)(*arguments(name, rows, columns))
            logits, targets, _ = arguments("token_logprobs", rows, columns)
            ops.token_logprobs(logits, targets, 0.5 + 0.1 * trial)
            counts = [compiled(kernel) for kernel in kernels]
            before = before or counts
    assert counts == before


def test_a_side_stream_is_used():
    """A copy that is delayed on a side stream is seen only by kernels launched behind it there."""
    for name in NAMES:
        inputs = arguments(name, 64, 2000)
        expected = as_tuple(getattr(ops, name)(*inputs))
        late = [torch.zeros_like(inputs[0])]
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            late[0].copy_(inputs[0])
            actual = as_tuple(getattr(ops, name)(late[0], *inputs[1:]))
        torch.cuda.synchronize()
        for found, value in zip(actual, expected, strict=True):
            assert torch.equal(found.nan_to_num(), value.nan_to_num()), name


@pytest.mark.parametrize("name", ["token_logprobs", "sample", "gae", "whiten"])
def test_can_be_captured_in_a_graph(name):
    inputs = arguments(name)
    expected = as_tuple(getattr(ops, name)(*inputs))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = as_tuple(getattr(ops, name)(*inputs))
    graph.replay()
    torch.cuda.synchronize()
    for found, value in zip(captured, expected, strict=True):
        assert torch.equal(found.nan_to_num(), value.nan_to_num())


def room_for(gibibytes):
    free, _ = torch.cuda.mem_get_info()
    if free < gibibytes * 2**30:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory")


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_past_two_to_the_31(backend):
    if not served("token_logprobs", backend):
        pytest.skip(str(OPS["token_logprobs"].missing(backend)))
    room_for(12)
    rows, vocab = 14_200, 151_936  # 2.16e9 elements
    logits = torch.empty(rows, vocab, dtype=torch.bfloat16, device="cuda").normal_()
    targets = torch.randint(0, vocab, (rows,), device="cuda")
    last = slice(rows - 8, rows)
    with use_backend("reference"):
        expected = ops.token_logprobs(logits[last], targets[last])
    namespace = OPS["token_logprobs"]._load(backend)
    logp, entropy, lse = namespace.forward(logits, targets, 1.0)
    torch.testing.assert_close((logp[last], entropy[last]), expected, rtol=2e-5, atol=5e-6)
    g = torch.ones(rows, device="cuda")
    tail = logits[last].float()
    namespace.backward(logits, targets, lse, entropy, g, None, 1.0, out=logits)
    gradient = -torch.softmax(tail, dim=1)
    gradient.scatter_add_(1, targets[last, None], torch.ones(8, 1, device="cuda"))
    torch.testing.assert_close(logits[last].float(), gradient, rtol=2.0**-7, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rewards_past_two_to_the_31(backend):
    room_for(36)
    rows, columns = 2**19 + 1, 4097  # 2.15e9 elements
    values = torch.empty(rows, columns, device="cuda").normal_()
    mask = torch.ones(rows, columns, dtype=torch.bool, device="cuda")
    last = slice(rows - 3, rows)
    if served("gae", backend):
        advantages, returns = OPS["gae"]._load(backend).forward(values, values, mask, 1.0, 0.9)
        with use_backend("reference"):
            expected = ops.gae(values[last], values[last], mask[last], 1.0, 0.9)
        found = (advantages[last], returns[last])
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-4)
        del advantages, returns, found
    if served("whiten", backend):
        white = OPS["whiten"]._load(backend).forward(values, mask, True)
        assert abs(float(white[last].double().mean()) - float(values[last].double().mean())) < 1e-3
        assert abs(float(white.std()) - 1.0) < 1e-4


def test_sampling_past_two_to_the_31():
    room_for(12)
    rows, vocab = 14_200, 151_936
    logits = torch.empty(rows, vocab, dtype=torch.bfloat16, device="cuda").normal_()
    seeds = torch.arange(rows, device="cuda")
    last = slice(rows - 4, rows)
    tokens, logp, _ = ops.sample(logits, seeds, 1, top_k=50, top_p=0.9)
    with use_backend("reference"):
        expected = ops.sample(logits[last], seeds[last], 1, top_k=50, top_p=0.9)
    assert torch.equal(tokens[last], expected[0])
    torch.testing.assert_close(logp[last], expected[1], rtol=2e-5, atol=5e-6)


def test_a_sample_is_the_cpu_s_sample():
    """Tokens depend on seed, step and logits only: not on the device."""
    torch.manual_seed(1)
    logits = torch.randn(64, 50_257) * 3
    seeds = torch.randint(-(2**62), 2**62, (64,))
    for options in ({}, {"top_p": 0.9}, {"top_k": 50}, {"temperature": 0.6, "min_p": 0.02}):
        cpu = ops.sample(logits, seeds, 9, **options)
        gpu = ops.sample(logits.cuda(), seeds.cuda(), 9, **options)
        assert torch.equal(gpu[0].cpu(), cpu[0])
        torch.testing.assert_close(gpu[1].cpu(), cpu[1], rtol=2e-5, atol=5e-6)


def test_linear_logprobs_on_every_engine():
    torch.manual_seed(2)
    hidden = torch.randn(70, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(1003, 64, device="cuda") / 8).bfloat16().requires_grad_()
    targets = torch.randint(0, 1003, (70,), device="cuda")
    for learned in (True, False):
        weight.requires_grad_(learned)
        results = {}
        for backend in ("reference", "cuda", "triton"):
            if not served("linear_token_logprobs", backend):
                continue
            with use_backend(backend):
                logp, entropy = ops.linear_token_logprobs(hidden, weight, targets)
                leaves = [hidden, weight] if learned else [hidden]
                grads = torch.autograd.grad((logp + 0.1 * entropy).sum(), leaves)
            results[backend] = (logp, entropy, *grads)
        expected = results.pop("reference")
        for found in results.values():
            for a, b in zip(found, expected, strict=True):
                bound = 0.02 * float(b.detach().float().abs().max())
                torch.testing.assert_close(a.float(), b.float(), rtol=0.02, atol=bound)
