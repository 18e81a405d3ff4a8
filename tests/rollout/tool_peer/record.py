"""Records what TRL 1.16's tool loop makes of every case: run with TRL's Python, from anywhere."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tool_cases import (
    ENVIRONMENT_SCRIPTS,
    GOALS,
    LENGTH,
    ROUNDS,
    SCRIPTS,
    TOOLS,
    Counter,
    Writer,
    chat_tokenizer,
    hashed,
    user,
)
from transformers import Qwen2Config, Qwen2ForCausalLM


class Recorded(trl.GRPOTrainer):
    """Takes completions from a script and keeps what came of them."""

    writer: Writer
    kept: tuple[Any, ...]

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        ids = [self.writer(prompt, LENGTH) for prompt in prompt_ids]
        return ids, [[-0.5] * len(x) for x in ids]

    def _generate(self, prompts: Any) -> Any:
        self.kept = super()._generate(prompts)
        return self.kept


def record(scripts: dict[str, list[str]], rows: list[dict[str, Any]], **more: Any) -> Any:
    tokenizer = chat_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = trl.GRPOConfig(
            folder,
            per_device_train_batch_size=len(rows),
            num_generations=len(rows),
            max_completion_length=LENGTH,
            max_tool_calling_iterations=ROUNDS,
            report_to=[],
            bf16=False,
            use_cpu=True,
        )
        trainer = Recorded(
            Qwen2ForCausalLM(config),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            **more,
        )
        trainer.writer = Writer(tokenizer, scripts)
        trainer.model.train()
        with torch.no_grad():
            trainer._generate_and_score_completions(rows)
    prompt_ids, completion_ids, mask, messages = trainer.kept[:4]
    metrics = trainer._metrics["train"]
    return {
        "rows": {
            name: {"prompt": hashed(p), "completion": c, "mask": m, "messages": said}
            for name, p, c, m, said in zip(
                scripts, prompt_ids, completion_ids, mask, messages, strict=True
            )
        },
        "call_frequency": metrics["tools/call_frequency"][0],
        "failure_frequency": metrics["tools/failure_frequency"][0],
    }


def reward(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [{"prompt": user(name)} for name in SCRIPTS]
    counting = [{"prompt": user(name), "goal": GOALS[name]} for name in ENVIRONMENT_SCRIPTS]
    recorded = {
        "trl": trl.__version__,
        "tools": record(SCRIPTS, rows, reward_funcs=reward, tools=TOOLS),
        "environments": record(
            ENVIRONMENT_SCRIPTS, counting, tools=TOOLS[:1], environment_factory=Counter
        ),
    }
    path = Path(__file__).with_name("recorded.json")
    path.write_text(json.dumps(recorded, separators=(",", ":"), ensure_ascii=False) + "\n")
    print(path.stat().st_size, "bytes")
