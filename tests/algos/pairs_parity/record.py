"""Record what ORPO and CPO of TRL 1.16 log, and the rows they prepare.

PYTHONPATH=. <python with trl 1.16> -m tests.algos.pairs_parity.record [beginnings of names ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trl.experimental import cpo, orpo

from tests.algos.offline_parity import running
from tests.algos.offline_parity.record import record, versions
from tests.algos.pairs_parity import cases, preparing

FOLDER = Path(__file__).parent / "recorded"


def over_answers(trainer: type) -> type:
    """The trainer, its mean logits taken over the answers' tokens alone.

    TRL takes them over every position, padding too, whose logits say nothing.
    """

    class OverAnswers(trainer):
        def concatenated_forward(self, model: Any, batch: Any) -> Any:
            whole: list[Any] = []
            hook = model.register_forward_hook(lambda m, i, out: whole.append(out.logits))
            found = list(super().concatenated_forward(model, batch))
            hook.remove()
            joined = self.concatenated_inputs(batch, padding_value=0)
            learned = joined["concatenated_labels"][:, 1:] != -100
            count = len(batch["chosen_labels"])
            logits = whole[0][:, :-1]
            for place, rows in ((2, slice(count)), (3, slice(count, None))):
                found[place] = logits[rows][learned[rows]]
            return tuple(found)

    return OverAnswers


LIBRARY = SimpleNamespace(
    ORPOConfig=orpo.ORPOConfig,
    ORPOTrainer=over_answers(orpo.ORPOTrainer),
    CPOConfig=cpo.CPOConfig,
    CPOTrainer=over_answers(cpo.CPOTrainer),
)


def prepared(case: preparing.Prepared) -> dict[str, Any]:
    """Columns of the dataset that TRL's trainer makes."""
    arguments = {**running.BASE, **case.config}
    trainer = cpo.CPOTrainer(
        model=running.making.model(),
        args=cpo.CPOConfig(tempfile.mkdtemp(), **arguments),
        train_dataset=preparing.dataset(case.rows),
        processing_class=preparing.tokenizer(case),
    )
    return {name: list(trainer.train_dataset[name]) for name in preparing.COLUMNS}


if __name__ == "__main__":
    named = sys.argv[1:]
    record(cases.ALL, LIBRARY, FOLDER, named)
    if not named or "rows" in named:
        found = {case.name: prepared(case) for case in preparing.CASES}
        text = json.dumps({"versions": versions(), "rows": found})
        (FOLDER.parent / "rows.json").write_text(text + "\n")
