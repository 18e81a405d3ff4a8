"""Datasets and options under which preparation is compared with TRL's; needs neither library."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

FIXTURES = Path(__file__).parent / "fixtures"
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
SENTENCES = [
    "What colour is the sky at noon?",
    "The sky is blue, since air scatters short waves more than long ones.",
    "How many apples are left if Ann gives 3 of her 12 to Bob?",
    "She keeps 12 - 3 = 9 apples.",
    "Name a prime between 20 and 30.",
    "23 is prime, and so is 29.",
    "Write a short poem.",
    "Rain on the roof,\nlamp in the room.",
    "Is Überlingen on a lake? 是吗?",
    "Yes.",
    "No, not that I know of.",
    "Well ",
]

TURNS = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
PROMPT = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATES = {
    "plain": TURNS + PROMPT,
    # Tools are listed first; a keyword of the row adds a line.
    "tools": "{%- if tools %}{{ '<|im_start|>tools\n' }}{% for t in tools %}{{ t | tojson }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{%- if polite %}{{ '<|im_start|>system\nBe polite.<|im_end|>\n' }}{% endif %}"
    + TURNS
    + PROMPT,
    # The prompt alone ends with an empty block of thoughts that the finished turn lacks.
    "thinking": TURNS + "{%- if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}",
    # A system line of its own, and the end-of-sequence token after every answer.
    "system": "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}"
    "{% endif %}" + TURNS + PROMPT,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE of a few hundred tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def load_tokenizer(template: str = "plain", bos: bool = False) -> PreTrainedTokenizerFast:
    """The recorded tokenizer; with `bos` it begins every text with <s>, as Llama's does."""
    backend = Tokenizer.from_file(str(FIXTURES / "tokenizer.json"))
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


@dataclass(frozen=True)
class Case:
    """One preparation: a trainer, rows, and options of its config."""

    trainer: str  # "sft", "dpo", "kto" or "reward"
    rows: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    template: str = "plain"
    bos: bool = False
    formatted: bool = False  # with `formatting_func`
    streamed: bool = False
    many: int = 1  # the rows that often

    def data(self) -> list[dict[str, Any]]:
        return copy.deepcopy(self.rows * self.many)


def formatting_func(example: dict[str, Any]) -> str:
    return f"### {example['question']}\n{example['answer']}"


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def exchange(i: int) -> tuple[str, str]:
    return SENTENCES[2 * i % 10], SENTENCES[(2 * i + 1) % 10]


def chat(i: int, turns: int = 1) -> list[dict[str, str]]:
    messages = [said("system", "Answer in short.")] if i % 3 == 2 else []
    for turn in range(turns):
        question, answer = exchange(i + turn)
        messages += [said("user", question), said("assistant", answer)]
    return messages


TEXT = [{"text": SENTENCES[i]} for i in range(6)] + [{"text": SENTENCES[1] + "</s>"}]
CONTENT = [{"content": row["text"], "id": 1} for row in TEXT]
QUESTIONS = [dict(zip(("question", "answer"), exchange(i), strict=True)) for i in range(4)]
MESSAGES = [{"messages": chat(i, 1 + i % 3)} for i in range(5)]
SHAREGPT = [
    {"conversations": [{"from": m["role"], "value": m["content"]} for m in chat(i, 2)]}
    for i in range(3)
]
PROMPTED = [
    {"prompt": exchange(i)[0] + " ", "completion": exchange(i)[1] + ("</s>" if i == 2 else "")}
    for i in range(5)
]
MERGING = [{"prompt": "The s", "completion": "ky is blue"}, {"prompt": "Yes", "completion": "."}]
PROMPTED_CHAT = [
    {"prompt": chat(i, 1 + i % 2)[:-1], "completion": chat(i, 1 + i % 2)[-1:]} for i in range(4)
]
LONG_ANSWERS = [
    {"prompt": chat(i)[:-1], "completion": [*chat(i)[-1:], *chat(i + 1)]} for i in range(3)
]
TOKENS = [{"input_ids": list(range(20 + i, 34 + 3 * i))} for i in range(4)]


def marked(column: str, period: int) -> list[dict[str, Any]]:
    return [
        {**row, column: [int(k % period > i) for k in range(len(row["input_ids"]))]}
        for i, row in enumerate(TOKENS[:3])
    ]


LABELLED = [{**r, "labels": [-100] * 6 + [k + 1 for k in r["input_ids"][6:]]} for r in TOKENS]
BOTH_MASKS = [
    {**a, **b}
    for a, b in zip(marked("completion_mask", 4), marked("assistant_masks", 5), strict=True)
]
ALL_IGNORED = [*LABELLED, {"input_ids": [7, 8, 9], "labels": [-100] * 3}]
TOOLS = [{**row, "tools": [WEATHER]} for row in MESSAGES[:2]]
TOOLS_AS_TEXT = [{**row, "tools": json.dumps([WEATHER])} for row in MESSAGES[:2]]
KEYWORDS = [
    {**row, "chat_template_kwargs": {"polite": bool(i % 2)}} for i, row in enumerate(MESSAGES[:4])
]
PAIRS = [
    {
        "prompt": exchange(i)[0] + " ",
        "chosen": exchange(i)[1],
        "rejected": SENTENCES[9 + i % 2] + ("</s>" if i == 1 else ""),
    }
    for i in range(5)
]
JOINED_PAIRS = [
    {"chosen": p["prompt"] + p["chosen"], "rejected": p["prompt"] + p["rejected"]} for p in PAIRS
]
EQUAL_PAIRS = [{**PAIRS[0], "rejected": PAIRS[0]["chosen"]}, PAIRS[1]]
CHAT_PAIRS = [
    {
        "prompt": chat(i, 1 + i % 2)[:-1],
        "chosen": chat(i, 1 + i % 2)[-1:],
        "rejected": [said("assistant", SENTENCES[9 + i % 2])],
    }
    for i in range(4)
]
JOINED_CHAT_PAIRS = [
    {"chosen": p["prompt"] + p["chosen"], "rejected": p["prompt"] + p["rejected"]}
    for p in CHAT_PAIRS
]
SCORED_PAIRS = [
    {**p, "ref_chosen_logps": -1.5 * i, "ref_rejected_logps": -2.0} for i, p in enumerate(PAIRS)
]
TOKEN_PAIRS = [
    {"chosen_ids": list(range(9, 15 + i)), "rejected_ids": list(range(9, 20 - i))} for i in range(4)
]
OLD_TOKEN_PAIRS = [
    {"chosen_input_ids": row["chosen_ids"], "rejected_input_ids": row["rejected_ids"]}
    for row in TOKEN_PAIRS
]
MARGINS = [{**row, "margin": 0.25 * i} for i, row in enumerate(CHAT_PAIRS)]
UNPAIRED = [
    {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
    for i, p in enumerate(PAIRS)
    for side in (("chosen", "rejected") if i % 2 else ("rejected",))
]
UNPAIRED_CHAT = [
    {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
    for i, p in enumerate(CHAT_PAIRS)
    for side in (("rejected", "chosen") if i % 2 else ("chosen",))
]


def _sft(rows: list[dict[str, Any]], **more: Any) -> Case:
    return _case("sft", rows, more)


def _case(trainer: str, rows: list[dict[str, Any]], more: dict[str, Any]) -> Case:
    names = {"template", "bos", "formatted", "streamed", "many"}
    own = {key: more.pop(key) for key in names & set(more)}
    return Case(trainer, rows, more, **own)


CASES: dict[str, Case] = {
    "text": _sft(TEXT),
    "text bos": _sft(TEXT, bos=True),
    "text field": _sft(CONTENT, dataset_text_field="content"),
    "text cut": _sft(TEXT, max_length=9),
    "text cut end": _sft(TEXT, max_length=9, truncation_mode="keep_end"),
    "text whole": _sft(TEXT, max_length=None),
    "text streamed": _sft(TEXT, streamed=True, max_length=12),
    "text shuffled": _sft(TEXT, shuffle_dataset=True, seed=5),
    "text packed": _sft(TEXT, packing=True, max_length=24, many=3),
    "text packed split": _sft(TEXT, packing=True, max_length=13, packing_strategy="bfd_split"),
    "text packed wrapped": _sft(TEXT, packing=True, max_length=13, packing_strategy="wrapped"),
    "text packed shuffled": _sft(TEXT, packing=True, max_length=24, shuffle_dataset=True, many=3),
    "text packed streamed": _sft(TEXT, packing=True, max_length=24, streamed=True, many=2),
    "text packed many": _sft(TEXT, packing=True, max_length=40, many=180),
    "formatted": _sft(QUESTIONS, formatted=True),
    "messages": _sft(MESSAGES),
    "messages bos": _sft(MESSAGES, bos=True),
    "messages streamed": _sft(MESSAGES, streamed=True),
    "messages system": _sft(MESSAGES, template="system"),
    "messages packed": _sft(MESSAGES, packing=True, max_length=64),
    "messages tools": _sft(TOOLS, template="tools"),
    "messages tools as text": _sft(TOOLS_AS_TEXT, template="tools"),
    "messages keywords": _sft(KEYWORDS, template="tools"),
    "messages assistant": _sft(MESSAGES, assistant_only_loss=True),
    "messages assistant cut": _sft(MESSAGES, assistant_only_loss=True, max_length=30),
    "messages assistant packed": _sft(
        MESSAGES, assistant_only_loss=True, packing=True, max_length=50
    ),
    "sharegpt": _sft(SHAREGPT),
    "prompted": _sft(PROMPTED),
    "prompted bos": _sft(PROMPTED, bos=True),
    "prompted all": _sft(PROMPTED, completion_only_loss=False),
    "prompted cut": _sft(PROMPTED, max_length=12),
    "prompted cut end": _sft(PROMPTED, max_length=10, truncation_mode="keep_end"),
    "prompted merging": _sft(MERGING),
    "prompted packed": _sft(PROMPTED, packing=True, max_length=48),
    "prompted chat": _sft(PROMPTED_CHAT),
    "prompted chat thinking": _sft(PROMPTED_CHAT, template="thinking"),
    "prompted chat all": _sft(PROMPTED_CHAT, completion_only_loss=False),
    "prompted chat assistant": _sft(LONG_ANSWERS, assistant_only_loss=True),
    "prompted chat assistant all": _sft(
        LONG_ANSWERS, assistant_only_loss=True, completion_only_loss=False
    ),
    "tokens": _sft(TOKENS),
    "tokens cut": _sft(TOKENS, max_length=15),
    "tokens labelled": _sft(LABELLED),
    "tokens labelled cut": _sft(ALL_IGNORED, max_length=9),
    "tokens labelled whole": _sft(ALL_IGNORED, max_length=None),
    "tokens packed": _sft(LABELLED, packing=True, max_length=30),
    "tokens completion": _sft(marked("completion_mask", 4), completion_only_loss=True),
    "tokens completion unasked": _sft(marked("completion_mask", 4)),
    "tokens assistant": _sft(marked("assistant_masks", 5)),
    "tokens both": _sft(BOTH_MASKS, completion_only_loss=True),
    "pairs": _case("dpo", PAIRS, {}),
    "pairs bos": _case("dpo", PAIRS, {"bos": True}),
    "pairs joined": _case("dpo", JOINED_PAIRS, {}),
    "pairs equal": _case("dpo", EQUAL_PAIRS, {}),
    "pairs short": _case("dpo", PAIRS, {"max_length": 11}),
    "pairs short end": _case("dpo", PAIRS, {"max_length": 11, "truncation_mode": "keep_end"}),
    "pairs streamed": _case("dpo", PAIRS, {"streamed": True, "max_length": 11}),
    "pairs scored": _case("dpo", SCORED_PAIRS, {}),
    "pairs chat": _case("dpo", CHAT_PAIRS, {}),
    "pairs chat joined": _case("dpo", JOINED_CHAT_PAIRS, {}),
    "pairs chat thinking": _case("dpo", CHAT_PAIRS, {"template": "thinking"}),
    "pairs chat tools": _case(
        "dpo", [{**row, "tools": [WEATHER]} for row in CHAT_PAIRS], {"template": "tools"}
    ),
    "reward": _case("reward", PAIRS, {}),
    "reward bos": _case("reward", PAIRS, {"bos": True}),
    "reward joined": _case("reward", JOINED_PAIRS, {}),
    "reward short": _case("reward", PAIRS, {"max_length": 24}),
    "reward chat": _case("reward", CHAT_PAIRS, {}),
    "reward chat joined": _case("reward", JOINED_CHAT_PAIRS, {"template": "system"}),
    "reward chat margin": _case("reward", MARGINS, {}),
    "reward streamed": _case("reward", CHAT_PAIRS, {"streamed": True, "max_length": 60}),
    "reward tokens": _case("reward", TOKEN_PAIRS, {"max_length": 10}),
    "reward old tokens": _case("reward", OLD_TOKEN_PAIRS, {}),
    "unpaired": _case("kto", UNPAIRED, {"per_device_train_batch_size": 3}),
    "unpaired bos": _case("kto", UNPAIRED, {"bos": True, "per_device_train_batch_size": 2}),
    "unpaired short": _case("kto", UNPAIRED, {"max_length": 11}),
    "unpaired without kl": _case("kto", UNPAIRED, {"loss_type": "apo_zero_unpaired"}),
    "unpaired chat": _case("kto", UNPAIRED_CHAT, {"per_device_train_batch_size": 4}),
    "unpaired streamed": _case(
        "kto", UNPAIRED_CHAT, {"per_device_train_batch_size": 2, "streamed": True}
    ),
    "unpaired of pairs": _case("kto", PAIRS, {"per_device_train_batch_size": 3}),
    "unpaired of joined": _case("kto", JOINED_PAIRS, {"per_device_train_batch_size": 2}),
    "unpaired of chat": _case(
        "kto", CHAT_PAIRS, {"template": "thinking", "per_device_train_batch_size": 3}
    ),
    "unpaired of many": _case(
        "kto", PAIRS, {"per_device_train_batch_size": 7, "many": 210, "max_length": 13}
    ),
}
COLUMNS = {
    "sft": ("input_ids", "labels", "seq_lengths"),
    "dpo": ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"),
    "reward": ("chosen_ids", "rejected_ids", "margin"),
    "kto": ("prompt_ids", "completion_ids", "label", "KL_completion_ids"),
}
