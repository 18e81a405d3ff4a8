"""Config fields under old names."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import pytest
from transformers import TrainingArguments

from fastrl.legacy.changes import Converted, Refused, Renamed
from fastrl.legacy.dpo import DPO_FIELDS
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.kto import KTO_FIELDS
from fastrl.legacy.sft import SFT_FIELDS
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS

# The fields of TrainingArguments in transformers 4.38.2 (TRL 0.7.11's companion) without `_n_gpu`.
FIELDS_OF_4_38 = """
output_dir overwrite_output_dir do_train do_eval do_predict evaluation_strategy prediction_loss_only
per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size
per_gpu_eval_batch_size gradient_accumulation_steps eval_accumulation_steps eval_delay learning_rate
weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps
lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps log_level log_level_replica
log_on_each_node logging_dir logging_strategy logging_first_step logging_steps
logging_nan_inf_filter save_strategy save_steps save_total_limit save_safetensors save_on_each_node
save_only_model no_cuda use_cpu use_mps_device seed data_seed jit_mode_eval use_ipex bf16 fp16
fp16_opt_level half_precision_backend bf16_full_eval fp16_full_eval tf32 local_rank ddp_backend
tpu_num_cores tpu_metrics_debug debug dataloader_drop_last eval_steps dataloader_num_workers
dataloader_prefetch_factor past_index run_name disable_tqdm remove_unused_columns label_names
load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip fsdp
fsdp_min_num_params fsdp_config fsdp_transformer_layer_cls_to_wrap accelerator_config deepspeed
label_smoothing_factor optim optim_args adafactor group_by_length length_column_name report_to
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers dataloader_pin_memory
dataloader_persistent_workers skip_memory_metrics use_legacy_prediction_loop push_to_hub
resume_from_checkpoint hub_model_id hub_strategy hub_token hub_private_repo hub_always_push
gradient_checkpointing gradient_checkpointing_kwargs include_inputs_for_metrics fp16_backend
push_to_hub_model_id push_to_hub_organization push_to_hub_token mp_parameters auto_find_batch_size
full_determinism torchdynamo ray_scope ddp_timeout torch_compile torch_compile_backend
torch_compile_mode dispatch_batches split_batches include_tokens_per_second
include_num_input_tokens_seen neftune_noise_alpha
"""


@accepts_legacy_fields(SFT_FIELDS)
@dataclass
class Config(TrainingArguments):
    max_length: int | None = 1024


def made(**fields):
    """A Config from old fields, which must be announced in exactly one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = Config("out", use_cpu=fields.pop("use_cpu", True), **fields)
    ours = [str(w.message) for w in caught if "old spellings" in str(w.message)]
    assert len(ours) == 1, ours
    assert all(name in ours[0] for name in fields)
    return config


def test_every_field_of_4_38_is_known():
    today = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    old = FIELDS_OF_4_38.split()
    assert len(old) == 120
    assert [n for n in old if n not in today and n not in TRAINING_ARGUMENTS] == []


def test_new_names_exist_today():
    today = {f.name for f in dataclasses.fields(TrainingArguments)}
    for name, change in TRAINING_ARGUMENTS.items():
        if isinstance(change, Renamed):
            assert change.new in today, name
        if isinstance(change, Converted):
            assert change.into(True if name != "warmup_ratio" else 0.1).keys() <= today, name


def test_renamed():
    config = made(evaluation_strategy="steps", max_seq_length=5, push_to_hub_token="t")
    assert config.eval_strategy == "steps" and config.max_length == 5 and config.hub_token == "t"


def test_warmup_ratio_is_a_share_of_the_steps():
    config = made(warmup_ratio=0.1)
    assert config.get_warmup_steps(200) == 20
    assert made(warmup_ratio=1.0).get_warmup_steps(200) == 200
    with pytest.raises(ValueError, match="warmup_ratio=3"):
        Config("out", warmup_ratio=3)


def test_warmup_steps_win_over_the_ratio_as_they_did():
    for ratio in (0.0, 0.1):
        with pytest.warns(FutureWarning):
            config = Config("out", use_cpu=True, warmup_ratio=ratio, warmup_steps=7)
        assert config.warmup_steps == 7
    with pytest.warns(FutureWarning):
        assert Config("out", use_cpu=True, warmup_ratio=0.1, warmup_steps=0).warmup_steps == 0.1


def test_converted():
    assert made(group_by_length=True).train_sampling_strategy == "group_by_length"
    assert made(group_by_length=False).train_sampling_strategy == "random"
    assert made(adafactor=True).optim == "adafactor"
    assert made(include_inputs_for_metrics=True).include_for_metrics == ["inputs"]


def test_without_effect_is_accepted():
    config = made(logging_dir="logs", overwrite_output_dir=True, save_safetensors=True)
    assert not hasattr(config, "logging_dir")


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"sharded_ddp": "simple"}, "fsdp='full_shard'"),
        ({"half_precision_backend": "apex"}, "PyTorch's own"),
        ({"past_index": 2}, "gone"),
        ({"dispatch_batches": False}, "accelerator_config"),
    ],
)
def test_what_would_change_results_is_refused(fields, mend):
    with pytest.raises(TypeError, match=f"no longer takes {next(iter(fields))}=.*{mend}"):
        Config("out", **fields)


def test_default_values_of_4_38_pass():
    """A script that spells out the defaults of its time asks for nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config("out", use_cpu=True, past_index=-1, fp16_backend="auto", torchdynamo=None)


def test_unknown_and_doubled():
    with pytest.raises(TypeError, match="no field 'max_lenght'; did you mean 'max_length'"):
        Config("out", max_lenght=1)
    with pytest.raises(TypeError, match="max_length= both"):
        Config("out", max_length=1, max_seq_length=2)


def test_none_leaves_todays_default():
    assert Config("out", use_cpu=True, max_seq_length=None).max_length == 1024


def test_a_copy_of_a_config_stays_itself():
    config = made(max_seq_length=5, warmup_ratio=0.25)
    copied = dataclasses.replace(config, seed=3)
    assert (copied.max_length, copied.warmup_steps, copied.seed) == (5, 0.25, 3)


def test_rpo_names_its_mend():
    assert "loss_weights" in DPO_FIELDS["rpo_alpha"].instead
    assert isinstance(DPO_FIELDS["rpo_alpha"], Refused)
    assert not DPO_FIELDS["rpo_alpha"].allows(0)  # it was a number or None
    assert "max_prompt_length" in KTO_FIELDS
