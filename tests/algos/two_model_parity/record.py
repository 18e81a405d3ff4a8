"""Record what TRL 0.28 logs, and how its trainers and configs are called.

PYTHONPATH=. <python with trl 0.28> -m tests.algos.two_model_parity.record

TRL runs as it is but for four things: answers come from the script, rewards from a function of ids
(it takes reward models only), the gradients of accumulated micro-batches are averaged as their
losses are (it sums them), and the loss is logged with all its digits.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch

from tests.algos.online_dpo_parity import running
from tests.algos.online_dpo_parity.record import fields, short
from tests.algos.two_model_parity import cases

RECORD = Path(__file__).parent / "recorded.json"


def give(trainer: Any, script: running.Script) -> None:
    """Put the script in the place of both models' `generate`, and see to what is said above."""
    pad = trainer.processing_class.pad_token_id

    def padded(ids: torch.Tensor, answers: list[list[int]]) -> torch.Tensor:
        width = max(map(len, answers))
        return torch.cat([ids, torch.tensor([a + [pad] * (width - len(a)) for a in answers])], 1)

    def generate(one: Any, other: Any) -> tuple[torch.Tensor, torch.Tensor]:
        prompts = one if isinstance(one, dict) else other
        ids = prompts["input_ids"]
        rows = zip(ids, prompts["attention_mask"].bool(), strict=True)
        asked = [row[mask].tolist() for row, mask in rows for _ in range(2)]
        answers = script.answers(asked, trainer)[0]
        return padded(ids, answers[0::2]), padded(ids, answers[1::2])

    trainer._generate_completions = generate
    trainer.accelerator.gradient_accumulation_steps = trainer.args.gradient_accumulation_steps


def reward(function: Any, ids: torch.Tensor, pad: int, context: int) -> tuple[Any, Any, Any]:
    """The function's scores in the place of a reward model's."""
    answers = [[token for token in row if token != pad] for row in ids[:, context:].tolist()]
    return None, torch.tensor(function(completion_ids=answers)), None


def main() -> None:
    """Run every case and keep what it logs."""
    import transformers
    import trl
    from trl.experimental.nash_md import nash_md_trainer
    from trl.experimental.online_dpo import online_dpo_trainer
    from trl.experimental.xpo import xpo_trainer

    torch.set_num_threads(1)
    online_dpo_trainer.round = lambda value, digits: value
    modules = {"NashMD": nash_md_trainer, "XPO": xpo_trainer}
    parts: dict[str, Any] = {
        "versions": {
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }
    }
    made = {}
    for name, module in modules.items():
        module.get_reward = reward
        made[name] = getattr(module, f"{name}Trainer"), getattr(module, f"{name}Config")
        parts[f"{name}_arguments"] = list(inspect.signature(made[name][0].__init__).parameters)[1:]
        parts[f"{name}_fields"] = fields(made[name][1])
    found = {}
    for case in cases.ALL:
        trainer, config = made[case.trainer]
        found[case.name] = cases.run(
            case, trainer, config, give, train_sampling_strategy="sequential"
        )
        print(case.name, flush=True)
    heads = [f"{json.dumps(name)}: {json.dumps(held)}" for name, held in parts.items()]
    lines = [f"{json.dumps(name)}: {json.dumps(short(logs))}" for name, logs in found.items()]
    cased = '"cases": {\n' + ",\n".join(lines) + "\n}"
    RECORD.write_text("{\n" + ",\n".join([*heads, cased]) + "\n}\n")


if __name__ == "__main__":
    main()
