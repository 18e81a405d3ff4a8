"""Records what TRL's trainers make of the datasets in preparation_cases.py, or compares live.

Run by the Python of the peer (trl 1.16.0):

    python tests/data/record_preparation.py            writes tests/data/fixtures/preparation.json
    python tests/data/record_preparation.py --check    compares it with what is recorded
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import datasets
import preparation_cases as cases
import torch
import transformers
import trl

TRAINERS = {
    "sft": (trl.SFTTrainer, trl.SFTConfig),
    "dpo": (trl.DPOTrainer, trl.DPOConfig),
    "kto": (trl.KTOTrainer, trl.KTOConfig),
    "reward": (trl.RewardTrainer, trl.RewardConfig),
}


def digest(row: dict[str, Any]) -> str:
    """A few letters that change with any value of the row."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:8]


def tiny_model(trainer: str) -> Any:
    config = transformers.Qwen2Config(
        vocab_size=512,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    if trainer == "reward":
        return transformers.Qwen2ForSequenceClassification(config)
    return transformers.Qwen2ForCausalLM(config)


def prepared_by_peer(case: cases.Case, folder: str) -> list[dict[str, Any]]:
    make, config = TRAINERS[case.trainer]
    options = {"per_device_train_batch_size": 2, **case.options}
    args = config(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        report_to=[],
        max_steps=1,
        gradient_checkpointing=False,
        **options,
    )
    dataset = datasets.Dataset.from_list(case.data())
    if case.streamed:
        dataset = dataset.to_iterable_dataset()
    more: dict[str, Any] = {}
    if case.formatted:
        more["formatting_func"] = cases.formatting_func
    if case.trainer in ("dpo", "kto"):
        more["ref_model"] = tiny_model(case.trainer)
    trainer = make(
        model=tiny_model(case.trainer),
        args=args,
        train_dataset=dataset,
        processing_class=cases.load_tokenizer(case.template, case.bos),
        **more,
    )
    names = cases.COLUMNS[case.trainer]
    return [{name: row[name] for name in names if name in row} for row in trainer.train_dataset]


def main() -> int:
    datasets.disable_caching()
    datasets.disable_progress_bars()
    check = "--check" in sys.argv
    cases.FIXTURES.mkdir(exist_ok=True)
    if not check:
        cases.train_tokenizer().save(str(cases.FIXTURES / "tokenizer.json"), pretty=False)
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases.CASES.items():
            rows = prepared_by_peer(case, folder)
            recorded[name] = {"first": rows[0], "rows": [digest(row) for row in rows]}
            if len(rows) > 60:
                recorded[name]["rows"] = [len(rows), digest({"all": rows})]
            print(f"{name}: {len(rows)} rows", flush=True)
    path = cases.FIXTURES / "preparation.json"
    if check:
        was = json.loads(path.read_text())["cases"]
        wrong = [name for name in was | recorded if was.get(name) != recorded.get(name)]
        print("differs:", wrong or "nothing")
        return bool(wrong)
    about = {"peer": f"trl {trl.__version__}, transformers {transformers.__version__}"}
    lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in recorded.items()]
    cases_text = ",\n".join(lines)
    path.write_text(f'{{"about": {json.dumps(about)}, "cases": {{\n{cases_text}\n}}}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
