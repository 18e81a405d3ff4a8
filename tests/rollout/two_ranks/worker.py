"""One of two ranks of a model that FSDP spreads over both; they generate different amounts."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from fastrl.models import prepare_policy
from fastrl.rollout import Engine, Request, Sampling
from fastrl.rollout.serving import served, serving
from tests.two_ranks import leave

REQUESTS = (
    [Request((5, 6, 7), (1, 2), (14, 9)), Request((8,), (3,), (4,)), Request((9, 9), (4,), (2,))],
    [Request((11, 12), (5,), (3,))],
)


def model() -> PreTrainedModel:
    torch.manual_seed(0)
    made = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
    )
    prepare_policy(made)  # before it is spread, as trainers do
    return made


def answers(policy: PreTrainedModel, requests: list[Request]) -> list[list[tuple[int, ...]]]:
    """Two answers at a time, so that rows wait and prompts are fed between steps."""
    found = served(policy)
    assert not isinstance(found, str), found
    with serving(policy, found):
        made = Engine(found, requests, Sampling(), max_rows=2).run()
    return [[answer.token_ids for answer in several] for several in made]


def main() -> None:
    """Generate as this rank, twice, and alone before for comparison."""
    (folder,) = sys.argv[1:]
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    assert dist.get_world_size() == 2
    policy = model()
    alone = answers(policy, REQUESTS[rank])
    mesh = init_device_mesh("cpu", (2,))
    for layer in policy.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    passes = []
    policy.model.norm.register_forward_hook(lambda *_: passes.append(1))
    together = answers(policy, REQUESTS[rank])
    counted = len(passes)
    again = answers(policy, REQUESTS[rank])
    result = {"alone": alone, "together": together, "again": again, "passes": counted}
    torch.save(result, Path(folder) / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main()
