"""Runs in an environment with TRL <= 0.11 (0.7.11: torch 2.13.0, transformers 4.38.2, peft 0.8.2).

python peer.py write FOLDER         value-head checkpoints of every form TRL writes, into FOLDER
python peer.py read CHECKPOINT OUT  what TRL makes of a checkpoint, into the JSON file OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import LocalEntryNotFoundError
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
from trl.models import modeling_base

IDS = [[3, 14, 7, 9, 22, 5], [8, 8, 1, 30, 2, 11]]


def seen(model: Any) -> dict[str, Any]:
    """Logits, values and value-head weights, as nested lists."""
    model.eval()
    ids = torch.tensor(IDS)
    extra = {}
    if getattr(model, "is_encoder_decoder", False):
        extra["decoder_input_ids"] = ids
    with torch.no_grad():
        logits, _, values = model(ids, **extra)
    head = model.v_head.summary
    return {
        "logits": logits[:, -1].tolist(),
        "values": values.tolist(),
        "weight": head.weight.tolist(),
        "bias": head.bias.tolist(),
    }


def causal(**keywords: Any) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=31, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return AutoModelForCausalLMWithValueHead.from_pretrained(GPT2LMHeadModel(config), **keywords)


def write(folder: Path) -> None:
    model = causal()
    model.save_pretrained(folder / "safetensors")
    model.save_pretrained(folder / "bin", safe_serialization=False)
    model.save_pretrained(folder / "sharded", max_shard_size="3KB")
    model.save_pretrained(folder / "sharded_bin", max_shard_size="3KB", safe_serialization=False)
    answers = {name: seen(model) for name in ("safetensors", "bin", "sharded", "sharded_bin")}
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = causal(peft_config=lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    (folder / "adapter").mkdir(exist_ok=True)  # TRL writes the head before PEFT makes the folder
    adapted.save_pretrained(str(folder / "adapter"))
    # An adapter names its base model by a path, which the reading test fills in.
    described = folder / "adapter" / "adapter_config.json"
    config = json.loads(described.read_text()) | {"base_model_name_or_path": "BASE"}
    described.write_text(json.dumps(config))
    answers["adapter"] = seen(adapted)
    torch.manual_seed(0)
    config = T5Config(vocab_size=31, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 0
    both = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(T5ForConditionalGeneration(config))
    both.save_pretrained(folder / "encoder_decoder")
    answers["encoder_decoder"] = seen(both)
    (folder / "answers.json").write_text(json.dumps(answers))


def serve(repository: str, filename: str, **_: Any) -> str:
    """In place of the hub: TRL looks for shards there even if the checkpoint is a folder."""
    path = Path(repository, filename)
    if not path.exists():
        raise LocalEntryNotFoundError(f"no {path}")
    return str(path)


def read(checkpoint: str, out: str) -> None:
    modeling_base.hf_hub_download = serve
    config = json.loads(Path(checkpoint, "config.json").read_text())
    both = config.get("is_encoder_decoder", False)
    kind = AutoModelForSeq2SeqLMWithValueHead if both else AutoModelForCausalLMWithValueHead
    Path(out).write_text(json.dumps(seen(kind.from_pretrained(checkpoint))))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        read(*sys.argv[2:])
