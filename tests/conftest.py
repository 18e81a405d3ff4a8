"""What all tests share."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

# Where there is no GPU, Triton's kernels are interpreted. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Models here are tiny: a second thread costs more than it brings, most of all on a busy machine.
# Op tests set their own number.
torch.set_num_threads(1)

# How far two computations of one thing may lie apart, by the dtype of the inputs. Outputs are fp32,
# so 16-bit inputs are exact in both. Loosening an entry takes a commit of its own and a reason.
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-12},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2e-5, "atol": 2e-6},
    torch.float16: {"rtol": 2e-5, "atol": 2e-6},
}


@pytest.fixture
def close() -> Any:
    """close(actual, expected, dtype=torch.float32): equal within the table; NaN equals NaN."""

    def check(actual: Any, expected: Any, dtype: torch.dtype = torch.float32) -> None:
        torch.testing.assert_close(actual, expected, equal_nan=True, **TOLERANCES[dtype])

    return check
