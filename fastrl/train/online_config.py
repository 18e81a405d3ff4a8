"""Arguments of the trainers that sample what they learn from (GRPO, RLOO)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.train.config import BaseConfig, padding_multiple, require_choice


@dataclass
class VLLMConfig:
    """Where and how vLLM samples, if it is to; nothing here acts unless `use_vllm`."""

    use_vllm: bool = field(default=False, metadata={"help": "Sample completions with vLLM."})
    vllm_mode: str = field(
        default="colocate",
        metadata={"help": "'colocate': in this process; 'server': on one that runs elsewhere."},
    )
    vllm_model_impl: str = field(
        default="vllm", metadata={"help": "Whose model code vLLM runs: vllm or transformers."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Let vLLM free its memory while the policy trains."}
    )
    vllm_structured_outputs_regex: str | None = field(
        default=None, metadata={"help": "Regular expression that completions must match."}
    )
    vllm_server_base_url: str | None = field(
        default=None, metadata={"help": "The server's URL, in place of host and port."}
    )
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "The server's host."})
    vllm_server_port: int = field(default=8000, metadata={"help": "The server's port."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "Seconds to wait for the server before giving up."}
    )
    vllm_group_port: int = field(
        default=51216, metadata={"help": "Port over which weights are sent to the server."}
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the GPU's memory for vLLM in this process."}
    )
    vllm_max_model_length: int | None = field(
        default=None,
        metadata={"help": "Longest prompt and completion together; unset: the model's."},
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "GPUs that share one copy of vLLM's model."}
    )

    def _check_vllm(self) -> None:
        require_choice("vllm_mode", self.vllm_mode, ("colocate", "server"))
        require_choice("vllm_model_impl", self.vllm_model_impl, ("vllm", "transformers"))


@dataclass
class SamplingConfig:
    """How completions are drawn."""

    max_completion_length: int | None = field(
        default=512, metadata={"help": "Longest completion in tokens; unset: the model's limit."}
    )
    temperature: float = field(default=1.0, metadata={"help": "What logits are divided by."})
    top_p: float = field(
        default=1.0, metadata={"help": "Draw from the likeliest tokens of this mass; 1: all."}
    )
    top_k: int = field(default=0, metadata={"help": "Draw from so many likeliest tokens; 0: all."})
    min_p: float | None = field(
        default=None,
        metadata={"help": "Draw no token below this share of the likeliest one's probability."},
    )
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Above 1, tokens that occurred become less likely."}
    )
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "More for the engine's generation settings; overrides the ones above."},
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords of apply_chat_template, for chat prompts."}
    )
    cache_implementation: str | None = field(
        default=None,
        metadata={"help": "Cache of model.generate; accepted either way: the engine has its own."},
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={"help": "Accepted either way: under ZeRO-3 processes generate in step."},
    )
    use_transformers_continuous_batching: bool = field(
        default=False,
        metadata={"help": "Accepted either way: answers are always batched continuously."},
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Its settings (ContinuousBatchingConfig)."}
    )
    use_transformers_paged: bool = field(
        default=False,
        metadata={"help": "Old name of use_transformers_continuous_batching."},
    )

    def _check_sampling(self) -> None:
        if self.use_transformers_paged:
            warnings.warn(
                "use_transformers_paged is called use_transformers_continuous_batching now",
                FutureWarning,
                stacklevel=6,
            )
            self.use_transformers_continuous_batching = True
        require_positive("max_completion_length", self.max_completion_length)
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be positive, got {self.temperature}; the policy that learns has "
                "to be one that samples"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        self.top_k = 0 if self.top_k is None else self.top_k  # None, as TRL had it once
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be between 0 and 1, got {self.min_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be positive, got {self.repetition_penalty}")
        given: Any = self.generation_kwargs or {}  # a dict once the arguments are parsed
        if not isinstance(given, dict):
            raise TypeError(f"generation_kwargs must be a dict, got {type(given).__name__}")
        if given.get("num_return_sequences") not in (None, 1):
            raise ValueError(
                "generation_kwargs['num_return_sequences'] would draw answers that belong to no "
                "row; num_generations says how many a prompt has"
            )


@dataclass
class CompletionLogConfig:
    """What is shown of the completions."""

    log_completions: bool = field(
        default=False, metadata={"help": "Show prompts and completions at each logging step."}
    )
    log_multimodal: bool = field(
        default=True,
        metadata={"help": "Accepted either way: prompts with images are not trained on here."},
    )
    num_completions_to_print: int | None = field(
        default=None, metadata={"help": "How many are printed; unset: all."}
    )
    log_unique_prompts: bool = field(
        default=False, metadata={"help": "Show one completion of each prompt."}
    )


def require_positive(name: str, given: int | None) -> None:
    """Raise ValueError for a count below 1; None passes."""
    if given is not None and given < 1:
        raise ValueError(f"{name} must be 1 or more, got {given}")


_NO_LOGITS = "no logits are kept for metrics; let a reward function call log_metric"


@dataclass
class OnlineConfig(CompletionLogConfig, SamplingConfig, VLLMConfig, BaseConfig):
    """What GRPO and RLOO share.

    A generation batch is what is sampled at once: `steps_per_generation` slices of
    `per_device_train_batch_size` completions on each process, G for each of its prompts.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *BaseConfig._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "transformers_continuous_batching_config",
        "generation_kwargs",
        "chat_template_kwargs",
    ]
    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **BaseConfig._NO_PART,
        "batch_eval_metrics": ((False,), _NO_LOGITS),
        "include_for_metrics": (([],), _NO_LOGITS),
    }
    _NO_EFFECT: ClassVar[dict[str, str]] = {
        "cache_implementation": "the engine has its own cache",
        "ds3_gather_for_generation": "under ZeRO-3 processes generate in step",
        "log_multimodal": "prompts with images are not trained on here",
        "use_transformers_continuous_batching": "answers are always batched continuously",
    }

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    remove_unused_columns: bool | None = field(
        default=False,
        metadata={"help": "Keep only the prompt: rewards then see no other column."},
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keywords of from_pretrained, where the model is given by name."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code that comes with a checkpoint."}
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={"help": "Weight of a mixture of experts' balancing loss; unset: the model's."},
    )
    disable_dropout: bool = field(
        default=False, metadata={"help": "Train without dropout, so that policies compare."}
    )
    num_generations: int | None = field(
        default=8, metadata={"help": "Completions of each prompt (G), at least 2."}
    )
    num_generations_eval: int | None = field(
        default=None, metadata={"help": "As many in evaluation; unset: num_generations."}
    )
    shuffle_dataset: bool | None = field(
        default=True, metadata={"help": "Take the prompts in random order."}
    )
    pad_to_multiple_of: int | str | None = field(
        default="auto",
        metadata={"help": "Pad batches to a multiple of this; 'auto' is 128 on Neuron, else none."},
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={"help": "Completions sampled at once; unset: by steps_per_generation."},
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={"help": "Slices of a generation batch; unset: gradient_accumulation_steps."},
    )
    beta: float = field(
        default=0.0, metadata={"help": "Weight of the KL to the reference; 0 loads none."}
    )
    num_iterations: int = field(
        default=1, metadata={"help": "How often each generation batch is trained on."}
    )
    epsilon: float = field(
        default=0.2, metadata={"help": "How far the ratio to the old policy may fall below 1."}
    )
    epsilon_high: float | None = field(
        default=None, metadata={"help": "How far it may rise; unset: epsilon."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each reward function; unset: 1 each."}
    )
    mask_truncated_completions: bool = field(
        default=False, metadata={"help": "Leave completions out that were cut off by the limit."}
    )
    reward_timeout: float | None = field(
        default=None,
        metadata={"help": "Seconds a reward function may take, in a process of its own."},
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={"help": "Draw new prompts in place of those whose answers all score alike."},
    )
    dynamic_sampling_rounds: int = field(
        default=4, metadata={"help": "How often at most, for one generation batch."}
    )
    balance_ranks: bool = field(
        default=False,
        metadata={
            "help": "Move answers between processes, within an optimizer step, to even work."
        },
    )
    sync_ref_model: bool = field(
        default=False, metadata={"help": "Let the reference follow the policy (TR-DPO)."}
    )
    ref_model_mixup_alpha: float = field(
        default=0.6, metadata={"help": "Share of the policy it then takes over."}
    )
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "Optimizer steps between two such moves."}
    )

    @property
    def logp_temperature(self) -> float:
        """What logits are divided by in log-probabilities: the policy that learns samples."""
        return self.temperature

    @property
    def shows_columns(self) -> bool:
        """Whether reward functions get the dataset's columns."""
        return not self.remove_unused_columns

    @property
    def needs_reference(self) -> bool:
        """Whether the policy is compared with another model."""
        return self.beta != 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pad_to_multiple_of = padding_multiple(self.pad_to_multiple_of, self.device.type)
        self._refuse_what_breaks_groups()
        self._settle_generation_batch()
        self._check_groups()
        self._check_vllm()
        self._check_sampling()
        self._check_numbers()
        if self.transformers_continuous_batching_config is not None:
            raise ValueError(
                "transformers_continuous_batching_config sizes an engine that is not used: the one "
                "of this process batches continuously by itself; leave it out"
            )
        if self.use_vllm and self.use_transformers_continuous_batching:
            raise ValueError(
                "use_vllm and use_transformers_continuous_batching name two engines; set one"
            )

    def _refuse_what_breaks_groups(self) -> None:
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: answers have advantages, "
                "not labels that could be smoothed; leave it out"
            )
        order = getattr(self, "train_sampling_strategy", "random")
        if order != "random":
            raise ValueError(
                f"train_sampling_strategy={order!r} would take groups apart; leave it out, and set "
                "shuffle_dataset=False for the dataset's own order"
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size would cut groups of num_generations apart; set it to False "
                "and lower per_device_train_batch_size"
            )

    def _settle_generation_batch(self) -> None:
        """Fill in generation_batch_size and steps_per_generation, each from the other."""
        require_positive("generation_batch_size", self.generation_batch_size)
        require_positive("steps_per_generation", self.steps_per_generation)
        a_slice = self.per_device_train_batch_size * self.world_size
        what = f"per_device_train_batch_size * processes = {a_slice}"
        size = self.generation_batch_size
        if size is None:
            steps = self.steps_per_generation or self.gradient_accumulation_steps
            size = a_slice * steps
        elif size % a_slice:
            raise ValueError(f"generation_batch_size={size} is no multiple of {what}")
        steps = size // a_slice
        if self.steps_per_generation not in (None, steps):
            raise ValueError(
                f"generation_batch_size={size} and steps_per_generation="
                f"{self.steps_per_generation} disagree ({what}); set one of them"
            )
        self.generation_batch_size, self.steps_per_generation = size, steps

    def _check_groups(self) -> None:
        group, size = self.num_generations, self.generation_batch_size
        if group is None or group < 2:
            raise ValueError(
                f"num_generations must be 2 or more, got {group}: a completion is judged against "
                "the others to its prompt"
            )
        if size is not None and size % group:
            raise ValueError(
                f"generation_batch_size={size} is no multiple of num_generations={group}; it is "
                "per_device_train_batch_size * processes * steps_per_generation unless set"
            )
        require_positive("num_generations_eval", self.num_generations_eval)
        if self.do_eval and self.eval_strategy != "no":
            self.require_whole_groups_in_eval(self.num_generations_eval or group)
        whole = self.per_device_train_batch_size * (self.steps_per_generation or 1)
        if self.dynamic_sampling and whole % self.num_generations:
            raise ValueError(
                f"dynamic_sampling replaces whole groups, but the {whole} completions of a process "
                f"are no multiple of num_generations={self.num_generations}; change "
                "per_device_train_batch_size or steps_per_generation"
            )

    def require_whole_groups_in_eval(self, group: int) -> None:
        """Raise ValueError where a batch of evaluation would part `group` rows of one prompt."""
        rows = self.per_device_eval_batch_size * self.world_size
        if rows % group:
            raise ValueError(
                f"per_device_eval_batch_size * processes = {rows} is no multiple of the {group} "
                "completions of a prompt in evaluation; change it or num_generations_eval"
            )

    def _check_numbers(self) -> None:
        require_positive("dynamic_sampling_rounds", self.dynamic_sampling_rounds)
        if self.reward_timeout is not None and self.reward_timeout <= 0:
            raise ValueError(f"reward_timeout must be positive, got {self.reward_timeout}")
        require_positive("num_iterations", self.num_iterations)
        if (self.num_completions_to_print or 0) < 0:
            raise ValueError(
                f"num_completions_to_print must be 0 or more, got {self.num_completions_to_print}"
            )
        require_positive("ref_model_sync_steps", self.ref_model_sync_steps)
        for name in ("beta", "epsilon", "epsilon_high"):
            given = getattr(self, name)
            if given is not None and given < 0:
                raise ValueError(f"{name} must be 0 or more, got {given}")
        if self.sync_ref_model and self.beta == 0:
            raise ValueError(
                "sync_ref_model moves a reference that beta=0 does not load; set beta or leave "
                "sync_ref_model out"
            )
