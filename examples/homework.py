"""What the acts of the demo share: a tokenizer of characters, replies, a progress bar."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, PreTrainedTokenizerFast

EVAL_SEED = 2024
console = Console()


def build_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],  # GPT-2 would add token_type_ids
    )


def read_reply(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor) -> str:
    """What stands before the end mark; any other special token is left in, and is wrong."""
    return tokenizer.decode(ids).split(tokenizer.eos_token)[0]


def small_gpt2(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    """Two layers × 64, without dropout: samples come from the very distribution that learns."""
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=16,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.1,  # the usual 0.02 is made for wide models and learns slowly here
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def progress_bar() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(bar_width=32),
        TextColumn("{task.completed:>3}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[live]}"),
        console=console,
    )


def marked(reply: str, right: bool) -> str:
    """A reply with its mark, for a table."""
    return f"{reply} {'[green]✓' if right else '[red]✗'}"
