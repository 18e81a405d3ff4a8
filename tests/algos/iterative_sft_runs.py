"""Tiny models, configs and rows for `IterativeSFTTrainer`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fastrl.algos.iterative_sft_config import IterativeSFTConfig

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from iterative_parity.cases import DROPOUTS, MODELS  # noqa: E402
from ppo_parity.running import fill, make_tokenizer, tiny_config  # noqa: E402

__all__ = ["IDS", "MODELS", "TEXTS", "config", "make_tokenizer", "tiny"]

IDS = [torch.tensor([5, 6, 7, 8]), torch.tensor([9, 10]), torch.tensor([11, 12, 13, 14, 15, 16])]
TEXTS = ["w5 w6 w7 w8", "w9 w10", "w11 w12 w13 w14 w15 w16"]


def tiny(kind="llama", dropout=0.0):
    config = tiny_config(kind)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    model = MODELS[kind](config)
    fill(model, 1)
    return model


def config(tmp_path, **more):
    base = {"per_device_train_batch_size": 3, "max_steps": 9, "learning_rate": 1e-2}
    return IterativeSFTConfig(
        str(tmp_path), **{**base, "report_to": "none", "disable_tqdm": True, **more}
    )
