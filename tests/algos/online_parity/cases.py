"""The runs on which fastrl and TRL 1.16 must log the same numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from tests.algos.online_parity.running import Case

# Narrow, so that ten small steps meet the bounds; cispo's is a ratio, not its distance to 1.
CLIPPED = {"epsilon": 0.05, "epsilon_high": 0.06}
CLIPPED_CISPO = {"epsilon_high": 1.05}

LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")


def _grid() -> list[Case]:
    made = []
    for loss, beta, iterations, accumulation, lora in product(
        LOSSES, (0.0, 0.1), (1, 2), (1, 4), ("", "new")
    ):
        name = f"{loss}_beta{beta:g}_iter{iterations}_ga{accumulation}{'_lora' if lora else ''}"
        config = {
            "loss_type": loss,
            "beta": beta,
            "num_iterations": iterations,
            "gradient_accumulation_steps": accumulation,
            **(CLIPPED_CISPO if loss == "cispo" else CLIPPED),
        }
        made.append(Case(name, config=config, lora=lora, group="grid"))
    return made


def _case(trainer: str, name: str, **given: Any) -> Case:
    """Fields of `Case`, the rest the trainer's configuration."""
    own = ("model", "lora", "chat", "stream", "evaluate", "by_path", "rewards", "engine")
    fields = {key: given.pop(key) for key in own if key in given}
    script = frozenset(given.pop("script", "").split())
    group = trainer.lower()
    return Case(f"{group}_{name}", trainer, given, script=script, group=group, **fields)


def _grpo(name: str, **given: Any) -> Case:
    return _case("GRPO", name, **given)


def _rloo(name: str, **given: Any) -> Case:
    return _case("RLOO", name, **given)


GRID = _grid()

ONCE_STALE = {"num_iterations": 2, "beta": 0.1}
SPREAD = {"gradient_accumulation_steps": 4}

GRPO = [
    *(_grpo(f"sequence_{loss}", importance_sampling_level="sequence", loss_type=loss, epsilon=0.01,
            epsilon_high=1.01 if loss == "cispo" else 0.01, **ONCE_STALE)
      for loss in LOSSES),
    _grpo("scale_batch", scale_rewards="batch", per_device_train_batch_size=8),
    _grpo("scale_none", scale_rewards="none"),
    _grpo("normalize_then_sum", multi_objective_aggregation="normalize_then_sum",
          per_device_train_batch_size=8),
    _grpo("delta", delta=1.1, epsilon=0.05, **ONCE_STALE),
    _grpo("delta_inside", delta=1.1, **ONCE_STALE),
    _grpo("truncated", mask_truncated_completions=True, **ONCE_STALE),
    _grpo("truncated_grpo", mask_truncated_completions=True, loss_type="grpo", **SPREAD),
    _grpo("quantile", top_entropy_quantile=0.5, **ONCE_STALE),
    _grpo("quantile_accumulation", top_entropy_quantile=0.5, beta=0.1, **SPREAD),
    _grpo("entropy", entropy_coef=0.01, **SPREAD),
    _grpo("entropy_quantile", entropy_coef=0.01, top_entropy_quantile=0.5, loss_type="luspo"),
    _grpo("adaptive", entropy_coef=0.02, use_adaptive_entropy=True, entropy_target=4.26,
          **ONCE_STALE),
    _grpo("adaptive_accumulation", use_adaptive_entropy=True, entropy_target=5.0, **SPREAD),
    _grpo("off_policy", off_policy_mask_threshold=0.02, num_iterations=2),
    _grpo("off_policy_sampled", off_policy_mask_threshold=0.1, num_iterations=2, script="logps"),
    _grpo("off_policy_holes", off_policy_mask_threshold=0.1, script="holes"),
    _grpo("plain_kl", use_bias_correction_kl=False, **ONCE_STALE),
    _grpo("temperature", temperature=0.7, **ONCE_STALE),
    _grpo("generates_often", steps_per_generation=2, gradient_accumulation_steps=4, beta=0.1),
    _grpo("generates_often_bnpo", steps_per_generation=2, gradient_accumulation_steps=4,
          loss_type="bnpo"),
    _grpo("generates_rarely", steps_per_generation=8, gradient_accumulation_steps=4, beta=0.1),
    _grpo("generates_rarely_grpo", steps_per_generation=8, gradient_accumulation_steps=4,
          loss_type="grpo", num_iterations=2),
    _grpo("generates_askew", steps_per_generation=3, gradient_accumulation_steps=2),
    _grpo("pairs", num_generations=2),
    _grpo("eights", num_generations=8, **SPREAD),
    _grpo("batch_given", generation_batch_size=16, gradient_accumulation_steps=2),
    _grpo("clip_higher", epsilon=0.1, epsilon_high=0.3, **ONCE_STALE),
    _grpo("synced", sync_ref_model=True, ref_model_sync_steps=3, beta=0.2),
    _grpo("reward_weights", reward_weights=[0.3, 1.5]),
    _grpo("unscorable", rewards=("brevity",)),
    _grpo("one_reward", rewards=("spelling",), beta=0.1),
    _grpo("extra_field", rewards=("luckiness", "spelling"), script="luck"),
    _grpo("awaited", rewards=("slowness", "brevity")),
    _grpo("reward_model", rewards=("judge",)),
    _grpo("env_mask", script="env_mask", **ONCE_STALE),
    _grpo("env_mask_truncated", script="env_mask", mask_truncated_completions=True, **SPREAD),
    *(_grpo(f"engine_{mode}", engine=True, script="logps", beta=0.1,
            vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=1.5)
      for mode in ("sequence_mask", "sequence_truncate", "token_mask", "token_truncate")),
    _grpo("engine_bounds", engine=True, script="holes", num_iterations=2,
          vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_min=0.5),
    _grpo("engine_vespo", engine=True, script="logps", loss_type="vespo",
          vllm_importance_sampling_mode="token_mask"),
    _grpo("engine_uncorrected", engine=True, script="logps",
          vllm_importance_sampling_correction=False),
    _grpo("cast_head", cast_lm_head_to_fp32=True, beta=0.1),
    _grpo("llama", model="llama", **ONCE_STALE),
    _grpo("chat", chat=True, beta=0.1),
    _grpo("moe", model="qwen2_moe", router_aux_loss_coef=0.2, beta=0.1),
    _grpo("moe_accumulation", model="qwen2_moe", num_iterations=2, **SPREAD),
    _grpo("stream", stream=True),
    _grpo("stream_accumulation", stream=True, num_iterations=2, **SPREAD),
    _grpo("unshuffled", shuffle_dataset=False),
    _grpo("evaluated", evaluate="one", eval_strategy="steps", eval_steps=4, beta=0.1,
          num_generations_eval=2),
    _grpo("evaluated_grpo", evaluate="one", eval_strategy="steps", eval_steps=4, loss_type="grpo",
          entropy_coef=0.01, **SPREAD),
    _grpo("evaluated_sets", evaluate="several", eval_strategy="steps", eval_steps=5),
    _grpo("stream_evaluated", stream=True, evaluate="one", eval_strategy="steps", eval_steps=5),
    _grpo("epochs", max_steps=-1, num_train_epochs=2, per_device_train_batch_size=8, **SPREAD),
    _grpo("epochs_ragged", per_device_train_batch_size=8, steps_per_generation=6,
          gradient_accumulation_steps=2),
    _grpo("by_path", by_path=True, model_init_kwargs={"dtype": "float32"}, beta=0.1),
    _grpo("adapter_given", lora="given", beta=0.1),
    _grpo("seldom_logged", logging_steps=5, rewards=("brevity",), **ONCE_STALE),
    _grpo("checkpointed", gradient_checkpointing=True, **ONCE_STALE),
]  # fmt: skip

RLOO = [
    _rloo("default"),
    _rloo("own_generations", num_generations=2),
    _rloo("no_kl", beta=0.0),
    _rloo("normalized", normalize_advantages=True),
    _rloo("clipped_rewards", reward_clip_range=[0.2, 0.7]),
    _rloo("iterations", num_iterations=2),
    _rloo("accumulation", **SPREAD),
    _rloo("iterations_accumulation", num_iterations=2, **SPREAD),
    _rloo("lora", lora="new"),
    _rloo("lora_given", lora="given", **SPREAD),
    _rloo("clip_higher", epsilon=0.1, epsilon_high=0.3, num_iterations=2),
    _rloo("truncated", mask_truncated_completions=True, **SPREAD),
    _rloo("unscorable", rewards=("brevity",)),
    _rloo("reward_weights", reward_weights=[0.3, 1.5]),
    _rloo("temperature", temperature=0.7, num_iterations=2),
    _rloo("generates_rarely", steps_per_generation=8, gradient_accumulation_steps=4),
    _rloo("synced", sync_ref_model=True, ref_model_sync_steps=3),
    _rloo("chat", chat=True),
    _rloo("moe", model="qwen2_moe", router_aux_loss_coef=0.2),
    _rloo("stream", stream=True),
    _rloo("evaluated", evaluate="one", eval_strategy="steps", eval_steps=4,
          num_generations_eval=2),
]  # fmt: skip


def _ranks(name: str, trainer: str = "GRPO", **given: Any) -> Case:
    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **given}
    return replace(_case(trainer, name, **given), name=name, group="ranks")


# Each rank has two rows where a group of four lies across both.
ACROSS = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}

RANKS = [
    *(_ranks(loss, loss_type=loss, **ONCE_STALE) for loss in LOSSES),
    _ranks("across_dapo", beta=0.1, **ACROSS),
    _ranks("across_bnpo", loss_type="bnpo", num_iterations=2, **ACROSS),
    _ranks("scale_batch", scale_rewards="batch"),
    _ranks("unscorable", rewards=("brevity",), **ACROSS),
    _ranks("truncated", mask_truncated_completions=True, num_iterations=2),
    _ranks("quantile", top_entropy_quantile=0.5),
    _ranks("adaptive", use_adaptive_entropy=True, entropy_target=4.26),
    _ranks("engine", engine=True, script="holes", vllm_importance_sampling_mode="token_mask"),
    _ranks("extra_field", rewards=("luckiness", "spelling"), script="luck"),
    _ranks("generates_rarely", steps_per_generation=4),
    _ranks("synced", sync_ref_model=True, ref_model_sync_steps=3, beta=0.2),
    _ranks("lora", lora="new", beta=0.1),
    _ranks("moe", model="qwen2_moe"),
    _ranks("stream", stream=True),
    _ranks("evaluated", evaluate="one", eval_strategy="steps", eval_steps=4, **ACROSS),
    _ranks("rloo", "RLOO", num_iterations=2),
    _ranks("rloo_across", "RLOO", normalize_advantages=True, **ACROSS),
    _ranks("rloo_lora", "RLOO", lora="new"),
    _ranks("distillation", "Distillation", beta=0.7),
]  # fmt: skip

ALL = [*GRID, *GRPO, *RLOO]
