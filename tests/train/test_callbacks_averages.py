"""SyncRefModelCallback and BEMACallback: the formula, TRL's numbers, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel, TrainerControl

from fastrl.train.callbacks import BEMACallback, SyncRefModelCallback

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from callbacks_parity.walk import (  # noqa: E402
    BEMA_CASES,
    SYNC_CASES,
    bema,
    build,
    digest,
    put,
    sync,
)

PEER = json.loads((HERE.parent / "fixtures" / "callbacks" / "trl_1_16.json").read_text())
CONTROL = TrainerControl()


@pytest.mark.parametrize("name", BEMA_CASES)
def test_bema_equals_trl(name):
    assert bema(BEMACallback, BEMA_CASES[name]) == pytest.approx(PEER["bema"][name], rel=1e-6)


@pytest.mark.parametrize("name", SYNC_CASES)
def test_sync_equals_trl(name):
    assert sync(SyncRefModelCallback, *SYNC_CASES[name]) == pytest.approx(
        PEER["sync"][name], rel=1e-6
    )


class OneWeight(nn.Module):
    def __init__(self, value, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=dtype))
        self.frozen = nn.Parameter(torch.tensor([7.0]), requires_grad=False)


def averaged(weights, folder, dtype=torch.float32, **options):
    """bema after training visits `weights` (the first is where it starts)."""
    model = OneWeight(weights[0], dtype)
    callback = BEMACallback(**options)
    args = SimpleNamespace(output_dir=folder)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    callback.on_train_begin(args, state, CONTROL, model=model)
    for step, weight in enumerate(weights[1:], 1):
        model.weight.data.fill_(weight)
        state.global_step = step
        callback.on_step_end(args, state, CONTROL)
    found = callback.weights()
    assert found["frozen"].item() == 7.0
    return found["weight"].item()


def test_bema_on_paper(tmp_path):
    # lag 2, multiplier 1, kappa 1/2, eta 1: beta_2 = 4^-1/2 = 1/2, beta_7 = 9^-1/2 = 1/3;
    # alpha_2 = 1/4, alpha_7 = 1/9.
    options = {"lag": 2, "ema_power": 0.5, "bias_power": 1.0}
    # t=2: ema = (1 + 3)/2 = 2; bema = 2 + (3 - 1)/4 = 2.5
    assert averaged([1.0, 9.0, 3.0], tmp_path, update_freq=2, **options) == pytest.approx(2.5)
    # only t=7 counts: ema = 2/3 * 1 + 1/3 * 10 = 4; bema = 4 + (10 - 1)/9 = 5
    walk = [1.0, 0, 0, 0, 0, 0, 0, 10.0]
    assert averaged(walk, tmp_path, update_freq=7, **options) == pytest.approx(5.0)
    # from t=5 on: start and ema are 4; at t=7 ema = 4 * 2/3 + 10/3 = 6; bema = 6 + 6/9
    walk = [1.0, 0, 0, 0, 0, 4.0, 0, 10.0]
    late = averaged(walk, tmp_path, update_freq=2, update_after=5, **options)
    assert late == pytest.approx(6 + 6 / 9)


def test_bema_of_16_bit_weights_is_kept_in_fp32(tmp_path):
    # Each update moves the average by 1/1000, which bf16 near 1 cannot hold.
    walk = [1.0] + [2.0] * 100
    options = {"update_freq": 1, "ema_power": 1.0, "lag": 1000, "multiplier": 0.0}
    got = averaged(walk, tmp_path, torch.bfloat16, bias_power=50.0, **options)
    assert got == pytest.approx(2 - 0.999**100, rel=4e-3)  # rounded to bf16 at the end only


def test_bema_goes_on_from_a_checkpoint(tmp_path):
    options = {"update_freq": 1, "lag": 2}
    args = SimpleNamespace(output_dir=tmp_path)

    def run(model, callback, first, last, save_at=None):
        state = SimpleNamespace(global_step=first, is_world_process_zero=True)
        callback.on_train_begin(args, state, CONTROL, model=model)
        for state.global_step in range(first + 1, last + 1):
            put(model, state.global_step)
            callback.on_step_end(args, state, CONTROL)
            if state.global_step == save_at:
                (tmp_path / f"checkpoint-{save_at}").mkdir()
                callback.on_save(args, state, CONTROL)
        return callback

    model = build()
    put(model, 0)
    whole = run(model, BEMACallback(**options), 0, 6, save_at=4)
    again = build()
    put(again, 4)
    resumed = run(again, BEMACallback(**options), 4, 6)
    assert digest(resumed.running_model) == digest(whole.running_model)
    with pytest.warns(UserWarning, match="starts anew"):
        run(build(), BEMACallback(**options), 5, 6)


def test_bema_saves_a_model_that_loads(tmp_path):
    model = build()
    put(model, 0)
    callback = BEMACallback(update_freq=1)
    args = SimpleNamespace(output_dir=tmp_path)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    callback.on_train_begin(args, state, CONTROL, model=model)
    put(model, 1)
    state.global_step = 1
    callback.on_step_end(args, state, CONTROL)
    before = digest(model)
    callback.on_train_end(args, state, CONTROL)
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "bema")
    assert digest(saved) == digest(callback.running_model) != before
    assert digest(model) == before  # training's own weights stay
    assert saved.lm_head.weight is saved.transformer.wte.weight


def test_bema_refuses_partitioned_weights():
    model = OneWeight(1.0)
    model.weight.ds_id = 0
    state = SimpleNamespace(global_step=0)
    with pytest.raises(ValueError, match="weight, which is partitioned"):
        BEMACallback().on_train_begin(None, state, CONTROL, model=model)
    with pytest.raises(ValueError, match="update_freq=0"):
        BEMACallback(update_freq=0)


def test_sync_on_paper():
    policy, reference = OneWeight(3.0), OneWeight(1.0)
    SyncRefModelCallback.sync_target_model(policy, reference, 0.25)
    assert reference.weight.item() == 1.5  # 0.75 * 1 + 0.25 * 3
    assert policy.weight.item() == 3.0


def test_sync_refuses_another_architecture_before_touching_anything():
    policy, reference = OneWeight(3.0), OneWeight(1.0)
    policy.more = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="2 and 3 parameters"):
        SyncRefModelCallback.sync_target_model(policy, reference, 0.5)
    assert reference.weight.item() == 1.0


def test_sync_without_a_reference_is_idle():
    callback = SyncRefModelCallback(ref_model=None, accelerator=None)
    callback.on_step_end(None, SimpleNamespace(global_step=4), CONTROL)
