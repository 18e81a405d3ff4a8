"""StackLLaMA, between the stages: a base model and an adapter become one model.

    python examples/research_projects/stack_llama/scripts/merge_peft_adapter.py \\
        --base_model_name huggyllama/llama-7b --adapter_model_name llama-se/final_checkpoint \\
        --output_name llama-se-merged

Language models and reward models; what is needed is read from the adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))
import smoke
import stack_exchange

SMOKE = {
    "adapter_model_name": "runs/stack_llama/sft/final_checkpoint",
    "output_name": "runs/stack_llama/sft_merged",
}


@dataclass
class ScriptArguments:
    """What is merged."""

    adapter_model_name: str | None = field(
        default=None, metadata={"help": "Hub name or folder of the adapter."}
    )
    base_model_name: str | None = field(
        default=None, metadata={"help": "Hub name or folder; unset: what the adapter was made on."}
    )
    output_name: str | None = field(
        default=None, metadata={"help": "Folder of the merged model, and its name on the hub."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Upload it too."})


def main(argv: Sequence[str] | None = None) -> str:
    """Merge and save; the folder."""
    offline, args = smoke.parse((ScriptArguments,), SMOKE, __doc__, argv)
    for name in ("adapter_model_name", "output_name"):
        if not getattr(args, name):
            raise SystemExit(f"--{name} is needed")
    dtype = torch.float32 if offline.smoke is not None else torch.bfloat16
    merged, tokenizer = stack_exchange.merged(args.adapter_model_name, dtype, args.base_model_name)
    merged.save_pretrained(args.output_name)
    tokenizer.save_pretrained(args.output_name)
    if args.push_to_hub:
        merged.push_to_hub(args.output_name)
        tokenizer.push_to_hub(args.output_name)
    print(f"merged into {args.output_name}")
    return args.output_name


if __name__ == "__main__":
    main()
