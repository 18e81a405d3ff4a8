"""Functions, parsers and small classes that are others in another release of TRL."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainingArguments

import fastrl
from tests.compat.colliding import CHAT, PAIRS, model, no_pin, word_tokenizer  # noqa: F401


def test_apply_chat_template_tokenizer_by_either_name(tokenizer):
    tokenizer.chat_template = CHAT
    row = {"messages": [{"role": "user", "content": "the cat"}]}
    wanted = {"text": "user the cat "}
    for function in (fastrl.apply_chat_template, fastrl.maybe_apply_chat_template):
        assert function(row, tokenizer) == function(row, processing_class=tokenizer) == wanted
        assert function(row, tokenizer=tokenizer) == wanted
        with pytest.raises(TypeError, match="tokenizer"):
            function(row, tokenizer, tokenizer=tokenizer)


def test_unpair_preference_dataset_num_proc_of_0_11(tokenizer):
    wanted = [True, True, False, False]
    for made in (
        fastrl.unpair_preference_dataset(PAIRS, num_proc=None),
        fastrl.maybe_unpair_preference_dataset(PAIRS, num_proc=None, desc="Pairs"),
        fastrl.unpair_preference_dataset(PAIRS),
    ):
        assert made["label"][:] == wanted


def test_create_reference_model_is_one_function_at_all_paths():
    paths = (fastrl.models, fastrl.models.utils, fastrl.models.modeling_base)
    for module in (*paths, fastrl.experimental.utils, fastrl):
        reference = module.create_reference_model(model())
        assert module.create_reference_model is fastrl.create_reference_model
    assert not any(p.requires_grad for p in reference.parameters())


def test_unwrap_model_for_generation_third_positional():
    unwrap = fastrl.models.unwrap_model_for_generation
    accelerator = SimpleNamespace(unwrap_model=lambda m: m)
    plain = model()
    plain.gradient_checkpointing_enable()
    for third in (True, False):  # gather_deepspeed3_params, which this model has no use for
        with unwrap(plain, accelerator, third, {"max_new_tokens": 3}) as got:
            assert got is plain and not got.is_gradient_checkpointing
            assert got.generation_config.max_new_tokens == 3
        assert plain.is_gradient_checkpointing
        assert plain.generation_config.max_new_tokens is None
    wrapper = fastrl.AutoModelForCausalLMWithValueHead(model())
    bare = pytest.raises(ValueError, match="is_peft_model=True, but GPT2LMHeadModel has no adapter")
    with bare, unwrap(wrapper, accelerator, True):  # as in the releases that had the wrappers
        pass
    with unwrap(wrapper, accelerator, gather_deepspeed3_params=True) as got:
        assert got is wrapper
    fastrl.set_api("0.11")
    with pytest.raises(ValueError, match="is_peft_model=True"), unwrap(plain, accelerator, True):
        pass


def test_unwrap_model_for_generation_switches_adapters_off():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        model(), peft.LoraConfig(target_modules=["c_attn"], init_lora_weights=False)
    )
    wrapper = fastrl.AutoModelForCausalLMWithValueHead(adapted).eval()
    accelerator = SimpleNamespace(unwrap_model=lambda m: m)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        policy = wrapper(ids)[0]
        with adapted.disable_adapter():
            base = wrapper(ids)[0]
        with fastrl.models.unwrap_model_for_generation(wrapper, accelerator, True) as reference:
            assert torch.equal(reference(ids)[0], base)
        with fastrl.models.unwrap_model_for_generation(wrapper, accelerator) as same:
            assert torch.equal(same(ids)[0], policy)
    assert not torch.allclose(policy, base)


def test_exact_div_of_three_and_of_five_arguments():
    from fastrl.trainer.utils import exact_div

    assert exact_div(12, 4) == exact_div(12, 4, "why") == exact_div(12, 4, "a", "b", "why") == 3
    with pytest.raises(ValueError, match="why"):
        exact_div(12, 5, "why")
    with pytest.raises(ValueError, match=r"why.*rows=12 .*parts=5"):
        exact_div(12, 5, "rows", "parts", "why")


def test_entropy_from_logits_of_both_modules():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -torch.inf, 0.0, -torch.inf]])
    wanted = torch.log(torch.tensor([4.0, 2.0]))
    assert torch.allclose(fastrl.trainer.utils.entropy_from_logits(logits, chunk_size=1), wanted)
    assert torch.allclose(fastrl.core.entropy_from_logits(logits[:1]), wanted[:1])


def test_running_moments_are_tensors_that_a_file_can_hold(tmp_path):
    accelerator = Accelerator(cpu=True)
    running = fastrl.trainer.utils.RunningMoments(accelerator)
    running.update(torch.tensor([1.0, 2.0, 6.0]))
    assert running.std.to(torch.float16).item() == pytest.approx(7**0.5, rel=1e-3)  # as 0.7's PPO
    running.save_to_json(tmp_path / "running.json")  # as 0.11's
    kept = fastrl.RunningMoments.load_from_json(accelerator, tmp_path / "running.json")
    assert float(kept.mean) == 3.0 and float(kept.std) == pytest.approx(7**0.5)
    assert json.loads((tmp_path / "running.json").read_text())["count"] == pytest.approx(3)


def test_copies_take_along_what_is_no_field_of_the_class():
    config = fastrl.ModelConfig("x", trust_remote_code=True)
    script = fastrl.ScriptArguments("rows", gradient_checkpointing_use_reentrant=True)
    model, rows = dataclasses.replace(config, lora_r=8), dataclasses.replace(script)
    assert (model.trust_remote_code, model.lora_r, model.model_name_or_path) == (True, 8, "x")
    assert rows.gradient_checkpointing_use_reentrant is True and rows == script
    assert dataclasses.replace(config, trust_remote_code=False).trust_remote_code is False
    assert dataclasses.asdict(config)["trust_remote_code"] is True
    assert dataclasses.asdict(script)["gradient_checkpointing_use_reentrant"] is True
    assert pickle.loads(pickle.dumps(model)).trust_remote_code is True

    @dataclasses.dataclass
    class Own(fastrl.ModelConfig):
        more: int = 1

        def __post_init__(self):
            super().__post_init__()

    assert [f.name for f in dataclasses.fields(Own)][-1] == "more"
    assert dataclasses.replace(Own("x", more=2), lora_r=8).more == 2


def test_trl_parser_of_0_11(tmp_path):
    types = (fastrl.DPOScriptArguments, TrainingArguments)
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {tmp_path}\nbeyond: 3\ndataset_name: rows\n")
    words = ["--config", str(file), "--use_cpu", "True"]
    script, training = fastrl.TrlParser(types, ignore_extra_args=True).parse_args_and_config(words)
    assert script.dataset_name == "rows" and script.config is None
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}
    words += ["--gradient_checkpointing_use_reentrant", "True"]
    _, training = fastrl.TrlParser(parsers=types, ignore_extra_args=True).parse_args_and_config(
        words
    )
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": True}
    with pytest.raises(ValueError, match="unknown --beyond"):
        fastrl.TrlParser(types).parse_args_and_config(words)
    with pytest.raises(TypeError, match="parsers= is dataclass_types="):
        fastrl.TrlParser(types, parsers=types)
    modern = fastrl.TrlParser((fastrl.ScriptArguments, TrainingArguments))
    out = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    script, training = modern.parse_args_and_config(out)
    assert script.gradient_checkpointing_use_reentrant is False
    assert training.gradient_checkpointing_kwargs is None  # nothing was asked for
    flag = "--gradient_checkpointing_use_reentrant"
    script, training = modern.parse_args_and_config([*out, flag])
    assert script.gradient_checkpointing_use_reentrant is True
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": True}


def test_reward_script_arguments_name_the_dataset_of_0_11():
    from fastrl.commands.cli_utils import RewardScriptArguments

    assert RewardScriptArguments().dataset_name == "trl-lib/ultrafeedback_binarized"


def test_create_model_card_by_the_class():
    step = list(inspect.signature(fastrl.PPOTrainer.create_model_card).parameters)
    train = list(inspect.signature(fastrl.SFTTrainer.create_model_card).parameters)
    assert step == ["self", "path", "model_name"]
    assert train == ["self", "model_name", "dataset_name", "tags"]


def test_collators_are_those_of_their_path():
    from transformers import DataCollatorForLanguageModeling

    own = fastrl.trainer.sft_trainer.DataCollatorForLanguageModeling
    assert own is not DataCollatorForLanguageModeling
    assert own(pad_token_id=0)([{"input_ids": [3], "labels": [3]}])["labels"].tolist() == [[3]]


def test_predicates_are_at_the_top_level_and_in_import_utils():
    for name in ("peft", "wandb", "diffusers", "deepspeed"):
        predicate = getattr(fastrl, f"is_{name}_available")
        assert predicate is getattr(fastrl.import_utils, f"is_{name}_available")
        assert predicate() is (importlib.util.find_spec(name) is not None)
