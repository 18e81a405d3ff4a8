"""Arguments of group relative policy optimization."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field

from fastrl.algos.grpo_losses import CORRECTIONS, LEVELS, LOSSES
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.online import GRPO_FIELDS
from fastrl.ops.group_advantages import SCALES
from fastrl.train.config import require_choice
from fastrl.train.online_config import OnlineConfig, require_positive

logger = logging.getLogger(__name__)

AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
_CLIPS = ("grpo", "dr_grpo", "dapo", "bnpo", "luspo")


@dataclass
class EntropyConfig:
    """Which tokens learn, and whether entropy is rewarded."""

    top_entropy_quantile: float = field(
        default=1.0, metadata={"help": "Learn from this share of tokens, of highest entropy."}
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Reward for the mean entropy of a token; 0: none."}
    )
    use_adaptive_entropy: bool = field(
        default=False,
        metadata={"help": "Move entropy_coef at each step by whether entropy_target is met."},
    )
    entropy_coef_min: float = field(default=0.0, metadata={"help": "Lowest it then gets."})
    entropy_coef_max: float = field(default=1.0, metadata={"help": "Highest it then gets."})
    entropy_coef_delta: float = field(default=0.005, metadata={"help": "How far it moves a step."})
    entropy_target: float = field(
        default=0.2, metadata={"help": "Entropy in nats above which nothing is rewarded."}
    )

    def _check_entropy(self) -> None:
        if not 0 <= self.top_entropy_quantile <= 1:
            raise ValueError(
                f"top_entropy_quantile must be between 0 and 1, got {self.top_entropy_quantile}"
            )
        if self.entropy_coef_min > self.entropy_coef_max:
            raise ValueError(
                f"entropy_coef_min={self.entropy_coef_min} is above "
                f"entropy_coef_max={self.entropy_coef_max}"
            )


@dataclass
class CorrectionConfig:
    """What is done about an engine that samples with other probabilities than the policy has."""

    vllm_importance_sampling_correction: bool = field(
        default=True, metadata={"help": "Weigh by the ratio of the policy to vLLM's sampling."}
    )
    vllm_importance_sampling_mode: str = field(
        default="sequence_mask",
        metadata={"help": f"Ratio of what, and what beyond its bounds: {', '.join(CORRECTIONS)}."},
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=3.0, metadata={"help": "Upper bound of that ratio; unset: none."}
    )
    vllm_importance_sampling_clip_min: float | None = field(
        default=None, metadata={"help": "Lower bound of that ratio; unset: none."}
    )
    vllm_importance_sampling_cap: float | None = field(
        default=None, metadata={"help": "Old name of vllm_importance_sampling_clip_max."}
    )
    off_policy_mask_threshold: float | None = field(
        default=None,
        metadata={"help": "Drop answers with A < 0 that drifted further off policy than this KL."},
    )

    def _check_correction(self) -> None:
        mode = self.vllm_importance_sampling_mode
        require_choice("vllm_importance_sampling_mode", mode, CORRECTIONS)
        if self.vllm_importance_sampling_cap is not None:
            warnings.warn(
                "vllm_importance_sampling_cap is called vllm_importance_sampling_clip_max now",
                FutureWarning,
                stacklevel=5,
            )
            self.vllm_importance_sampling_clip_max = self.vllm_importance_sampling_cap
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"vllm_importance_sampling_clip_min={low} must be below "
                f"vllm_importance_sampling_clip_max={high}"
            )
        unbound = low is None and high is None
        if self.vllm_importance_sampling_correction and "truncate" in mode and unbound:
            raise ValueError(
                f"vllm_importance_sampling_mode={mode!r} needs a bound; set "
                "vllm_importance_sampling_clip_max or _clip_min"
            )


@accepts_legacy_fields(GRPO_FIELDS)
@dataclass
class GRPOConfig(EntropyConfig, CorrectionConfig, OnlineConfig):
    """Arguments of `GRPOTrainer`; field names and defaults are those of TRL 1.16.

    Raises:
        ValueError: at construction, for a value outside its list or range, batches that would cut
            a prompt's group apart, or settings that exclude each other.
    """

    cast_lm_head_to_fp32: bool = field(
        default=False, metadata={"help": "Compute the logits of policy and reference in fp32."}
    )
    loss_type: str = field(default="dapo", metadata={"help": f"One of: {', '.join(LOSSES)}."})
    importance_sampling_level: str = field(
        default="token", metadata={"help": "Ratio of each token, or of the sequence (GSPO)."}
    )
    scale_rewards: str = field(
        default="group",
        metadata={"help": "Divide by the deviation of the group, of the batch, or none."},
    )
    multi_objective_aggregation: str = field(
        default="sum_then_normalize",
        metadata={"help": f"How several rewards become one: {' or '.join(AGGREGATIONS)}."},
    )
    delta: float | None = field(
        default=None, metadata={"help": "Bound on the ratio where A < 0 too (two-sided clipping)."}
    )
    use_bias_correction_kl: bool = field(
        default=True, metadata={"help": "Multiply the KL by the ratio: its gradient is unbiased."}
    )
    sapo_temperature_neg: float = field(
        default=1.05, metadata={"help": "How fast sapo's gate closes where A <= 0."}
    )
    sapo_temperature_pos: float = field(
        default=1.0, metadata={"help": "How fast it closes where A > 0."}
    )
    vespo_k_pos: float = field(default=2.0, metadata={"help": "vespo's power of W where A >= 0."})
    vespo_lambda_pos: float = field(default=3.0, metadata={"help": "Its decay there."})
    vespo_k_neg: float = field(default=3.0, metadata={"help": "vespo's power of W where A < 0."})
    vespo_lambda_neg: float = field(default=2.0, metadata={"help": "Its decay there."})
    max_tool_calling_iterations: int | None = field(
        default=None, metadata={"help": "Rounds of tool calls in an answer; unset: no limit."}
    )
    log_completions_hub_repo: str | None = field(
        default=None, metadata={"help": "Hub repository that logged completions are sent to."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        once_bool = {"true": "group", "false": "none"}
        self.scale_rewards = once_bool.get(str(self.scale_rewards).lower(), self.scale_rewards)
        require_choice("loss_type", self.loss_type, tuple(LOSSES))
        require_choice("importance_sampling_level", self.importance_sampling_level, LEVELS)
        require_choice("scale_rewards", self.scale_rewards, SCALES)
        require_choice(
            "multi_objective_aggregation", self.multi_objective_aggregation, AGGREGATIONS
        )
        require_positive("max_tool_calling_iterations", self.max_tool_calling_iterations)
        self._check_entropy()
        self._check_correction()
        self._refuse_contradictions()
        self._warn_of_unusual()

    def _refuse_contradictions(self) -> None:
        if self.loss_type == "dr_grpo" and self.max_completion_length is None:
            raise ValueError(
                "loss_type 'dr_grpo' divides by max_completion_length; set it, or another loss"
            )
        if self.loss_type == "sapo":
            for name in ("sapo_temperature_neg", "sapo_temperature_pos"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.delta is not None and self.delta <= 0:
            raise ValueError(f"delta must be positive, best above 1 + epsilon; got {self.delta}")
        if self.log_completions_hub_repo is not None and not self.log_completions:
            raise ValueError(
                "log_completions_hub_repo is where logged completions go; set log_completions=True"
            )
        mode = self.vllm_importance_sampling_mode
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        if self.loss_type == "vespo" and corrects and mode.startswith("sequence"):
            raise ValueError(
                f"loss_type 'vespo' needs the ratio of each token, not "
                f"vllm_importance_sampling_mode={mode!r}; write 'token_truncate' or 'token_mask'"
            )

    def _warn_of_unusual(self) -> None:
        loss, level = self.loss_type, self.importance_sampling_level
        if self.delta is not None and loss not in _CLIPS:
            logger.warning("delta has no effect on loss_type %r, which does not clip", loss)
        if loss == "luspo" and level == "token":
            logger.warning("luspo is defined with importance_sampling_level='sequence'")
        if loss == "vespo" and level == "sequence":
            logger.warning("vespo has a ratio of sequences of its own; the level changes the KL")
        if level == "sequence" and loss in ("bnpo", "dr_grpo", "dapo", "cispo"):
            logger.warning(
                "with importance_sampling_level='sequence' loss_type %r weighs answers by their "
                "length; GSPO's own is loss_type='grpo'",
                loss,
            )
