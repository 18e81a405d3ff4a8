"""PPO's names, which mean other things in other releases of TRL, and the pin that decides."""

from __future__ import annotations

import copy
import pickle

import pytest
from transformers import HfArgumentParser

import fastrl
from fastrl.compat.transformers_patch import patch_transformers, restore_transformers
from tests.compat.colliding import QUIET, no_pin, quietly  # noqa: F401

# --- the pin --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["0.9", "1.16", "", 1, "latest"])
def test_set_api_refuses_what_is_no_generation(wrong):
    with pytest.raises(ValueError, match=r"set_api: .* give '0\.7', '0\.11', '1'"):
        fastrl.set_api(wrong)


def test_the_environment_pins_and_the_program_wins_over_it(monkeypatch):
    monkeypatch.setenv("FASTRL_API", "1")
    assert type(fastrl.PPOConfig(**QUIET)) is fastrl.PPOTrainConfig
    assert type(fastrl.PPOConfig(seed=1)) is fastrl.PPOTrainConfig
    fastrl.set_api("0.7")
    assert type(fastrl.PPOConfig(seed=1)) is fastrl.PPOConfig
    fastrl.set_api(None)
    assert type(fastrl.PPOConfig(seed=1)) is fastrl.PPOTrainConfig
    monkeypatch.setenv("FASTRL_API", "0.8")
    with pytest.raises(ValueError, match=r"FASTRL_API: '0\.8' is no generation"):
        fastrl.PPOConfig(seed=1)


# --- PPOTrainer, PPOConfig ------------------------------------------------------------------------


def test_ppo_config_by_its_fields():
    assert type(fastrl.PPOConfig(batch_size=4, init_kl_coef=0.1)) is fastrl.PPOConfig
    assert type(fastrl.PPOConfig("name")) is fastrl.PPOConfig  # by position, as only the one has
    assert type(fastrl.PPOConfig(num_ppo_epochs=2, **QUIET)) is fastrl.PPOTrainConfig
    assert type(fastrl.PPOConfig(output_dir="out", **QUIET)) is fastrl.PPOTrainConfig
    with pytest.raises(TypeError, match=r"step\(\) form \(init_kl_coef\).*train\(\) form"):
        fastrl.PPOConfig(init_kl_coef=0.1, num_ppo_epochs=2)
    shared = {"learning_rate": 1e-5, "gamma": 0.9, "cliprange": 0.1}
    for pin, form in (("0.7", fastrl.PPOConfig), ("0.11", fastrl.PPOConfig), (None, None)):
        fastrl.set_api(pin)
        assert type(fastrl.PPOConfig(**shared)) is (form or fastrl.PPOConfig)
    fastrl.set_api("1")
    made = fastrl.PPOConfig(**shared)
    assert type(made) is fastrl.PPOTrainConfig and made.gamma == 0.9
    classic = fastrl.PPOConfig(init_kl_coef=0.1)  # the field shows it, whatever is pinned
    assert type(classic) is fastrl.PPOConfig
    for kept in (copy.deepcopy(classic), pickle.loads(pickle.dumps(classic))):
        assert type(kept) is fastrl.PPOConfig and kept == classic


def test_ppo_config_of_0_11_keeps_the_step_form_with_its_two_fields_more():
    with pytest.warns(FutureWarning, match="gradient_checkpointing= has no effect: every pass"):
        config = fastrl.PPOConfig(gradient_checkpointing=True, batch_size=8)
    assert type(config) is fastrl.PPOConfig
    assert type(quietly(fastrl.PPOConfig, dataset_num_proc=2)) is fastrl.PPOConfig


def test_ppo_config_of_a_parser_by_flags_and_keys(tmp_path):
    parser = fastrl.TrlParser((fastrl.ScriptArguments, fastrl.PPOConfig, fastrl.ModelConfig))

    def form(*words):
        with_config = parser.parse_args_and_config(list(words))
        plain = parser.parse_args_into_dataclasses(list(words)) if "--config" not in words else None
        assert plain is None or [type(each) for each in plain] == [type(e) for e in with_config]
        return type(with_config[1])

    train = ("--output_dir", str(tmp_path), "--use_cpu", "True")
    assert form("--init_kl_coef", "0.3", "--batch_size", "4") is fastrl.PPOConfig
    assert form(*train, "--num_ppo_epochs", "2") is fastrl.PPOTrainConfig
    assert form(*train[:2], "--no_cuda", "True") is fastrl.PPOTrainConfig  # an old flag of it
    assert form("--learning_rate", "1e-6") is fastrl.PPOConfig
    with pytest.raises(ValueError, match="give those of one"):
        form("--init_kl_coef", "0.3", "--num_ppo_epochs", "2")
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {tmp_path}\nnum_ppo_epochs: 3\nuse_cpu: true\n")
    _, config, _ = parser.parse_args_and_config(["--config", str(file)])
    assert type(config) is fastrl.PPOTrainConfig and config.num_ppo_epochs == 3
    fastrl.set_api("1")
    assert form("--learning_rate", "1e-6") is fastrl.PPOTrainConfig
    assert form("--init_kl_coef", "0.3") is fastrl.PPOConfig
    config, *_ = fastrl.TrlParser(fastrl.PPOv2Config).parse_args_into_dataclasses(list(train))
    assert type(config) is fastrl.PPOTrainConfig


class OwnParser(fastrl.TrlParser):
    """Asks for no dataclasses and knows something."""

    def __init__(self):
        super().__init__((fastrl.PPOConfig, fastrl.ModelConfig), prog="own")
        self.known = 3
        self.add_argument("--mine", type=int, default=self.known)

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        return found, [word for word in rest if word != "--dropped"]


class OwnHfParser(HfArgumentParser):
    """The same of transformers'."""

    def __init__(self):
        super().__init__((fastrl.PPOConfig, fastrl.ModelConfig), prog="own")
        self.known = 3
        self.add_argument("--mine", type=int, default=self.known)


@pytest.mark.parametrize("kind", [OwnParser, OwnHfParser])
def test_a_parser_of_ones_own_stays_so_in_the_other_form(tmp_path, kind):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    patch_transformers()
    try:
        parser = kind()
        config, model, rest = parser.parse_args_into_dataclasses(words)
        assert type(config) is fastrl.PPOTrainConfig and rest.mine == 3
        assert config.learning_rate == 3e-6
        parser.set_defaults(learning_rate=7e-3, lora_r=5)
        config, model, rest = parser.parse_args_into_dataclasses([*words, "--mine", "4"])
        assert (config.learning_rate, model.lora_r, rest.mine) == (7e-3, 5, 4)
        classic, *_ = parser.parse_args_into_dataclasses(["--init_kl_coef", "0.3"])
        assert type(classic) is fastrl.PPOConfig and classic.learning_rate == 7e-3
    finally:
        restore_transformers()


def test_trl_parser_takes_its_defaults_and_its_class_to_the_other_form(tmp_path):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "True"]
    parser = OwnParser()
    parser.set_defaults_with_config(gamma=0.5, lora_alpha=6)
    config, model, rest = parser.parse_args_and_config([*words, "--mine", "8", "--dropped"])
    assert type(config) is fastrl.PPOTrainConfig and rest.mine == 8
    assert (config.gamma, model.lora_alpha) == (0.5, 6)
    parser = fastrl.TrlParser(fastrl.PPOConfig)
    parser.set_defaults(output_dir=str(tmp_path), use_cpu=True)
    (config,) = parser.parse_args_and_config([])
    assert type(config) is fastrl.PPOTrainConfig and config.output_dir == str(tmp_path)


def test_ppo_trainer_by_its_config_and_keywords(monkeypatch):
    made = []
    monkeypatch.setattr(
        "fastrl.algos.ppo_forms.PPOv2Trainer", lambda *a, **k: made.append((a, k)) or "by train"
    )
    train = fastrl.PPOTrainConfig(**QUIET)
    assert fastrl.PPOTrainer(train, "tokenizer", "policy") == "by train"
    assert fastrl.PPOTrainer(args=train, reward_model="r") == "by train"
    assert fastrl.PPOTrainer(config=train, policy="p", tokenizer="t") == "by train"
    assert made[0] == ((train, "tokenizer", "policy"), {})
    with pytest.raises(ValueError, match="model must be"):  # the step() form's own check
        fastrl.PPOTrainer(fastrl.PPOConfig(batch_size=1), "model", None, "tokenizer")
    with pytest.raises(TypeError, match=r"of its step\(\) form .* and of its train\(\) form"):
        fastrl.PPOTrainer(fastrl.PPOConfig(batch_size=1), reward_model="r")
    assert fastrl.experimental.ppo.PPOTrainer is fastrl.PPOv2Trainer  # the path shows it
