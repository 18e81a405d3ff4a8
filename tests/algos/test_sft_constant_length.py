"""A ConstantLengthDataset given to SFTTrainer, as scripts of TRL 0.4 to 0.22 did."""

from __future__ import annotations

import pytest
import torch

from fastrl import ConstantLengthDataset, SFTConfig, SFTTrainer
from tests.algos.offline_parity import making

TEXTS = [{"text": f"the {n}th row says {n * n}"} for n in range(40)]


def stream(**more):
    settings = {"seq_length": 16, "num_of_sequences": 4, "shuffle": False, **more}
    return ConstantLengthDataset(making.tokenizer(), TEXTS, "text", **settings)


def settings(tmp_path, **more):
    common = {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
    return SFTConfig(str(tmp_path), per_device_train_batch_size=4, **common, **more)


@pytest.mark.filterwarnings("ignore:the dataset to pack has ended")
@pytest.mark.parametrize("packing", [False, True])
def test_its_rows_are_trained_on_as_they_are(tmp_path, packing):
    model = making.model()
    args = settings(tmp_path, max_steps=1, logging_steps=1, packing=packing, max_length=64)
    rows = stream(infinite=True)
    trainer = SFTTrainer(
        model, args, train_dataset=rows, eval_dataset=stream(), processing_class=rows.tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    first = [row["input_ids"].tolist() for row, _ in zip(stream(), range(4), strict=False)]
    assert batch["input_ids"].reshape(4, 16).tolist() == first

    ids = torch.tensor([row["input_ids"].tolist() for row in stream()])
    with torch.no_grad():
        logits = model.eval()(ids).logits[:, :-1].double()
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand.item(), rel=1e-5)
    trainer.train()
    assert trainer.state.global_step == 1


def test_an_infinite_one_needs_max_steps_and_one_without_a_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"set args\.max_steps"):
        SFTTrainer(making.model(), settings(tmp_path), train_dataset=stream(infinite=True))
    with pytest.raises(ValueError, match="do not fill one row of 9999 tokens"):
        stream(seq_length=9999).rows()
