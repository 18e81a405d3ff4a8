"""Fields that `transformers.TrainingArguments` had since 4.30 and has no longer in 5."""

from __future__ import annotations

from typing import Any

from fastrl.legacy.changes import Converted, Ignored, Refused, Renamed, Table

_NO_LONGER_NEEDED = "nothing needs it any more"


def _sampling(by_length: bool) -> dict[str, Any]:
    return {"train_sampling_strategy": "group_by_length"} if by_length else {}


def _optimizer(adafactor: bool) -> dict[str, Any]:
    return {"optim": "adafactor"} if adafactor else {}


def _metric_inputs(inputs: bool) -> dict[str, Any]:
    return {"include_for_metrics": ["inputs"]} if inputs else {}


def _warmup(share: float) -> dict[str, Any]:
    """A share below 1 is what `warmup_steps` takes; all of the run is as good as its whole."""
    if not 0 <= share <= 1:
        raise ValueError(f"warmup_ratio={share}: it is a share of all steps, from 0 to 1")
    return {"warmup_steps": min(share, 1 - 1e-9)} if share else {}


# Defaults of `TrainingArguments`, which the configs had while they set none of their own.
DEFAULTS: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "learning_rate": 5e-5,
    "logging_nan_inf_filter": True,
    "logging_steps": 500,
}


def defaults_of(**own: Any) -> dict[str, dict[str, Any]]:
    """Generation -> the defaults that a config had then: those above, and these of its own."""
    return dict.fromkeys(("0.7", "0.11"), DEFAULTS | own)


TRAINING_ARGUMENTS: Table = {
    "adafactor": Converted(_optimizer, "optim='adafactor'"),
    "dispatch_batches": Refused("write accelerator_config={'dispatch_batches': ...}", ()),
    "evaluation_strategy": Renamed("eval_strategy"),
    "fp16_backend": Refused("only PyTorch's own half precision is left", ("auto", "cuda_amp")),
    "fp16_opt_level": Ignored("it was Apex's; fp16=True uses PyTorch's own"),
    "fsdp_min_num_params": Refused("write fsdp_config={'min_num_params': ...}", (0,)),
    "fsdp_transformer_layer_cls_to_wrap": Refused(
        "write fsdp_config={'transformer_layer_cls_to_wrap': [...]}"
    ),
    "group_by_length": Converted(_sampling, "train_sampling_strategy='group_by_length'"),
    "half_precision_backend": Refused(
        "only PyTorch's own half precision is left", ("auto", "cuda_amp")
    ),
    "include_inputs_for_metrics": Converted(_metric_inputs, "include_for_metrics=['inputs']"),
    "include_tokens_per_second": Ignored("include_num_input_tokens_seen counts tokens"),
    "jit_mode_eval": Ignored("torch_compile=True compiles the model"),
    "logging_dir": Ignored("TensorBoard writes to output_dir, or to $TENSORBOARD_LOGGING_DIR"),
    "mp_parameters": Refused("SageMaker's own model parallelism is gone", ("",)),
    "no_cuda": Renamed("use_cpu"),
    "overwrite_output_dir": Ignored(
        "a run starts afresh unless train(resume_from_checkpoint=...) says otherwise"
    ),
    "past_index": Refused("memory across batches is gone", (-1,)),
    "per_gpu_eval_batch_size": Renamed("per_device_eval_batch_size"),
    "per_gpu_train_batch_size": Renamed("per_device_train_batch_size"),
    "push_to_hub_model_id": Renamed("hub_model_id"),
    "push_to_hub_organization": Refused("write hub_model_id='organization/name'"),
    "push_to_hub_token": Renamed("hub_token"),
    "ray_scope": Ignored("only Ray's hyperparameter search read it"),
    "save_safetensors": Ignored("checkpoints are always safetensors"),
    "sharded_ddp": Refused("write fsdp='full_shard' or deepspeed=...", (False, "", [])),
    "split_batches": Refused("write accelerator_config={'split_batches': ...}", ()),
    "torchdynamo": Refused("write torch_compile_backend=..."),
    "tpu_metrics_debug": Refused("write debug='tpu_metrics_debug'"),
    "tpu_num_cores": Ignored("the launcher says how many"),
    "use_ipex": Ignored(_NO_LONGER_NEEDED),
    "use_legacy_prediction_loop": Refused("there is one evaluation loop now"),
    "use_mps_device": Ignored("MPS is used where it is found, unless use_cpu=True"),
    "warmup_ratio": Converted(_warmup, "warmup_steps= with a number below 1", yields=True),
    "xpu_backend": Renamed("ddp_backend"),
}
