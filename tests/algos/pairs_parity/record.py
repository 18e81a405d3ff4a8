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

import torch
from trl.experimental import cpo, orpo

from tests.algos.offline_parity import running
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


def main(wanted: list[str]) -> None:
    """Run the named cases, or all, and write one file each; "rows" for the prepared rows."""
    import transformers
    import trl

    torch.set_num_threads(1)
    versions = {
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    for case in cases.ALL:
        if wanted and not any(case.name.startswith(start) for start in wanted):
            continue
        logs = running.run(case, LIBRARY)
        columns = {
            key: [entry[key] for entry in logs if key in entry] for entry in logs for key in entry
        }
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{case.name}.json"
        path.write_text(json.dumps({"versions": versions, "logs": columns}) + "\n")
        print(case.name, len(logs), columns["loss"][0], columns["loss"][-1], flush=True)
    if not wanted or "rows" in wanted:
        rows = {case.name: prepared(case) for case in preparing.CASES}
        text = json.dumps({"versions": versions, "rows": rows})
        (FOLDER.parent / "rows.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
