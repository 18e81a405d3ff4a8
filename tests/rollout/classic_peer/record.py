"""Record what TRL 0.7.11 makes of every case: run with TRL's Python, from anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
import trl
from classic_cases import ENVIRONMENTS, QUERIES, SAMPLERS, play, sample


def main() -> None:
    """Write recorded.json."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    environments = {n: [play(trl, n, [q])[0] for q in QUERIES] for n in ENVIRONMENTS}
    best = {name: sample(trl, name) for name in SAMPLERS}
    found = {"versions": versions, "best_of_n": best, "environments": environments}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_name("recorded.json").write_text(text)


if __name__ == "__main__":
    main()
