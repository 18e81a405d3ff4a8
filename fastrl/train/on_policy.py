"""What scripts of TRL 0.9 to 0.24 build trainers of their own on that sample as they learn."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainerState

from fastrl.train.config import BaseConfig


def exact_div(
    a: int,
    b: int,
    a_str: str | None = None,
    b_str: str | None = None,
    custom_error_message: str = "",
) -> int:
    """a / b, which must be whole.

    Args:
        a, b: whole numbers.
        a_str, b_str: what they are called, as in TRL 0.7; a third argument alone is the message, as
            it is since 0.8.
        custom_error_message: begins the error's message.

    Raises:
        ValueError: if it is not.
    """
    if b_str is None and a_str is not None:
        a_str, custom_error_message = None, a_str
    quotient, rest = divmod(a, b)
    if rest:
        said = f"{custom_error_message}: " if custom_error_message else ""
        raise ValueError(
            f"{said}{a_str or 'the number'}={a} is no multiple of {b_str or 'the divisor'}={b}"
        )
    return quotient


@dataclass
class OnlineTrainerState(TrainerState):
    """A trainer's state that counts episodes too: responses sampled."""

    episode: int = 0


@dataclass
class OnPolicyConfig(BaseConfig):
    """The fields that TRL's trainers on their own samples had in common, for configs built on it.

    Nothing here reads them; `PPOTrainConfig` and `RLOOConfig` have their own.
    """

    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that prepare the dataset."}
    )
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimizer steps that one pass over a batch is cut into."}
    )
    total_episodes: int | None = field(
        default=None, metadata={"help": "Responses to learn from in all."}
    )
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Responses of a process that are sampled together."}
    )
    num_sample_generations: int = field(
        default=10, metadata={"help": "How often in a run answers are shown."}
    )
    response_length: int = field(default=53, metadata={"help": "Most tokens of a response."})
    stop_token: str | None = field(default=None, metadata={"help": "'eos': a response ends there."})
    stop_token_id: int | None = field(
        default=None, metadata={"help": "The token that ends a response, by its id."}
    )
    temperature: float = field(default=0.7, metadata={"help": "What logits are divided by."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a response without EOS."}
    )
    sft_model_path: str = field(
        default="EleutherAI/pythia-160m", metadata={"help": "Where the policy starts."}
    )
    num_total_batches: int | None = field(default=None, metadata={"help": "Batches in all."})
    micro_batch_size: int | None = field(
        default=None, metadata={"help": "Rows of all processes in one backward pass."}
    )
    local_batch_size: int | None = field(
        default=None, metadata={"help": "Prompts of a process answered at once."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Prompts of all processes answered at once."}
    )
    local_mini_batch_size: int | None = field(
        default=None, metadata={"help": "Rows of a process that one optimizer step sees."}
    )
    mini_batch_size: int | None = field(
        default=None, metadata={"help": "Rows of all processes that one optimizer step sees."}
    )
