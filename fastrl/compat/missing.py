"""What to say of a name of TRL's that is not here: when it comes, what replaced it, or its like."""

from __future__ import annotations

from fastrl.compat.modules import MODULES
from fastrl.legacy import closest

# First word of classes whose algorithm is not there yet -> how to speak of it.
_LATER = {
    "AlignProp": "AlignProp",
    "BCO": "BCO",
    "CPO": "CPO",
    "DDPO": "DDPO",
    "DefaultDDPO": "DDPO",
    "Distillation": "distillation",
    "GKD": "GKD",
    "NashMD": "Nash-MD",
    "GeometricMixture": "Nash-MD",
    "ORPO": "ORPO",
    "PRM": "PRM",
    "PerPromptStatTracker": "DDPO",
    "XPO": "XPO",
}
_LATER_MODULES = {
    "alignprop": "AlignProp",
    "bco": "BCO",
    "cpo": "CPO",
    "ddpo": "DDPO",
    "distillation": "distillation",
    "gkd": "GKD",
    "modeling_sd_base": "DDPO",
    "nash_md": "Nash-MD",
    "orpo": "ORPO",
    "prm": "PRM",
    "sd_utils": "DDPO",
    "xpo": "XPO",
}
_LOGITS = "logits are never kept: fastrl.ops.linear_token_logprobs scores from hidden states"
_HOOKS = "unwrap_model_for_generation leaves ZeRO-3's hooks where they are"
_OFFLOADING = "activation offloading is not there yet; gradient_checkpointing=True saves memory"
_VISION = "vision models are not there yet"
_SERVER = "GRPOConfig(use_vllm=True, vllm_mode='server') talks to a vLLM server"
_SCRIPT = "the command line has it: fastrl {}"

# Names that have none here by design -> what serves instead.
_INSTEAD = {
    "CallbackHandlerWithRefModel": "trainers tell callbacks of their reference by follow_with",
    "AestheticScorer": "it comes with DDPO's example",
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
    "enable_selective_activation_checkpointing": "gradient_checkpointing=True saves memory",
    "forward_masked_logits": _LOGITS,
    "get_act_offloading_ctx_manager": _OFFLOADING,
    "maybe_gather_lm_head_ctx": _LOGITS,
    "print_env": _SCRIPT.format("env"),
    "remove_hooks": _HOOKS,
    "split_pixel_values_by_grid": _VISION,
    "unsplit_pixel_values_by_grid": _VISION,
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
