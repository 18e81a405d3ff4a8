"""Every customisation that the guides of `PPOTrainer` show, by their own calls on tiny models."""

from __future__ import annotations

import sys
import types
import warnings
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer, BitsAndBytesConfig, GPT2Tokenizer, pipeline

from examples.lion import Lion
from fastrl import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)
from fastrl.models import loading
from tests.customisation.trackers import Recorder, stand_in

pytestmark = pytest.mark.usefixtures("at_hub")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def parts() -> tuple[Any, Any, Any]:
    model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
    model_ref = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
    return model, model_ref, GPT2Tokenizer.from_pretrained("gpt2")


def trainer_of(config: PPOConfig, **given: Any) -> PPOTrainer:
    model, model_ref, tokenizer = parts()
    return PPOTrainer(config, model, model_ref, tokenizer, **given)


# --- optimizers -----------------------------------------------------------------------------------


def test_custom_optimizer_sgd(row):
    model, model_ref, tokenizer = parts()
    ppo_config = {"batch_size": 1, "learning_rate": 1e-5}
    config = PPOConfig(**ppo_config)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    before = weights(model)
    ppo_trainer = PPOTrainer(config, model, model_ref, tokenizer, optimizer=optimizer)
    assert ppo_trainer.optimizer.optimizer is optimizer
    assert (config.mini_batch_size, config.ppo_epochs) == (1, 4)
    moved = []  # lr · gradient of each of the four epochs
    optimizer.register_step_pre_hook(
        lambda *_: moved.append({n: p.grad.clone() for n, p in model.named_parameters()})
    )
    stats = ppo_trainer.step(*row)
    assert len(moved) == 4 and stats["ppo/learning_rate"] == 1e-5
    for name, parameter in model.named_parameters():
        expected = before[name] - 1e-5 * sum(gradients[name] for gradients in moved)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=5e-7)
    assert max((p - before[n]).abs().max() for n, p in model.named_parameters()) > 2e-6


def test_a_tokenizer_without_pad_token_generates_and_steps(row):
    model, model_ref, tokenizer = parts()
    assert tokenizer.pad_token is None
    config = PPOConfig(batch_size=2, mini_batch_size=2)
    with pytest.warns(UserWarning, match="no padding token: padding with '<|endoftext|>'"):
        ppo_trainer = PPOTrainer(config, model, model_ref, tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 256
    queries = [torch.tensor([72, 73, 74]), torch.tensor([80])]
    answers = ppo_trainer.generate(
        queries, return_prompt=False, max_new_tokens=5, min_new_tokens=5, do_sample=True
    )
    assert [len(answer) for answer in answers] == [5, 5]
    # The shorter prompt is answered as it is alone: its padding is seen by nobody.
    greedy = {"return_prompt": False, "max_new_tokens": 4, "do_sample": False}
    together = ppo_trainer.generate(queries, **greedy)[1]
    assert together.tolist() == ppo_trainer.generate(queries[1], **greedy)[0].tolist()
    stats = ppo_trainer.step(queries, answers, [torch.tensor(1.0), torch.tensor(-1.0)])
    assert stats["tokens/responses_len_mean"] == 5


class Adam8bit(torch.optim.Adam):
    """What a script gets of the package where it is installed."""


def test_bitsandbytes_adam8bit(monkeypatch, row):
    package = types.ModuleType("bitsandbytes")
    package.optim = types.SimpleNamespace(Adam8bit=Adam8bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    import bitsandbytes as bnb

    model, model_ref, tokenizer = parts()
    config = PPOConfig(batch_size=1, learning_rate=1e-5)
    optimizer = bnb.optim.Adam8bit(model.parameters(), lr=config.learning_rate)
    before = weights(model)
    ppo_trainer = PPOTrainer(config, model, model_ref, tokenizer, optimizer=optimizer)
    ppo_trainer.step(*row)
    assert isinstance(ppo_trainer.optimizer.optimizer, Adam8bit)
    largest = max((p - before[n]).abs().max() for n, p in model.named_parameters())
    assert 1e-5 < largest <= 4.1e-5  # Adam moves a weight by no more than lr in each of 4 epochs


def test_lion(row):
    model, model_ref, tokenizer = parts()
    config = PPOConfig(batch_size=1, learning_rate=1e-5, ppo_epochs=1)
    optimizer = Lion(filter(lambda p: p.requires_grad, model.parameters()), lr=config.learning_rate)
    before = weights(model)
    ppo_trainer = PPOTrainer(config, model, model_ref, tokenizer, optimizer=optimizer)
    ppo_trainer.step(*row)
    moved = torch.cat([(p - before[n]).flatten() for n, p in model.named_parameters()]).detach()
    # A sign's step: lr, or nothing where there is no gradient.
    steps = torch.tensor([-1e-5, 0.0, 1e-5])
    assert (moved[:, None] - steps).abs().min(1).values.max() < 1e-7
    assert (moved.abs() > 0.9e-5).float().mean() > 0.5


def test_lion_by_hand():
    """Two steps of two weights with lr 0.1, β = (0.9, 0.5) and weight decay 0.5."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.5), weight_decay=0.5)
    weight.grad = torch.tensor([4.0, -1.0])
    optimizer.step()
    # c = 0.1 g, signs (1, -1): w - 0.1 (sign + 0.5 w); m = 0.5 g
    torch.testing.assert_close(weight.detach(), torch.tensor([0.85, -1.8]))
    weight.grad = torch.tensor([-10.0, 8.0])
    assert optimizer.step(lambda: "loss") == "loss"
    # m = (2, -0.5): c = 0.9 m + 0.1 g = (0.8, 0.35), signs (1, 1)
    torch.testing.assert_close(weight.detach(), torch.tensor([0.7075, -1.81]))
    torch.testing.assert_close(optimizer.state[weight]["momentum"], torch.tensor([-4.0, 3.75]))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"weight_decay": -0.1}])
def test_lion_refuses_what_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Lion([torch.nn.Parameter(torch.zeros(1))], **wrong)


def test_lr_scheduler_exponential_lr(row):
    model, model_ref, tokenizer = parts()
    config = PPOConfig(batch_size=1, learning_rate=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    ppo_trainer = PPOTrainer(
        config, model, model_ref, tokenizer, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    seen = [ppo_trainer.step(*row)["ppo/learning_rate"] for _ in range(3)]
    assert seen == pytest.approx([1e-5, 0.9e-5, 0.81e-5], rel=1e-6)


# --- references -----------------------------------------------------------------------------------


def test_shared_layers_bloom(row):
    model = AutoModelForCausalLMWithValueHead.from_pretrained("bigscience/bloom-560m")
    model_ref = create_reference_model(model, num_shared_layers=6)
    tokenizer = AutoTokenizer.from_pretrained("bigscience/bloom-560m")
    config = PPOConfig(batch_size=1, learning_rate=1e-2)
    ppo_trainer = PPOTrainer(config, model, model_ref, tokenizer)
    theirs = dict(model_ref.named_parameters())
    shared = {n for n, p in model.named_parameters() if p.data_ptr() == theirs[n].data_ptr()}
    layers = [f"transformer.h.{i}." for i in range(8)]
    below = ("transformer.word_embeddings", *layers[:6])
    assert shared == {n for n in theirs if n.removeprefix("pretrained_model.").startswith(below)}
    before, reference = weights(model), weights(model_ref)
    ppo_trainer.step(*row)
    for name, parameter in model.named_parameters():
        frozen = name in shared
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name
        assert torch.equal(parameter, before[name]) or not frozen, name
    assert any((p != before[n]).any() for n, p in model.named_parameters())
    assert all(torch.equal(p, reference[n]) for n, p in model_ref.named_parameters())


def test_8bit_reference_model(monkeypatch):
    """What `load_in_8bit=True` becomes for transformers 5, and the trainer with such a model."""
    package = types.ModuleType("bitsandbytes")
    package.__spec__ = loading.importlib.util.spec_from_loader("bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    load, asked = transformers.AutoModelForCausalLM.from_pretrained, {}

    def quantized(name: str, **keywords: Any) -> Any:
        asked.update(keywords)
        model = load(name)
        model.is_loaded_in_8bit = True
        return model

    model = AutoModelForCausalLMWithValueHead.from_pretrained("bigscience/bloom-560m")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", quantized)
    model_ref = AutoModelForCausalLMWithValueHead.from_pretrained(
        "bigscience/bloom-560m", device_map="auto", load_in_8bit=True
    )
    assert asked.keys() == {"device_map", "quantization_config"}
    assert asked["device_map"] == "auto"
    assert isinstance(asked["quantization_config"], BitsAndBytesConfig)
    assert asked["quantization_config"].load_in_8bit
    assert model_ref.is_loaded_in_8bit
    tokenizer = AutoTokenizer.from_pretrained("bigscience/bloom-560m")
    assert PPOTrainer(PPOConfig(batch_size=1), model, model_ref, tokenizer).ref_model is model_ref


def test_8bit_without_bitsandbytes_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    find = loading.importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util, "find_spec", lambda n: None if n == "bitsandbytes" else find(n)
    )
    with pytest.raises(ImportError, match=r"load_in_8bit=True needs .*pip install bitsandbytes"):
        AutoModelForCausalLMWithValueHead.from_pretrained("gpt2", load_in_8bit=True)


# --- settings -------------------------------------------------------------------------------------


def test_optimize_cuda_cache(monkeypatch, row):
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: False)
        kept = trainer_of(PPOConfig(batch_size=1))
        emptying = trainer_of(PPOConfig(batch_size=1, optimize_cuda_cache=True))
    kept.step(*row)
    assert not emptied
    emptying.step(*row)
    assert emptied


def test_score_scaling(row):
    """The guide's three settings, whose numbers `test_ppo_parity` holds against TRL 0.7.11."""
    ppo_config = {"use_score_scaling": True, "use_score_norm": True, "score_clip": 0.5}
    config = PPOConfig(batch_size=4, mini_batch_size=4, **ppo_config)
    ppo_trainer = trainer_of(config)
    queries, responses, _ = (part * 4 for part in row)
    scores = [torch.tensor(x) for x in (1.0, 2.0, 3.0, 6.0)]
    stats = ppo_trainer.step(queries, responses, scores)
    # mean 3, deviation √(14/3) = 2.1602: -0.926, -0.463, 0, 1.389, cut at ±0.5
    assert stats["ppo/mean_scores"] == pytest.approx((-0.5 - 0.46291 + 0 + 0.5) / 4, abs=1e-4)
    assert ppo_trainer.running.std.item() == pytest.approx((14 / 3) ** 0.5)


class DeepSpeedPlugin:
    """The two methods that the guide's lines call, and the setting in force."""

    def __init__(self) -> None:
        self.zero3_init = True

    def is_zero3_init_enabled(self) -> bool:
        return self.zero3_init

    @contextmanager
    def zero3_init_context_manager(self, enable: bool) -> Any:
        before, self.zero3_init = self.zero3_init, enable
        yield
        self.zero3_init = before


@pytest.mark.parametrize("plugin", [None, DeepSpeedPlugin()], ids=["without", "zero3"])
def test_zero3_init_context_manager(monkeypatch, plugin):
    """The classifier is loaded whole, although models are made in shares."""
    ppo_trainer = trainer_of(PPOConfig(batch_size=1))
    if plugin is not None:
        monkeypatch.setattr(
            type(ppo_trainer.accelerator.state), "deepspeed_plugin", property(lambda _: plugin)
        )
    kind, shares = transformers.AutoModelForSequenceClassification, []
    load = kind.from_pretrained

    def watched(*args: Any, **keywords: Any) -> Any:
        shares.append(plugin is not None and plugin.zero3_init)
        return load(*args, **keywords)

    monkeypatch.setattr(kind, "from_pretrained", watched)
    device = ppo_trainer.accelerator.device
    ds_plugin = ppo_trainer.accelerator.state.deepspeed_plugin
    if ds_plugin is not None and ds_plugin.is_zero3_init_enabled():
        with ds_plugin.zero3_init_context_manager(enable=False):
            sentiment_pipe = pipeline(
                "sentiment-analysis", model="lvwerra/distilbert-imdb", device=device
            )
    else:
        sentiment_pipe = pipeline(
            "sentiment-analysis", model="lvwerra/distilbert-imdb", device=device
        )
    assert shares == [False] and (plugin is None or plugin.zero3_init)
    (found,) = sentiment_pipe(["good"], top_k=None)
    assert {each["label"] for each in found} == {"LABEL_0", "LABEL_1"}
    assert sum(each["score"] for each in found) == pytest.approx(1)


# --- placing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["cpu", "auto", "process"])
def test_device_map(monkeypatch, form, row):
    load, asked = transformers.AutoModelForCausalLM.from_pretrained, {}

    def watched(name: str, **keywords: Any) -> Any:
        asked.update(keywords)
        if keywords["device_map"] == {"": 0}:  # there is no such device here
            keywords["device_map"] = {"": "cpu"}
        return load(name, **keywords)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", watched)
    current = Accelerator().process_index
    device_map = {"cpu": {"": "cpu"}, "auto": "auto", "process": {"": current}}[form]
    model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2", device_map=device_map)
    assert asked["device_map"] == device_map
    assert not model.is_sequential_parallel  # all of it is on the one device there is
    ppo_trainer = PPOTrainer(
        PPOConfig(batch_size=1), model, None, GPT2Tokenizer.from_pretrained("gpt2")
    )
    assert ppo_trainer.step(*row)["objective/kl"] == pytest.approx(0, abs=1e-4)


def test_device_map_over_several_devices_is_naive_pipeline_parallelism():
    model = transformers.AutoModelForCausalLM.from_pretrained("gpt2")
    model.hf_device_map = {"transformer": "meta", "lm_head": "cpu:0"}
    wrapped = AutoModelForCausalLMWithValueHead.from_pretrained(model)
    assert wrapped.is_sequential_parallel
    assert wrapped.v_head.summary.weight.device == torch.device("cpu")


def test_mixed_precision_of_the_launcher(row):
    """What `accelerate launch --mixed_precision bf16` sets; weights and statistics stay fp32."""
    seen = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)  # of the value heads
        try:
            kwargs = {"mixed_precision": precision}
            ppo_trainer = trainer_of(PPOConfig(batch_size=1, accelerator_kwargs=kwargs))
            assert ppo_trainer.accelerator.mixed_precision == precision
            seen[precision] = ppo_trainer.step(*row)
            assert {p.dtype for p in ppo_trainer.model.parameters()} == {torch.float32}
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    for key in ("ppo/loss/value", "ppo/returns/mean", "ppo/policy/entropy", "objective/entropy"):
        assert seen["bf16"][key] == pytest.approx(seen["no"][key], rel=0.02, abs=1e-3), key
    assert seen["bf16"]["objective/entropy"] != seen["no"]["objective/entropy"]
    assert seen["bf16"]["objective/kl"] == pytest.approx(0, abs=1e-3)


# --- trackers -------------------------------------------------------------------------------------


def logged_by(ppo_trainer: PPOTrainer, row: Any) -> Any:
    stats = ppo_trainer.step(*row)
    batch = {"query": ["a"], "response": ["b"]}
    ppo_trainer.log_stats(stats, batch, [torch.tensor(1.0)])
    (tracker,) = ppo_trainer.accelerator.trackers
    return tracker


def test_log_with_a_custom_tracker(row):
    recorder = Recorder()
    ppo_trainer = trainer_of(PPOConfig(batch_size=1, log_with=recorder))
    assert logged_by(ppo_trainer, row) is recorder
    (values, _), *rest = recorder.logged
    assert not rest and values["env/reward_mean"] == 1.0


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_log_with_by_name(monkeypatch, tmp_path, name, row):
    """The two trackers that `PPOConfig` names, each by a stand-in for its package."""
    kind = stand_in(monkeypatch, name)
    config = PPOConfig(
        batch_size=1,
        log_with=name,
        tracker_project_name="mine",
        tracker_kwargs={name: {"entity": "me"}},
        project_kwargs={"logging_dir": str(tmp_path)},
    )
    tracker = logged_by(trainer_of(config), row)
    assert type(tracker) is kind and tracker.settings.get("entity") == "me"
    ((values, step),) = tracker.logged
    assert values["env/reward_mean"] == 1.0
    if name == "wandb":
        assert tracker.config["trl_ppo_trainer_config"]["batch_size"] == 1
        assert values["game_log"] == (["query", "response", "reward"], [["a", "b", 1.0]])
    else:
        assert tracker.config["batch_size"] == 1 and step == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_log_with_an_absent_package_says_which(name):
    if loading.importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImportError, match=name):
            trainer_of(PPOConfig(batch_size=1, log_with=name))
