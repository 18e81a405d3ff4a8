"""Triton kernels compile for real GPUs, though there is none: the interpreter forgives too much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Runs in a process of its own, where kernels are not interpreted. Prints {kernel: its PTX's loads}.
PROGRAM = r"""
import json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastrl.kernels import gae, sample, shaped_rewards, token_logprobs, whiten

FLOATS, INTS, IDS = "*fp32", "i32", "*i64"
common = {"targets": IDS, "vocab": INTS, "row_stride": INTS, "temperature": "fp32"}
rows = {name: FLOATS for name in ("lse_in", "entropy_in", "grad_logp", "grad_entropy")}

def kernels():
    for kind in ("*bf16", FLOATS):
        logits = {**common, "logits": kind, "sums": FLOATS, "slope": "fp32", "splits": INTS}
        yield token_logprobs._forward_shares, {**logits, "share": INTS}, {"BLOCK": 4096}, 8
        outs = {name: FLOATS for name in ("logp_out", "entropy_out", "lse_out")}
        yield token_logprobs._finish_rows, {**logits, **outs}, {"SPLITS": 64}, 1
        back = {**logits, **rows, "anchors": "*fp64", "out": kind, "gap": INTS}
        for logp, entropy in ((True, True), (True, False), (False, True)):
            flags = {"UNIT": 16, "HAS_LOGP": logp, "HAS_ENTROPY": entropy, "BLOCK": 4096}
            yield token_logprobs._backward_rows, back, flags, 8
        place = {**back, "rows": INTS, "out_stride": INTS}
        yield token_logprobs._write_targets, place, {"BLOCK": 128}, 4
    table = {name: FLOATS for name in ("rewards", "values", "advantages", "returns", "logp")}
    table |= {"ref_logp": FLOATS, "kl": FLOATS, "scores": FLOATS, "mask": "*u8", "columns": INTS}
    table |= {"gamma": "fp32", "decay": "fp32", "coefficient": "fp32", "kind": INTS}
    yield gae._gae_rows, table, {"BLOCK": gae.BLOCK}, 4
    yield shaped_rewards._shape_rows, table, {"BLOCK": shaped_rewards.BLOCK}, 4
    for n in ("i32", "i64"):
        flat = {"x_in": FLOATS, "mask_in": "*u8", "shares": "*fp64", "out": FLOATS, "n": n}
        flat |= {"count": INTS, "epsilon": "fp32"}
        yield whiten._find_moments, flat, {"BLOCK": whiten.BLOCK}, 8
        sizes = {"SHIFT_MEAN": True, "SHARES": whiten.SHARES, "BLOCK": whiten.BLOCK}
        yield whiten._apply, flat, sizes, 8

    draw = {name: IDS for name in ("seeds", "steps", "tokens", "top_p_bits")}
    draw |= {"top_p_bits": "i64", "rate": "fp32", "min_d": "fp32", "top_k": INTS, "blocks": INTS}
    draw |= {"logp_out": FLOATS, "logp_full_out": FLOATS, "out": FLOATS, "vocab": INTS}
    yield sample._noise_rows, draw, {"BLOCK": 256}, 4
    for kind in ("*bf16", FLOATS):
        for k, p, greedy in ((1, 1, 0), (0, 0, 0), (0, 0, 1)):
            flags = {"TOP_K": bool(k), "TOP_P": bool(p), "GREEDY": bool(greedy)}
            flags |= {"BLOCK": sample.BLOCK}
            yield sample._sample_rows, {**draw, "logits": kind}, flags, 8

found = {}
for function, types, constants, warps in kernels():
    names = function.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    pointers = [i for i, name in enumerate(names) if signature[name][0] == "*"]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(function, signature, constexprs=places, attrs=aligned)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    exact = function in (sample._sample_rows, sample._noise_rows)
    options = {"num_warps": warps, "enable_fp_fusion": not exact}
    ptx = triton.compile(source, target=target, options=options).asm["ptx"]
    assert not (exact and re.search(r"fma\.rn\S*f32|mul\.f32", ptx))
    key = f"{function.__name__} {types.get('logits', '')}".strip()
    found.setdefault(key, []).append(re.findall(r"(?:ld|st)\.global\S*", ptx))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles_for(arch, tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(arch)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    assert len(found) == 15
    # Rows of any stride are read, and gradients written, 16 bytes at a time.
    for kind in ("*bf16", "*fp32"):
        for accesses in found[f"_forward_shares {kind}"]:
            assert "ld.global.v4.b32" in accesses
        for accesses in found[f"_backward_rows {kind}"]:
            assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(accesses)
