"""The runs on which fastrl and TRL 1.16 must log the same numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.algos.offline_parity.making import CHATML_TRAINING
from tests.algos.offline_parity.running import Case

SFT = [
    Case("sft_text", "SFT", "text", evaluate=True,
         config={"eval_strategy": "steps", "eval_steps": 10}),
    Case("sft_accumulation", "SFT", "text", config={"gradient_accumulation_steps": 2}),
    Case("sft_dft", "SFT", "text", config={"loss_type": "dft"}, model="llama"),
    Case("sft_truncated", "SFT", "text", config={"max_length": 24}),
    Case("sft_completion", "SFT", "completion"),
    Case("sft_completion_all", "SFT", "completion", config={"completion_only_loss": False}),
    Case("sft_completion_chat", "SFT", "completion_chat"),
    Case("sft_messages", "SFT", "messages"),
    Case("sft_assistant", "SFT", "messages", config={"assistant_only_loss": True},
         template=CHATML_TRAINING),
    Case("sft_packed", "SFT", "text", config={"packing": True, "max_length": 128}),
    Case("sft_packed_split", "SFT", "completion",
         config={"packing": True, "packing_strategy": "bfd_split", "max_length": 64}),
    Case("sft_wrapped", "SFT", "text",
         config={"packing": True, "packing_strategy": "wrapped", "max_length": 64}),
    Case("sft_padding_free", "SFT", "text", config={"padding_free": True, "max_length": None}),
    Case("sft_smoothing", "SFT", "text", config={"label_smoothing_factor": 0.1}),
    Case("sft_lora", "SFT", "text", lora=True),
    Case("sft_checkpointing", "SFT", "text", config={"gradient_checkpointing": True}),
    Case("sft_gpt2", "SFT", "text", model="gpt2"),
    Case("sft_moe", "SFT", "text", model="qwen2_moe"),
    Case("sft_moe_accumulation", "SFT", "text", model="qwen2_moe",
         config={"gradient_accumulation_steps": 2, "router_aux_loss_coef": 0.2}),
]  # fmt: skip

DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "sft", "sigmoid_norm",
)  # fmt: skip


def _case(
    trainer: str, name: str, rows: str = "preference", reference: bool = True, **config: Any
) -> Case:
    own = ("model", "lora", "evaluate", "steepness")
    settings = {key: config.pop(key) for key in own if key in config}
    # Some of these losses are so steep that larger steps enlarge fp32's own noise a thousandfold.
    config = {"learning_rate": 1e-4, **config}
    return Case(f"{trainer.lower()}_{name}", trainer, rows, config, reference=reference, **settings)


_dpo = partial(_case, "DPO")
_kto = partial(_case, "KTO")
_reward = partial(_case, "Reward", reference=False)


DPO = [
    *(_dpo(name, loss_type=name) for name in DPO_LOSSES),
    # Its blend is a sigmoid of the margin over 0.05, which enlarges the margin's rounding by that.
    _dpo("discopop", loss_type="discopop", steepness=20.0),
    _dpo("exo_pair", loss_type="exo_pair", label_smoothing=1e-3),
    _dpo("robust", loss_type="robust", label_smoothing=0.1),
    _dpo("aot_smoothed", loss_type="aot", label_smoothing=0.2),
    _dpo("several", loss_type=["sigmoid", "sft", "bco_pair"], loss_weights=[0.8, 0.2, 1.0]),
    _dpo("ld", ld_alpha=0.4),
    _dpo("wpo", use_weighting=True, model="llama"),
    # Both take the exponential of a log-ratio.
    _dpo("forward_kl", f_divergence_type="forward_kl", learning_rate=1e-5, steepness=10.0),
    _dpo("js", f_divergence_type="js_divergence", loss_type="ipo"),
    _dpo("alpha", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3,
         learning_rate=1e-5, steepness=10.0),
    _dpo("accumulation", gradient_accumulation_steps=2),
    _dpo("evaluated", evaluate=True, eval_strategy="steps", eval_steps=10),
    _dpo("truncated", max_length=48),
    _dpo("implicit", rows="preference_implicit"),
    _dpo("chat", rows="preference_chat"),
    _dpo("lora", reference=False, lora=True),
    _dpo("precomputed", precompute_ref_log_probs=True),
    _dpo("synced", sync_ref_model=True, ref_model_sync_steps=7),
    _dpo("gpt2", model="gpt2"),
    _dpo("moe", model="qwen2_moe"),
    _dpo("checkpointing", gradient_checkpointing=True),
]  # fmt: skip

KTO = [
    _kto("unpaired", rows="unpaired"),
    _kto("paired"),
    _kto("apo", rows="unpaired", loss_type="apo_zero_unpaired"),
    _kto("weights", rows="unpaired", desirable_weight=0.7, undesirable_weight=1.4, beta=0.3),
    _kto("accumulation", rows="unpaired", gradient_accumulation_steps=2),
    _kto("evaluated", rows="unpaired", evaluate=True, eval_strategy="steps", eval_steps=10),
    _kto("truncated", rows="unpaired", max_length=40),
    _kto("lora", rows="unpaired", reference=False, lora=True),
    _kto("precomputed", rows="unpaired", precompute_ref_log_probs=True),
    _kto("moe", rows="unpaired", model="qwen2_moe"),
]

REWARD = [
    _reward("pairs"),
    _reward("implicit", rows="preference_implicit", model="llama"),
    _reward("chat", rows="preference_chat"),
    _reward("centred", center_rewards_coefficient=0.05),
    _reward("margin", rows="preference_margin"),
    _reward("accumulation", gradient_accumulation_steps=2),
    _reward("evaluated", evaluate=True, eval_strategy="steps", eval_steps=10),
    _reward("filtered", max_length=60),
    _reward("lora", lora=True),
]

ALL = [*SFT, *DPO, *KTO, *REWARD]
