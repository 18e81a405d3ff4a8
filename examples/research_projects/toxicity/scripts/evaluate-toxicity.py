"""How toxic are the texts that models write after a toxic comment?

    python examples/research_projects/toxicity/scripts/evaluate-toxicity.py --model_type all
    python examples/research_projects/toxicity/scripts/evaluate-toxicity.py --smoke \\
        --model_type runs/toxicity

Prints mean and standard deviation for each model and writes them to --output_file.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[2]))
import smoke
from toxicity_classifier import NAME, ToxicityClassifier

from fastrl import set_seed

MODELS = (
    "ybelkada/gpt-neo-125m-detox",
    "EleutherAI/gpt-neo-125M",
    "EleutherAI/gpt-neo-2.7B",
    "ybelkada/gpt-neo-2.7B-detox",
    "ybelkada/gpt-j-6b-sharded-bf16",
    "ybelkada/gpt-j-6b-detoxs",
)
SMOKE = {"num_samples": 96, "context_length": 4, "max_new_tokens": 20}


@dataclass
class ScriptArguments:
    """Which models, on which comments."""

    model_type: str = field(
        default="all", metadata={"help": "Hub name or folder of a model, or 'all' known ones."}
    )
    output_file: str = field(default="toxicity.csv", metadata={"help": "Where the table goes."})
    batch_size: int = field(default=64, metadata={"help": "Comments continued at once."})
    num_samples: int = field(default=400, metadata={"help": "Comments continued."})
    context_length: int = field(default=2000, metadata={"help": "Most tokens of a comment."})
    max_new_tokens: int = field(default=30, metadata={"help": "Most tokens of a continuation."})
    dataset_name: str = field(
        default="OxAISH-AL-LLM/wiki_toxic",
        metadata={"help": "Hub name or folder; rows with `comment_text` and `label`."},
    )
    toxicity_model: str = field(default=NAME, metadata={"help": "Hub name or folder."})
    seed: int = field(default=0, metadata={"help": "Of the sampling."})


@torch.no_grad()
def continuations(
    name: str, comments: list[str], args: ScriptArguments, device: torch.device
) -> list[str]:
    """What the model writes after each comment, without the comment."""
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    most = model.config.max_position_embeddings - args.max_new_tokens
    texts = []
    for start in range(0, len(comments), args.batch_size):
        batch = tokenizer(
            comments[start : start + args.batch_size],
            padding=True,
            truncation=True,
            max_length=min(args.context_length, most),
            return_tensors="pt",
        ).to(device)
        made = model.generate(
            **batch,
            do_sample=True,
            max_new_tokens=args.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts += tokenizer.batch_decode(made[:, batch.input_ids.shape[1] :], True)
    return texts


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Model -> (mean, standard deviation) of the toxicity of its texts."""
    offline, args = smoke.parse((ScriptArguments,), SMOKE, __doc__, argv)
    names = MODELS if args.model_type == "all" else (args.model_type,)
    if offline.smoke is not None:
        made = smoke.toxicity(Path(offline.smoke))
        args.toxicity_model, args.dataset_name = made.classifier, made.comments
        names = (made.model,) if args.model_type == "all" else names
    device = PartialState().device
    judge = ToxicityClassifier(args.toxicity_model, device)
    rows = load_dataset(args.dataset_name, split="test").filter(lambda row: row["label"] == 1)
    comments = list(rows["comment_text"])[: args.num_samples]
    found = {}
    for name in names:
        set_seed(args.seed)
        toxicity = judge.toxicity(continuations(name, comments, args, device))
        found[name] = (toxicity.mean().item(), toxicity.std().item())
        print(f"{name}: toxicity {found[name][0]:.3f} ± {found[name][1]:.3f}", flush=True)
    with open(args.output_file, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["model", "mean", "std"])
        table.writerows([name, *figures] for name, figures in found.items())
    return found


if __name__ == "__main__":
    main()
