"""Optimizer steps of offline trainers in `trl` (1.16) or `fastrl`: same weights, same rows.

    python offline_step.py trl|fastrl        then requests on standard input, see protocol.py

One `trainer.train()` runs in a thread and is held at each log, so a round is all that lies between
two logs: the batches' collation, forward, backward, clipping, the optimizer, the metrics.

Memory: `above_bytes` is the high-water mark of resident memory during the step, less what was
resident when the trainer stood (model, reference, prepared rows), less the bytes of the optimizer's
state (which torch allocates in the first step and keeps).
"""

from __future__ import annotations

import queue
import sys
import tempfile
import threading
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import protocol
import torch
import transformers
from datasets import Dataset
from ppo_step import optimizer_bytes

BATCH, ACCUMULATION = 4, 2
LONG, PROMPT, ANSWER = (32, 1000), (100, 140), (16, 256)  # least and most tokens, both included
STEPS, STEP = 6, (4, 40)  # of a solution, and tokens of one
HELD = 600  # seconds a step may take

# case -> trainer, what its configuration sets, whether an adapter is trained
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "sft": ("SFT", {}, False),
    "sft_packed": ("SFT", {"packing": True, "packing_strategy": "bfd", "max_length": 1024}, False),
    "sft_lora": ("SFT", {}, True),
    "dpo": ("DPO", {}, False),
    "orpo": ("ORPO", {}, False),
    "cpo": ("CPO", {}, False),
    "kto": ("KTO", {}, False),
    "bco": ("BCO", {}, False),
    # One batch a step: with several TRL adds their means up.
    "prm": (
        "PRM",
        {
            "step_separator": " w2",
            "per_device_train_batch_size": BATCH * ACCUMULATION,
            "gradient_accumulation_steps": 1,
        },
        False,
    ),
    "reward": ("Reward", {}, False),
    "gkd": ("GKD", {"lmbda": 0.0, "max_length": 1024}, False),
}
# Beyond the columns of a loss, what is logged on the wall clock.
UNCOMPARED = ("epoch", "learning_rate", "runtime", "per_second")


# Trainer -> where TRL keeps it, if not on top.
APART = {
    "BCO": "trl.experimental.bco",
    "PRM": "trl.experimental.prm",
    "CPO": "trl.experimental.cpo",
    "GKD": "trl.experimental.gkd",
    "NashMD": "trl.experimental.nash_md",
    "ORPO": "trl.experimental.orpo",
    "XPO": "trl.experimental.xpo",
}
# Trainer -> its metrics that are not compared: there TRL's mean logits take in prompts and padding.
OTHERWISE = {"BCO": ("logits/",), "CPO": ("logits/",), "ORPO": ("logits/",)}


def tokenizer(vocab: int) -> transformers.PreTrainedTokenizerFast:
    """One word per id, made in memory; id 0 pads, id 1 ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, vocab)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>"
    )


def filled(model: torch.nn.Module, only: str = "") -> torch.nn.Module:
    """Matrices drawn from numpy by parameter name, those whose name contains `only`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and only in name:
                rng = np.random.default_rng(zlib.crc32(name.encode()))
                value = 0.02 * rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
                parameter.copy_(torch.from_numpy(value))
    return model


def model(trainer: str, vocab: int, folder: str, width: int = 256) -> transformers.PreTrainedModel:
    """Qwen2 of 4 layers × `width` in fp32, with a language-model head or one score.

    Loaded from a folder, whence TRL loads the reference.
    """
    config = transformers.Qwen2Config(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        num_labels=2 if trainer == "PRM" else 1,
    )
    judges = {
        "PRM": transformers.AutoModelForTokenClassification,
        "Reward": transformers.AutoModelForSequenceClassification,
    }
    auto = judges.get(trainer, transformers.AutoModelForCausalLM)
    filled(auto.from_config(config, dtype=torch.float32)).save_pretrained(folder)
    return auto.from_pretrained(folder, dtype=torch.float32)


def dataset(trainer: str, packed: bool, count: int, seed: int, vocab: int) -> Dataset:
    """Rows of uniform ids; lengths uniform within their bounds."""
    rng = np.random.default_rng(seed)

    def ids(bounds: tuple[int, int]) -> np.ndarray:
        return rng.integers(2, vocab, size=int(rng.integers(bounds[0], bounds[1] + 1)))

    def text(bounds: tuple[int, int]) -> str:
        return "".join(f" w{i}" for i in ids(bounds))

    if trainer == "SFT":
        rows = 2 * count if packed else count  # a bin of 1024 holds about two
        return Dataset.from_dict({"input_ids": [ids(LONG).tolist() for _ in range(rows)]})
    columns = {"prompt": [text(PROMPT) for _ in range(count)]}
    if trainer == "GKD":
        asked = ([int(word[1:]) for word in prompt.split()] for prompt in columns["prompt"])
        columns["input_ids"] = [[*prompt, *ids(ANSWER).tolist()] for prompt in asked]
        return Dataset.from_dict(columns)
    if trainer == "PRM":
        columns["completions"] = [[text(STEP) for _ in range(STEPS)] for _ in range(count)]
        columns["labels"] = rng.integers(2, size=(count, STEPS)).astype(bool).tolist()
    elif trainer in ("KTO", "BCO"):
        columns["completion"] = [text(ANSWER) for _ in range(count)]
        columns["label"] = [bool(one) for one in rng.integers(2, size=count)]
    else:
        columns["chosen"] = [text(ANSWER) for _ in range(count)]
        columns["rejected"] = [text(ANSWER) for _ in range(count)]
    return Dataset.from_dict(columns)


def build(library: Any, request: dict[str, Any], folder: str) -> Any:
    """The case's trainer."""
    name, settings, adapter = CASES[request["case"]]
    vocab, steps = request["vocab"], request["steps"]
    common = {
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": steps,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    arguments = getattr(library, f"{name}Config")(folder, **{**common, **settings})
    more = {}
    if adapter:
        from peft import LoraConfig

        more["peft_config"] = LoraConfig(task_type="CAUSAL_LM")
    if name == "GKD":
        more["teacher_model"] = model(name, vocab, f"{folder}/teacher")
        with torch.no_grad():
            for parameter in more["teacher_model"].parameters():
                parameter.mul_(1.5)
    count = BATCH * ACCUMULATION * steps
    trainer = getattr(library, f"{name}Trainer")(
        model(name, vocab, f"{folder}/model"),
        args=arguments,
        train_dataset=dataset(name, "packing" in settings, count, request["seed"], vocab),
        processing_class=tokenizer(vocab),
        **more,
    )
    filled(trainer.model, only="lora_A")
    return trainer


class Held(transformers.TrainerCallback):
    """A training run in a thread of its own that takes one step when it is told to."""

    def __init__(
        self, trainer: Any, threads: int, uncompared: tuple[str, ...] = UNCOMPARED
    ) -> None:
        self._trainer, self._threads, self._uncompared = trainer, threads, uncompared
        self._go: queue.Queue[None] = queue.Queue()
        self._done: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread: threading.Thread | None = None
        trainer.add_callback(self)

    def step(self) -> dict[str, Any]:
        """Take a step; what it measured. The first begins the run."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, daemon=True)
            self._thread.start()
        else:
            self._go.put(None)
        measured = self._done.get(timeout=HELD)
        if "error" in measured:
            raise RuntimeError(measured["error"])
        return measured

    def _train(self) -> None:
        try:
            torch.set_num_threads(self._threads)
            self._begin()
            self._trainer.train()
        except BaseException:
            self._done.put({"error": traceback.format_exc()})

    def _begin(self) -> None:
        protocol.reset_peak()
        self._cpu, self._start = time.process_time(), time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """The end of a step."""
        seconds = time.perf_counter() - self._start
        measured = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_bytes": protocol.peak_bytes(),
            "numbers": {
                key: float(value)
                for key, value in logs.items()
                if not any(word in key for word in self._uncompared)
            },
        }
        self._done.put(measured)
        self._go.get()
        self._begin()


def setup(request: dict[str, Any]) -> protocol.Round:
    """Build the trainer; a round is one optimizer step of its run."""
    library = protocol.begin(request, APART.get(CASES[request["case"]][0]))
    folder = tempfile.TemporaryDirectory()
    trainer = build(library, request, folder.name)
    uncompared = (*UNCOMPARED, *OTHERWISE.get(CASES[request["case"]][0], ()))
    held = Held(trainer, request["threads"], uncompared)
    standing = protocol.resident_bytes()

    def run(number: int, folder: Any = folder) -> dict[str, Any]:
        measured = held.step()
        state = optimizer_bytes(trainer.optimizer)
        above = measured.pop("peak_bytes") - standing - state
        return {**measured, "above_bytes": above, "standing_bytes": standing + state}

    return run


if __name__ == "__main__":
    protocol.serve(setup)
