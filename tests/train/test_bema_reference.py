"""A reference that follows BEMA's averages, and trainers that tell callbacks which model it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerControl

import fastrl
from fastrl.experimental.bema_for_ref_model import BEMACallback


class OneWeight(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))


def followed(walk, **options):
    """The reference's weight after each step of a policy that visits `walk`."""
    policy, reference = OneWeight(walk[0]), OneWeight(walk[0])
    # lag 2, kappa 1/2, eta 1: beta_2 = 1/2 and alpha_2 = 1/4, as in the averages' own test.
    callback = BEMACallback(2, lag=2, ema_power=0.5, bias_power=1.0, **options)
    callback.follow_with(reference)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    args, control = SimpleNamespace(output_dir="nowhere"), TrainerControl()
    callback.on_train_begin(args, state, control, model=policy)
    seen = []
    for step, weight in enumerate(walk[1:], 1):
        policy.weight.data.fill_(weight)
        state.global_step = step
        callback.on_step_end(args, state, control)
        seen.append(reference.weight.item())
    return seen


def test_the_reference_takes_the_averages_at_its_steps():
    # At t=2: ema = (1 + 3)/2 = 2 and bema = 2 + (3 - 1)/4 = 2.5, as worked out for the averages.
    walk = [1.0, 9.0, 3.0, 3.0]
    assert followed(walk, update_ref_model=True, ref_model_update_freq=3) == [1.0, 1.0, 2.5]
    assert followed(walk, update_ref_model=True, ref_model_update_freq=1) == [1.0, 2.5, 2.5]
    late = {"ref_model_update_freq": 2, "ref_model_update_after": 3}
    assert followed(walk, update_ref_model=True, **late) == [1.0, 1.0, 2.5]
    assert followed(walk, ref_model_update_freq=1) == [1.0, 1.0, 1.0]  # off unless asked for


def test_what_it_refuses():
    with pytest.raises(ValueError, match="ref_model_update_freq=0"):
        BEMACallback(ref_model_update_freq=0)
    with pytest.raises(ValueError, match="needs a reference apart from the policy"):
        BEMACallback(update_ref_model=True).on_train_begin(None, None, None)


def model(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=3, n_positions=8, n_embd=4, n_layer=1, n_head=1, eos_token_id=0)
    return GPT2LMHeadModel(config)


def trainer_of(tmp_path, callback, ref_model=None, peft_config=None, **fields):
    """A DPOTrainer of one pair of one-letter answers."""
    plain = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    pairs = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " a"}] * 2)
    return fastrl.experimental.bema_for_ref_model.DPOTrainer(
        model(),
        ref_model,
        args=fastrl.DPOConfig(
            str(tmp_path), use_cpu=True, report_to="none", max_steps=2, learning_rate=0.1,
            logging_steps=1, disable_tqdm=True, gradient_checkpointing=False, **fields,
        ),
        train_dataset=pairs,
        processing_class=PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>"),
        callbacks=[callback],
        peft_config=peft_config,
    )  # fmt: skip


def test_trainers_of_pairs_tell_of_their_reference(tmp_path):
    given = BEMACallback(
        1, ema_power=0.0, bias_power=50.0, update_ref_model=True, ref_model_update_freq=1
    )
    trainer = trainer_of(tmp_path, given)
    later = BEMACallback()
    trainer.add_callback(later)
    assert given._reference is later._reference is trainer.ref_model
    trainer.train()
    # ema_power 0 makes the average the weights, bias_power 50 leaves out the correction.
    for ours, theirs in zip(
        trainer.model.parameters(), trainer.ref_model.parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_reference_of_other_weights_is_refused_before_a_step(tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=1, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    trainer = trainer_of(tmp_path, BEMACallback(update_ref_model=True), model(1), lora)
    with pytest.raises(ValueError, match=r"no weight of the name .* transformer\.wte\.weight"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_reference_whose_answers_are_kept_is_not_moved(tmp_path):
    kept = {"ref_model": model(1), "precompute_ref_log_probs": True}
    with pytest.raises(ValueError, match="update_ref_model changes the reference while precompute"):
        trainer_of(tmp_path, BEMACallback(update_ref_model=True), **kept)
    trainer = trainer_of(tmp_path, BEMACallback(), **kept)
    with pytest.raises(ValueError, match="update_ref_model changes the reference while precompute"):
        trainer.add_callback(BEMACallback(update_ref_model=True))
