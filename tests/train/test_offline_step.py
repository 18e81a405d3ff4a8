"""What `OfflineTrainer.compute_loss` adds to an algorithm's loss."""

from __future__ import annotations

import math

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType

from tests.train.offline_runs import build


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_before_the_backward_of_deepspeed_a_loss_must_be_finite(tmp_path, kind, monkeypatch):
    """Its engine may move the weights in there; elsewhere the check waits for the whole step."""
    trainer = build(tmp_path, kind)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    next(trainer.model.parameters()).data.fill_(math.nan)
    assert trainer.compute_loss(trainer.model, batch).isnan()
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(FloatingPointError, match="optimizer step 1: not finite"):
        trainer.compute_loss(trainer.model, batch)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, batch).isnan()
