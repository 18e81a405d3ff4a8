"""Script options of TRL 0.8 to 0.12, before every script shared one `ScriptArguments`.

Each class states its fields in TRL's order, in which they may be given by place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_DATASET = {"help": "A local .jsonl, .json, .parquet or .csv file or folder, or a hub name."}
_TRAIN = {"help": "Split to train on."}
_TEST = {"help": "Split to evaluate on."}
_CONFIG = {"help": "A YAML file of options; TrlParser reads it."}
_REENTRANT = {
    "help": "The kind of gradient checkpointing; TrlParser puts it into the training arguments."
}
_BUFFERS = {"help": "Keep boolean buffers out of DDP, which cannot broadcast them."}
_SANITY = {"help": "Train on a thousand rows only."}


@dataclass
class SFTScriptArguments:
    """Options of the SFT script in TRL 0.9 to 0.12."""

    dataset_name: str = field(default="timdettmers/openassistant-guanaco", metadata=_DATASET)
    dataset_train_split: str = field(default="train", metadata=_TRAIN)
    dataset_test_split: str = field(default="test", metadata=_TEST)
    config: str | None = field(default=None, metadata=_CONFIG)
    gradient_checkpointing_use_reentrant: bool = field(default=False, metadata=_REENTRANT)

    _config_names_the_file = True


@dataclass
class RewardScriptArguments(SFTScriptArguments):
    """Options of the reward script in TRL 0.9 to 0.11."""

    dataset_name: str = field(default="trl-lib/ultrafeedback_binarized", metadata=_DATASET)


@dataclass
class DPOScriptArguments:
    """Options of the DPO script in TRL 0.9 to 0.12."""

    dataset_name: str | None = field(default=None, metadata=_DATASET)
    dataset_train_split: str = field(default="train", metadata=_TRAIN)
    dataset_test_split: str = field(default="test", metadata=_TEST)
    sanity_check: bool = field(default=False, metadata=_SANITY)
    ignore_bias_buffers: bool = field(default=False, metadata=_BUFFERS)
    config: str | None = field(default=None, metadata=_CONFIG)
    gradient_checkpointing_use_reentrant: bool = field(default=False, metadata=_REENTRANT)

    _config_names_the_file = True


@dataclass
class SftScriptArguments:
    """Options of the SFT script in TRL 0.8."""

    dataset_name: str = field(default="timdettmers/openassistant-guanaco", metadata=_DATASET)
    dataset_text_field: str = field(default="text", metadata={"help": "Column that holds text."})
    max_seq_length: int = field(default=512, metadata={"help": "Longest row in tokens."})
    packing: bool = field(
        default=False, metadata={"help": "Fill rows of max_seq_length with several sequences."}
    )
    config: str | None = field(default=None, metadata=_CONFIG)
    gradient_checkpointing_use_reentrant: bool = field(default=False, metadata=_REENTRANT)

    _config_names_the_file = True


@dataclass
class DpoScriptArguments:
    """Options of the DPO script in TRL 0.8."""

    dataset_name: str | None = field(default=None, metadata=_DATASET)
    beta: float = field(default=0.1, metadata={"help": "How much a preference moves the policy."})
    max_length: int = field(default=512, metadata={"help": "Longest pair in tokens."})
    max_prompt_length: int = field(default=128, metadata={"help": "Longest prompt in tokens."})
    max_target_length: int = field(
        default=128, metadata={"help": "Longest answer in tokens, of encoder-decoder models."}
    )
    sanity_check: bool = field(default=True, metadata=_SANITY)
    ignore_bias_buffers: bool = field(default=False, metadata=_BUFFERS)
    generate_during_eval: bool = field(
        default=False, metadata={"help": "Show answers at each evaluation."}
    )
    config: str | None = field(default=None, metadata=_CONFIG)
    gradient_checkpointing_use_reentrant: bool = field(default=False, metadata=_REENTRANT)

    _config_names_the_file = True
