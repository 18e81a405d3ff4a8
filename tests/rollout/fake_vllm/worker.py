"""One of two ranks: weights that are spread over both, and answers that both wait for."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from fastrl.rollout import Request, Sampling, vllm_transfer
from fastrl.rollout.vllm_engine import Colocated
from fastrl.rollout.vllm_server import Server
from fastrl.rollout.vllm_weights import blocks, unchanged
from tests.two_ranks import leave

CPU = torch.device("cpu")
REQUESTS = (
    [Request((5, 6), (1, 2), (4, 4)), Request((9,), (4,), (2,))],
    [Request((20,), (5, 6), (3, 3))],
)


def plain() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=64, tie_word_embeddings=False, **sizes, **heads))


def adapted() -> Any:
    made = get_peft_model(plain(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return made


def fsdp2(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (2,))
    for module in [m for m in model.modules() if isinstance(m, Qwen2DecoderLayer)]:
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp1(keeps_parameters: bool) -> Callable[[Any], Any]:
    def spread(model: Any) -> Any:
        policy = ModuleWrapPolicy({Qwen2DecoderLayer, nn.Embedding})
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=keeps_parameters, device_id=CPU
        )

    return spread


SPREAD = {
    "fsdp2": (plain, fsdp2),
    "fsdp2 with adapters": (adapted, fsdp2),
    "fsdp1": (plain, fsdp1(False)),
    "fsdp1, own parameters": (plain, fsdp1(True)),
    "fsdp1 with adapters": (adapted, fsdp1(True)),
}


def gap(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    assert got.keys() == want.keys(), got.keys() ^ want.keys()
    return max((got[name] - want[name]).abs().max().item() for name in want)


def whole(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a model that is not spread, by PEFT's own merging."""
    model = copy.deepcopy(model)
    return (model.merge_and_unload() if hasattr(model, "peft_config") else model).state_dict()


def weights() -> dict[str, float]:
    gaps = {}
    for name, (make, spread) in SPREAD.items():
        model = make()
        want = whole(model)
        model = spread(model)
        with unchanged(model):
            # kept until all have come, as a loader may
            got = dict(pair for block in blocks(model, CPU) for pair in block)
        gaps[name] = gap(got, want)
    return gaps


def settings(**fields: Any) -> Any:
    facts = {
        "vllm_model_impl": "vllm",
        "vllm_enable_sleep_mode": False,
        "vllm_structured_outputs_regex": None,
        "vllm_server_base_url": None,
        "vllm_server_timeout": 0.1,
        "vllm_group_port": 1,
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": None,
        "vllm_tensor_parallel_size": 2,
    }
    return SimpleNamespace(**{**facts, **fields})


def ids(answers: Any) -> list[list[tuple[int, ...]]]:
    return [[answer.token_ids for answer in several] for several in answers]


def colocated(accelerator: Accelerator, folder: Path) -> Any:
    rank = accelerator.process_index
    model = plain()
    if rank == 0:
        model.save_pretrained(folder / "policy")
    dist.barrier()
    model = Qwen2ForCausalLM.from_pretrained(folder / "policy")
    engine = Colocated(model, accelerator, settings(), Sampling())
    answers = ids(engine.answers(REQUESTS[rank]))
    llm = importlib.import_module("vllm").LLM.made[-1]
    asked = [prompt for prompt, _ in llm.asked]
    return {"answers": answers, "asked": asked, "seed": llm.arguments["seed"]}


def served(accelerator: Accelerator) -> Any:
    fake = importlib.import_module("vllm.fake_server")
    vllm_transfer.require_cuda = lambda device: None
    rank = accelerator.process_index
    state = fake.State()
    with fake.running(state) as port:
        ports = [port]
        dist.broadcast_object_list(ports, src=0)
        url = f"http://127.0.0.1:{ports[0]}"
        model = adapted()
        want = whole(model)
        fields = settings(vllm_server_base_url=url)
        client = Server(model, accelerator, fields, Sampling())
        answers = ids(client.answers(REQUESTS[rank]))
        client.sync(fsdp2(model), accelerator)
        result = {"answers": answers, "log": state.log}
        if rank == 0:
            result["gap"] = gap(state.weights, want)
            result["asked"] = [body["prompt"] for body in state.asked]
        try:
            client.generate(REQUESTS[rank], Sampling(top_p=7.0))
        except RuntimeError as error:
            result["error"] = str(error)
    return result


def main() -> None:
    """Everything, and what came of it to a file."""
    folder = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    result = {
        "weights": weights(),
        "colocated": colocated(accelerator, folder),
        "served": served(accelerator),
    }
    torch.save(result, folder / f"{dist.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main()
