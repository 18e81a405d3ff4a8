"""One rank of two: torchrun … worker.py WAY FOLDER TASK…; writes FOLDER/<task>/<rank>.pt.

WAY says how weights lie: `ddp` whole on both ranks, `fsdp2`, `zero1` to `zero3` in shares;
`fsdp2_lean` that rank 0 alone loads them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers.trainer_utils import IntervalStrategy

from tests.two_ranks import leave

STEPS = 4
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_steps": STEPS,
    "logging_steps": 1,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
# An optimizer with something to resume; smooth in gradients of nearly 0.
ADAM = {"optim": "adamw_torch", "learning_rate": 0.02, "adam_epsilon": 0.1}
PROMPTS = ["abc", "hello", "9 + 3 is", "xy", "the end of", "q", "so", "what is"]


def claim_devices() -> None:
    """Let accelerate take this CPU for a GPU: it spreads weights over nothing less."""
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}

    def backend(*_: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = backend  # type: ignore[method-assign]
    if importlib.util.find_spec("deepspeed") is not None:
        # Its own all-reduce in shared memory would be compiled first, for minutes.
        comm: Any = importlib.import_module("deepspeed.comm.torch")
        comm.build_shm_op = lambda: None


def spreading(way: str) -> dict[str, Any]:
    """Training arguments that spread the weights."""
    if way == "ddp":
        return {}
    if way.startswith("fsdp2"):
        wrapped = {"transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"]}
        lean = {"cpu_ram_efficient_loading": way == "fsdp2_lean"}
        return {"fsdp": "full_shard", "fsdp_config": {"version": 2, **wrapped, **lean}}
    zero = {"stage": int(way[-1]), "stage3_gather_16bit_weights_on_model_save": True}
    config = {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }
    return {"deepspeed": config}


def saved_model(folder: Path, architecture: str = "lm", seed: int = 0) -> str:
    """Where the tiny model lies; every seed has weights of its own.

    All are made at the start: with training arguments of ZeRO-3 about, any model that is made is
    spread over both ranks.
    """
    from tests.algos.offline_parity import making

    place = folder / f"{architecture}{seed}"
    if dist.get_rank() == 0 and not place.exists():
        model = making.model("qwen2", architecture)
        random = np.random.RandomState(seed)
        for parameter in model.parameters() if seed else ():
            noise = random.standard_normal(tuple(parameter.shape)).astype(np.float32)
            parameter.data += 0.02 * torch.from_numpy(noise)
        model.save_pretrained(place)
        making.tokenizer().save_pretrained(place)
    dist.barrier()
    return str(place)


def offline(kind: str, rows: str, way: str, folder: Path, **given: Any) -> Any:
    """A trainer on fixed rows."""
    import fastrl
    from tests.algos.offline_parity import making

    keywords = {k: given.pop(k) for k in ("ref_model", "peft_config") if k in given}
    model = saved_model(folder.parent, "score" if kind == "Reward" else "lm")
    config = getattr(fastrl, f"{kind}Config")(
        str(folder), **{**SETTINGS, **spreading(way), **given}
    )
    return getattr(fastrl, f"{kind}Trainer")(
        model=model,
        args=config,
        train_dataset=making.rows(rows, 64),
        **keywords,
    )


def packed_sft(way: str, folder: Path) -> Any:
    return offline("SFT", "text", way, folder, packing=True, max_length=96, **ADAM)


def halved_sft(way: str, folder: Path) -> Any:
    """Computed in bf16, which this CPU is let do as a GPU."""
    from transformers import training_args

    training_args.is_torch_bf16_gpu_available = lambda: True
    return offline("SFT", "completion", way, folder, bf16=True, max_steps=1)


def lora_sft(way: str, folder: Path) -> Any:
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    return offline("SFT", "completion", way, folder, peft_config=adapter, learning_rate=1.0)


def dpo(way: str, folder: Path) -> Any:
    """Compared with a copy of the start that follows."""
    sync = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
    return offline("DPO", "preference", way, folder, **sync)


def dpo_given(way: str, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    other = saved_model(folder.parent, seed=1)
    reference = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    return offline("DPO", "preference", way, folder, ref_model=reference)


def reward(way: str, folder: Path) -> Any:
    return offline("Reward", "preference", way, folder)


def scripted(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Answers of 1 to 12 letters, as a rank's step and prompts have it."""
    seed = trainer.state.global_step * 2 + trainer.accelerator.process_index
    random = np.random.RandomState(seed)
    answers = [random.randint(5, 75, random.randint(1, 13)).tolist() for _ in prompts]
    ids = trainer.processing_class(prompts)["input_ids"]
    return {"prompt_ids": ids, "completion_ids": answers, "logprobs": None}


def spelling(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [(31 * sum(ids) % 17) ** 0.5 / 4 for ids in completion_ids]


def grpo(way: str, folder: Path, rollout_func: Any = None, **given: Any) -> Any:
    """GRPO with a penalty, so that a reference is asked."""
    from fastrl import GRPOConfig, GRPOTrainer

    settings = {
        "beta": 0.1,
        "num_generations": 4,
        "max_completion_length": 12,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.5,
    }
    model = saved_model(folder.parent)
    config = GRPOConfig(str(folder), **{**SETTINGS, **settings, **spreading(way), **given})
    return GRPOTrainer(
        model,
        spelling,
        config,
        Dataset.from_dict({"prompt": PROMPTS}),
        rollout_func=rollout_func,
    )


def scripted_grpo(way: str, folder: Path) -> Any:
    return grpo(way, folder, scripted, **ADAM)


TASKS: dict[str, Callable[[str, Path], Any]] = {
    f.__name__: f
    for f in (packed_sft, lora_sft, halved_sft, dpo, dpo_given, reward, grpo, scripted_grpo)
}


RESUMED = ("packed_sft", "scripted_grpo")


def run(task: str, way: str, folder: Path) -> dict[str, Any]:
    """Train and save; of some tasks resume from half-way.

    Returns:
        what was logged; whether rows are packed and the weights spread; the dtype of
        log-probabilities. The saved weights lie in `folder`/saved.
    """
    from fastrl.models import door, handshake, trial

    trainer = TASKS[task](way, folder)
    assert trainer.accelerator.num_processes == 2
    kind = {"d": DistributedType.MULTI_CPU, "f": DistributedType.FSDP}
    assert trainer.accelerator.distributed_type == kind.get(way[0], DistributedType.DEEPSPEED)
    if task in RESUMED:
        trainer.args.save_strategy, trainer.args.save_steps = IntervalStrategy.STEPS, 2
    dtypes = watch(trainer)
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    instance = door.find(trainer.model)[0]
    plan = handshake.standing(instance)
    found = {
        "logs": trainer.state.log_history,
        "packed": plan is not None and plan.packed,
        "spread": trial.partitioned(instance),
        "dtypes": dtypes,
    }
    if task in RESUMED:
        again = TASKS[task](way, folder.with_name(f"{task}_again"))
        again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        found["resumed"] = again.state.log_history
    return found


def watch(trainer: Any) -> set[torch.dtype]:
    """The dtypes in which the outermost model answers, filled as it is asked."""
    seen: set[torch.dtype] = set()
    compute = trainer.compute_loss

    def hook(module: Any, args: Any, answer: Any) -> None:
        logp = answer[0] if isinstance(answer, tuple) else answer
        seen.add(logp.dtype)

    def watched(model: Any, *args: Any, **keywords: Any) -> Any:
        handle = model.register_forward_hook(hook)
        try:
            return compute(model, *args, **keywords)
        finally:
            handle.remove()

    trainer.compute_loss = watched
    return seen


def main() -> None:
    """Run the tasks as this rank."""
    way, place, *tasks = sys.argv[1:]
    torch.set_num_threads(1)
    if way != "ddp":
        claim_devices()
    if way == "fsdp2_lean":  # as `accelerate launch` says it
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    PartialState()
    for made in ({}, {"architecture": "score"}, {"seed": 1}):
        saved_model(Path(place), **made)
    for task in tasks:
        folder = Path(place, task)
        folder.mkdir(exist_ok=True)
        try:
            found = run(task, way, folder)
        except Exception:
            found = {"error": traceback.format_exc()}
        torch.save(found, folder / f"{dist.get_rank()}.pt")
        if "error" in found:
            os._exit(1)  # the other rank may wait for this one for ever
        AcceleratorState._reset_state()
    leave()


if __name__ == "__main__":
    main()
