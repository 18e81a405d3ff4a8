"""Records what TRL's GRPO makes of a slice of random answers, and the fields of its configs.

Run by the Python of the peer (trl 1.16.0): python tests/algos/grpo_peer/record.py
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from transformers import TrainingArguments
from trl.trainer.grpo_trainer import GRPOTrainer

HERE = Path(__file__).parent
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
LENGTHS = (5, 2, 4, 1, 0, 3)
HOLE = (0, 2)  # a tool's token inside the first answer
STEP = {
    "accumulation": 3,
    "slices_per_generation": 2,
    "generation_tokens": 57,
    "ranks": 2,
    "max_completion_length": 9,
}
VARIANTS = {
    "off_policy": {},
    "sequence": {"importance_sampling_level": "sequence"},
    "kl": {"beta": 0.3},
    "kl_sequence": {"beta": 0.3, "importance_sampling_level": "sequence"},
    "plain_kl_delta": {
        "beta": 0.3,
        "use_bias_correction_kl": False,
        "delta": 1.5,
        "epsilon_high": 0.28,
    },
    "on_policy": {"beta": 0.3},
    "masks": {"off_policy_mask_threshold": 0.05, "top_entropy_quantile": 0.6, "beta": 0.1},
    "engine": {},
    "engine_answers": {},
    "evaluated": {"epsilon_high": 0.4},
}


def drawn() -> dict[str, list]:
    """Random answers, rounded so that the file holds what was computed with."""
    draw = torch.Generator().manual_seed(7)
    shape = (len(LENGTHS), max(LENGTHS))
    logp = -torch.rand(shape, generator=draw) * 3
    near = {
        name: (logp + 0.5 * torch.randn(shape, generator=draw)).clamp(max=0.0)
        for name in ("old_logp", "ref_logp", "sampled_logp")
    }
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    mask[HOLE] = False
    near["sampled_logp"][2, 1] = torch.nan
    parts = {
        "logp": logp,
        **near,
        "entropy": torch.rand(shape, generator=draw) * 2,
        "ratio_of_tokens": (torch.rand(shape, generator=draw) * 2).masked_fill(~mask, 1.0),
        "ratio_of_answers": torch.rand(shape[0], 1, generator=draw) * 2,
        "advantages": torch.tensor([1.3, -0.7, -1.1, 0.4, 0.9, 0.0]),
    }
    return {name: rounded(x) for name, x in parts.items()} | {"mask": mask.int().tolist()}


def rounded(x: torch.Tensor) -> list:
    return json.loads(json.dumps(x.tolist()), parse_float=lambda text: float(f"{float(text):.4g}"))


class OneRank:
    """The accelerator's collectives where there is one process, which says it is one of several."""

    num_processes = STEP["ranks"]
    sync_gradients = True

    def gather(self, x):
        return x

    def pad_across_processes(self, x, **_):
        return x

    def reduce(self, x, reduction):
        return x


def trainer(loss: str, changes: dict, answers: dict, training: bool, engine: bool):
    args = trl.GRPOConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        loss_type=loss,
        steps_per_generation=STEP["slices_per_generation"],
        gradient_accumulation_steps=STEP["accumulation"],
        **changes,
    )
    return args, SimpleNamespace(
        args=args,
        accelerator=OneRank(),
        model=SimpleNamespace(training=training),
        use_vllm=engine,
        current_gradient_accumulation_steps=STEP["accumulation"],
        max_completion_length=STEP["max_completion_length"],
        epsilon_low=args.epsilon,
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *a, **k: (
            answers["logp"],
            answers["entropy"],
            None,
        ),
        get_high_entropy_mask=lambda *a: GRPOTrainer.get_high_entropy_mask(
            SimpleNamespace(accelerator=OneRank()), *a
        ),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        **{
            name: getattr(args, name)
            for name in (
                "beta",
                "loss_type",
                "importance_sampling_level",
                "off_policy_mask_threshold",
                "top_entropy_quantile",
                "vllm_importance_sampling_correction",
            )
        },
    )


def case(loss: str, variant: str, data: dict) -> dict:
    answers = {name: torch.tensor(x) for name, x in data.items()}
    answers["logp"].requires_grad_()
    rows = len(LENGTHS)
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros(rows, max(LENGTHS), dtype=torch.long),
        "completion_mask": answers["mask"],
        "advantages": answers["advantages"],
        "ref_per_token_logps": answers["ref_logp"],
        "num_items_in_batch": torch.tensor(STEP["generation_tokens"]),
    }
    if variant != "on_policy":
        inputs["old_per_token_logps"] = answers["old_logp"]
    if variant == "masks":
        inputs["sampling_per_token_logps"] = answers["sampled_logp"]
    engine = variant.startswith("engine")
    if engine:
        kind = "answers" if variant == "engine_answers" else "tokens"
        inputs["importance_sampling_ratio"] = answers[f"ratio_of_{kind}"]
    _, peer = trainer(loss, VARIANTS[variant], answers, variant != "evaluated", engine)
    value = GRPOTrainer._compute_loss(peer, None, inputs)
    value.backward()
    logged = peer._metrics["eval" if variant == "evaluated" else "train"]
    wanted = [key for key in logged if key == "kl" or "clip" in key or "phi" in key]
    return {
        "loss": value.item(),
        "gradient": [float(f"{x:.7g}") for x in answers["logp"].grad.flatten().tolist()],
        "metrics": {key: logged[key][0] for key in wanted},
    }


def fields(config: type) -> dict[str, object]:
    """Every field that TrainingArguments has not, or has with another default."""
    plain = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    return {
        f.name: f.default
        for f in dataclasses.fields(config)
        if f.name not in plain or plain[f.name] is not f.default
    }


def main() -> None:
    data = drawn()
    cases = {
        f"{loss}/{variant}": case(loss, variant, data)
        for loss in LOSSES
        for variant in VARIANTS
        if (loss, variant) != ("vespo", "engine_answers")  # TRL refuses it
    }
    recorded = {"step": STEP, "variants": VARIANTS, "answers": data, "cases": cases}
    peer = f"trl {trl.__version__}"
    (HERE / "losses.json").write_text(json.dumps({"peer": peer, **recorded}) + "\n")
    configs = {c.__name__: fields(c) for c in (trl.GRPOConfig, trl.RLOOConfig)}
    (HERE / "configs.json").write_text(json.dumps({"peer": peer, **configs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
