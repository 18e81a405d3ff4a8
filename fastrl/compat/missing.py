"""What to say of a name of TRL's that is not here: when it comes, what replaced it, or its like."""

from __future__ import annotations

from fastrl.compat.modules import MODULES
from fastrl.legacy import closest

# First word of classes whose algorithm is not there yet -> how to speak of it.
_LATER = {
    "AsyncDistillation": "asynchronous distillation",
    "AsyncGRPO": "asynchronous GRPO",
}
_LATER_MODULES = {
    "async_distillation": "asynchronous distillation",
    "async_grpo": "asynchronous GRPO",
    "server_distillation": "distillation by a teacher on a server",
}
_LOGITS = "logits are never kept: fastrl.ops.linear_token_logprobs scores from hidden states"
_HOOKS = "unwrap_model_for_generation leaves ZeRO-3's hooks where they are"
_OFFLOADING = (
    "activation_offloading=True of SFTConfig, DPOConfig, … keeps activations in host memory"
)
_RELATIVES = (
    "it is none of the relatives of GRPO that are here: GRPOConfig has eight losses (loss_type), "
    "and importance_sampling_level='sequence' is GSPO"
)
_GYMS = "GRPOTrainer(environment_factory=...) takes environments of one's own"
_DISTILLING = "DistillationTrainer distils; its relatives are not there yet"
_VISION = "vision models are not there yet"
_SERVER = "GRPOConfig(use_vllm=True, vllm_mode='server') talks to a vLLM server"
_SCRIPT = "the command line has it: fastrl {}"
_FEWER_ACTIVATIONS = "gradient_checkpointing=True saves memory"
_CONVERSION = "diffusers has it: from diffusers.utils import convert_state_dict_to_diffusers"

# Trainers of TRL's `experimental` without one here -> what serves instead; by module.
_EXPERIMENTAL = {
    "a2po": _RELATIVES,
    "dppo": _RELATIVES,
    "gfpo": _RELATIVES,
    "gmpo": _RELATIVES,
    "gold": _DISTILLING,
    "grpo_with_replay_buffer": _RELATIVES,
    "gspo_token": _RELATIVES,
    "harbor": _GYMS,
    "iw_opd": _DISTILLING,
    "minillm": _DISTILLING,
    "nemo_gym": _GYMS,
    "openenv": _GYMS,
    "openreward": _GYMS,
    "papo": _RELATIVES,
    "sdft": _DISTILLING,
    "sdpo": _DISTILLING,
    "self_distillation": _DISTILLING,
    "tpo": "of preference losses DPOTrainer has fifteen (loss_type)",
}
# Names that have none here by design -> what serves instead.
_INSTEAD = {
    **_EXPERIMENTAL,
    "CallbackHandlerWithRefModel": "trainers tell callbacks of their reference by follow_with",
    "ChatArguments": "transformers has it: transformers chat",
    "ChunkedDivergenceFunction": _LOGITS,
    "ChunkedLogProbFunction": _LOGITS,
    "DataCollatorForVisionLanguageModeling": _VISION,
    "DataCollatorForVisionPreference": _VISION,
    "DataCollatorForVisionUnpairedPreference": _VISION,
    "FusedCausalLMOutput": _LOGITS,
    "MultitaskPromptEmbedding": "it is peft's: from peft import MultitaskPromptEmbedding",
    "MultitaskPromptTuningConfig": "it is peft's: from peft import MultitaskPromptTuningConfig",
    "MultitaskPromptTuningInit": "it is peft's: from peft import MultitaskPromptTuningInit",
    "NoOpManager": _OFFLOADING,
    "OffloadActivations": _OFFLOADING,
    "VLLMClient": _SERVER,
    "VLLMGeneration": _SERVER,
    "WeightSyncWorkerExtension": _SERVER,
    "YamlConfigParser": "TrlParser reads the file that --config names",
    "add_fused_lm_head": _LOGITS,
    "add_hooks": _HOOKS,
    "dft_loss": "SFTConfig(loss_type='dft') trains with it",
    "enable_selective_activation_checkpointing": _FEWER_ACTIVATIONS,
    "forward_masked_logits": _LOGITS,
    "get_act_offloading_ctx_manager": _OFFLOADING,
    "maybe_gather_lm_head_ctx": _LOGITS,
    "print_env": _SCRIPT.format("env"),
    "remove_hooks": _HOOKS,
    "split_pixel_values_by_grid": _VISION,
    "unsplit_pixel_values_by_grid": _VISION,
    # Modules that have none here.
    "sd_utils": _CONVERSION,
    "activation_offloading": _OFFLOADING,
    "distributed": "trainer.accelerator.distributed_type says how processes share the work",
    "env": _SCRIPT.format("env"),
    "generation": _SERVER,
    "selective_activation_checkpointing": _FEWER_ACTIVATIONS,
    "vllm_client": _SERVER,
    "vllm_generation": _SERVER,
}


def explain(root: str, module: str, name: str) -> str:
    """Why the module that TRL calls `module` has no `name`, and what to use.

    Args:
        root: the package under which the modules stand, "fastrl".
        module: path below the root; "" is the top level.
        name: a class, a function, a constant or a module below.
    """
    here = f"{root}.{module}" if module else root
    said = f"module {here!r} has no attribute {name!r}"
    later = comes_later(name)
    if later is not None:
        return f"{said}: {later} is not there yet"
    if name in _INSTEAD:
        return f"{said}: {_INSTEAD[name]}"
    near = closest(name, MODULES.get(module, {}))
    elsewhere = [path for path, names in MODULES.items() if name in names and path != module]
    if elsewhere:
        place = f"{root}.{elsewhere[0]}" if elsewhere[0] else root
        return f"{said}; {place} has it"
    return f"{said}{near}"


def comes_later(name: str) -> str | None:
    """The algorithm that a class or module belongs to, if it is one that is not there yet."""
    for first, algorithm in _LATER.items():
        if name.startswith(first):
            return algorithm
    stem = name.removesuffix("_trainer").removesuffix("_config")
    return _LATER_MODULES.get(stem)


def instead_of(name: str) -> str | None:
    """What serves instead of a name that has none here by design."""
    return _INSTEAD.get(name)
