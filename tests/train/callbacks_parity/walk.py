"""Weights that take a prescribed walk, and what callbacks of either library make of it."""

from __future__ import annotations

import tempfile
from types import SimpleNamespace

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerControl

STEPS = 12
BEMA_CASES = {
    "defaults, often": {"update_freq": 2},
    "late": {"update_freq": 3, "update_after": 4, "lag": 2, "multiplier": 0.5},
    "floor": {"update_freq": 1, "ema_power": 2.0, "bias_power": 0.7, "min_ema_multiplier": 0.1},
    "no averaging": {"update_freq": 1, "ema_power": 0.0, "bias_power": 8.0},
}
SYNC_CASES = {"half": (0.5, 3), "default weight": (0.6, 4), "copy": (1.0, 5)}


def build() -> GPT2LMHeadModel:
    """A GPT-2 of a few hundred weights (embedding and head tied)."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=7, n_positions=4, n_embd=4, n_layer=1, n_head=1)
    return GPT2LMHeadModel(config)


def put(model: torch.nn.Module, step: int) -> None:
    """Give the weights their value at a step."""
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            ramp = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_(torch.sin(0.3 * step * (place + 1) + ramp))


def digest(model: torch.nn.Module) -> list[float]:
    """One number a tensor that tells whether any weight moved."""
    found = []
    for parameter in model.parameters():
        flat = parameter.detach().double().flatten()
        found.append(float((flat * torch.cos(torch.arange(len(flat)).double())).sum()))
    return found


def bema(callback_class: type, options: dict) -> list[float]:
    """Digest of the averaged model after the walk."""
    model = build()
    put(model, 0)
    callback = callback_class(**options)
    with tempfile.TemporaryDirectory() as folder:
        args = SimpleNamespace(output_dir=folder)
        state = SimpleNamespace(global_step=0, is_world_process_zero=True)
        callback.on_train_begin(args, state, TrainerControl(), model=model)
        for state.global_step in range(1, STEPS + 1):
            put(model, state.global_step)
            callback.on_step_end(args, state, TrainerControl(), model=model)
        callback.on_train_end(args, state, TrainerControl())
        return digest(GPT2LMHeadModel.from_pretrained(f"{folder}/bema"))


def sync(callback_class: type, alpha: float, every: int) -> list[float]:
    """Digest of the reference after the walk."""
    model, reference = build(), build()
    put(reference, 0)
    callback = callback_class(ref_model=reference, accelerator=None)
    args = SimpleNamespace(ref_model_mixup_alpha=alpha, ref_model_sync_steps=every)
    for step in range(1, STEPS + 1):
        put(model, step)
        state = SimpleNamespace(global_step=step)
        callback.on_step_end(args, state, TrainerControl(), model=model)
    return digest(reference)
