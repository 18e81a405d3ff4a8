"""Questions of Stack Exchange with a preferred answer, `response_j`, and another, `response_k`.

The rows are those of `lvwerra/stack-exchange-paired`: a part each for `data/finetune`,
`data/reward`, `data/evaluation` and `data/rl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import smoke
import torch
from datasets import Dataset, load_dataset
from peft import PeftConfig, PeftModel, TaskType
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fastrl import ConstantLengthDataset

NAME = "lvwerra/stack-exchange-paired"
FORM = "Question: {question}\n\nAnswer: {answer}"


def text(row: Mapping[str, Any], side: str = "response_j") -> str:
    """A question with one of its answers."""
    return FORM.format(question=row["question"], answer=row[side])


def prompt(question: str) -> str:
    """What an answer follows; the space before it belongs to the answer's first token."""
    return FORM.format(question=question, answer="").rstrip(" ")


def offline(folder: str) -> tuple[str, str]:
    """(a tiny Llama, made-up rows of the same form), each a folder."""
    return smoke.stack_exchange(Path(folder), FORM)


def merged(adapter: str, dtype: torch.dtype | None = None, base: str | None = None) -> Any:
    """(the model that an adapter makes of its base, the tokenizer saved beside the adapter).

    Args:
        adapter: hub name or folder, of a language model's or a reward model's.
        dtype: of the weights; None: the base's.
        base: hub name or folder; None: what the adapter was made on.
    """
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    config = PeftConfig.from_pretrained(adapter)
    name = base or config.base_model_name_or_path
    if config.task_type == TaskType.SEQ_CLS:
        model = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=dtype or "auto"
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype or "auto")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload(), tokenizer


def chars_per_token(rows: Any, tokenizer: Any, most: int = 400) -> float:
    """Characters to a token, over the first rows."""
    texts = [text(row) for row in islice(rows, most)]
    return sum(map(len, texts)) / sum(map(len, tokenizer(texts).input_ids))


def packed(
    tokenizer: Any, args: Any, seed: int, eos_token_id: int = 0
) -> tuple[ConstantLengthDataset, ConstantLengthDataset]:
    """Questions with their preferred answers to train on, and others to evaluate on.

    Args:
        args: with `dataset_name`, `subset` and `split`; `seq_length`, tokens of a row;
            `size_valid_set`, rows to hold out, at most a tenth of what is not streamed;
            `streaming`, read rows as they are needed, shuffled within `shuffle_buffer` of them;
            `num_workers`, processes that prepare what is not streamed.
        seed: of what is held out and of the order.
        eos_token_id: joins texts if the tokenizer has no such token.
    """
    rows = load_dataset(
        args.dataset_name,
        data_dir=args.subset,
        split=args.split,
        streaming=args.streaming,
        num_proc=None if args.streaming else args.num_workers,
    )
    if isinstance(rows, Dataset):
        parts = rows.train_test_split(
            test_size=min(args.size_valid_set, len(rows) // 10), seed=seed
        )
        train, held_out = parts["train"], parts["test"]
    else:
        held_out = rows.take(args.size_valid_set)
        train = rows.skip(args.size_valid_set).shuffle(buffer_size=args.shuffle_buffer, seed=seed)
    common = {
        "formatting_func": text,
        "seq_length": args.seq_length,
        "eos_token_id": eos_token_id,
        "chars_per_token": chars_per_token(train, tokenizer),
    }
    return (
        ConstantLengthDataset(tokenizer, train, infinite=True, **common),
        ConstantLengthDataset(tokenizer, held_out, **common),
    )
