"""Record what TRL 1.16 logs, and how its trainer and its config are called.

PYTHONPATH=. <python with trl> -m tests.algos.online_dpo_parity.record

TRL runs as it is but for three things, each a definition that depends on what stands beside a row:
log-probabilities of padding count as 0 (it adds them to `objective/*`), the gradients of
accumulated micro-batches are averaged as their losses are (it sums them), and the loss is logged
with all its digits. Cases whose answers are `whole` have no padding and see the first one pass.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import torch

from tests.algos.online_dpo_parity import cases, running


def give(trainer: Any, script: running.Script) -> None:
    """Put the script in the place of the model's `generate`, and see to what is said above."""
    pad = trainer.processing_class.pad_token_id

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        prompts = [
            ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        answers = script.answers(prompts, trainer)[0]
        width = max(map(len, answers))
        rows = torch.tensor([ids + [pad] * (width - len(ids)) for ids in answers])
        return torch.cat([input_ids, rows], dim=1)

    trainer.model.generate = generate
    trainer.accelerator.gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    if "whole" not in script.options:
        plain = trainer._forward

        def masked(model: Any, ids: Any, mask: Any, answers: Any, counted: Any, *more: Any) -> Any:
            return plain(model, ids, mask, answers, counted, *more) * counted

        trainer._forward = masked


def fields(config: type) -> dict[str, Any]:
    """What a config has beyond `TrainingArguments`, or other defaults of."""
    import transformers

    plain = {f.name: f.default for f in dataclasses.fields(transformers.TrainingArguments)}
    found = {}
    for f in dataclasses.fields(config):
        made = f.default is dataclasses.MISSING
        default = f.default_factory() if made else f.default
        if f.name not in plain or (not made and plain[f.name] != default):
            found[f.name] = default
    return found


def main() -> None:
    """Run every case and keep what it logs."""
    import transformers
    import trl
    from trl.experimental.online_dpo import online_dpo_trainer

    torch.set_num_threads(1)
    online_dpo_trainer.round = lambda value, digits: value
    found = {}
    for case in cases.ALL:
        found[case.name] = running.run(
            case,
            online_dpo_trainer.OnlineDPOTrainer,
            online_dpo_trainer.OnlineDPOConfig,
            give,
            train_sampling_strategy="sequential",
        )
        print(case.name, flush=True)
    versions = {
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(short(logs))}" for name, logs in found.items()]
    parameters = inspect.signature(online_dpo_trainer.OnlineDPOTrainer.__init__).parameters
    parts = {
        "versions": versions,
        "arguments": list(parameters)[1:],
        "fields": fields(online_dpo_trainer.OnlineDPOConfig),
    }
    heads = [f"{json.dumps(name)}: {json.dumps(held)}" for name, held in parts.items()]
    cased = '"cases": {\n' + ",\n".join(lines) + "\n}"
    running.RECORD.write_text("{\n" + ",\n".join([*heads, cased]) + "\n}\n")


def short(logs: dict[str, list[float]]) -> dict[str, list[float]]:
    """With eight digits each."""
    return {key: [float(f"{value:.8g}") for value in column] for key, column in logs.items()}


if __name__ == "__main__":
    main()
