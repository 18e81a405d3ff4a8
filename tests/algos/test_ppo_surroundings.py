"""What stands around PPO's step: trackers, the hub, datasets, PEFT, encoder–decoders, DeepSpeed."""

import sys
import types

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker

from fastrl import PPOTrainer
from fastrl.train import device_cache, hub
from fastrl.train.classic_parts import clip_in_engine


class Recorder(GeneralTracker):
    """Keeps what accelerate hands to a tracker."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.config, self.logged = None, []

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.logged.append((values, step))


def test_log_stats_reaches_any_tracker(make_trainer, rows):
    recorder = Recorder()
    trainer = make_trainer(log_with=recorder)
    assert recorder.config["trl_ppo_trainer_config"]["batch_size"] == 8
    stats = trainer.step(*rows())
    rewards = [torch.tensor(float(i)) for i in range(8)]
    trainer.log_stats(stats, {"query": ["a"] * 8, "response": ["b"] * 8}, rewards)
    ((values, step),) = recorder.logged
    assert step is None
    assert values["env/reward_mean"] == 3.5
    assert values["env/reward_std"] == pytest.approx(np.std(np.arange(8), ddof=1))
    assert values["env/reward_dist"].tolist() == list(range(8))
    assert values["objective/kl"] == stats["objective/kl"]


def test_a_missing_game_log_is_told(make_trainer):
    trainer = make_trainer()
    with pytest.warns(UserWarning, match="no game log"):
        trainer.log_stats({}, {"text": ["a"]}, torch.tensor([1.0, 2.0]))


def test_wandb_columns_are_checked(make_trainer):
    trainer = make_trainer()
    trainer.config.log_with = "wandb"
    with pytest.raises(ValueError, match=r"columns_to_log: \['response'\] not in"):
        trainer.log_stats({}, {"query": ["a"]}, torch.tensor([1.0]))


def test_model_card_and_push(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer()
    pushed = {}

    def upload(**kwargs):
        pushed.update(kwargs, files=sorted(p.name for p in kwargs["folder_path"].iterdir()))
        return "https://hub/commit"

    monkeypatch.setattr(hub, "whoami", lambda: {"name": "ada"})
    created = types.SimpleNamespace(repo_id="ada/tuned")
    monkeypatch.setattr(hub, "create_repo", lambda *a, **k: created)
    monkeypatch.setattr(
        hub, "upload_folder", lambda **k: upload(**{**k, "folder_path": tmp_path / "x"})
    )
    (tmp_path / "x").mkdir()
    assert trainer.push_to_hub("tuned", commit_message="first") == "https://hub/commit"
    assert (pushed["repo_id"], pushed["commit_message"]) == ("ada/tuned", "first")
    trainer.create_model_card(str(tmp_path / "card"), "My model")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "# My model" in text
    assert "card" in text


def test_arguments_of_a_push_are_checked_before_anything_is_written(make_trainer, tmp_path):
    with pytest.raises(TypeError, match="no argument 'privat'; did you mean 'private'"):
        make_trainer(push_to_hub_if_best_kwargs={"repo_id": "a/b", "privat": True})
    with pytest.raises(TypeError, match="no argument 'push_to_hubb'"):
        make_trainer().save_pretrained(tmp_path / "x", push_to_hubb=True)
    assert not (tmp_path / "x").exists()


def test_push_if_best_pushes_only_improvements(make_trainer, rows):
    with pytest.raises(ValueError, match="repo_id"):
        make_trainer(push_to_hub_if_best_kwargs={"private": True})
    trainer = make_trainer(push_to_hub_if_best_kwargs={"repo_id": "a/b"}, ppo_epochs=1)
    pushed = []
    trainer.push_to_hub = lambda **kwargs: pushed.append(kwargs)
    queries, responses, _ = rows()
    for score in (1.0, 0.5, 2.0):
        trainer.step(queries, responses, [torch.tensor(score)] * 8)
    assert pushed == [{"repo_id": "a/b"}] * 2


def test_optimize_cuda_cache_empties_the_cache(make_trainer, rows, monkeypatch):
    calls = []
    monkeypatch.setattr(device_cache, "empty_device_cache", lambda: calls.append(1))
    make_trainer().step(*rows())
    assert not calls
    with pytest.warns(FutureWarning):
        make_trainer(optimize_cuda_cache=True).step(*rows())
    assert calls


def test_unused_columns_go_and_logged_ones_stay(make_trainer):
    datasets = pytest.importorskip("datasets")
    columns = {"input_ids": [[1, 2]] * 8, "query": ["a"] * 8, "junk": [0] * 8, "label": [1] * 8}
    data = datasets.Dataset.from_dict(columns)
    trainer = make_trainer(dataset=data, data_collator=lambda items: items)
    (batch,) = list(trainer.dataloader)
    assert set(batch[0]) == {"input_ids", "query", "label"}
    kept = make_trainer(
        dataset=data, data_collator=lambda items: items, remove_unused_columns=False
    )
    assert "junk" in next(iter(kept.dataloader))[0]


def test_a_subclass_decides_which_columns_stay(make_trainer):
    datasets = pytest.importorskip("datasets")

    class Own(PPOTrainer):
        def _set_signature_columns_if_needed(self):
            super()._set_signature_columns_if_needed()
            self._signature_columns += ["answer"]

    rows = datasets.Dataset.from_dict({name: ["a"] * 8 for name in ("query", "answer", "noise")})
    assert set(next(iter(make_trainer(cls=Own, dataset=rows).dataloader))) == {"query", "answer"}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield 1


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"train": []}, "dataset is a dict: give .* one split"),
        (Stream(), "dataset is a Stream, a stream without a length"),
    ],
)
def test_what_no_dataloader_can_shuffle(make_trainer, dataset, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(dataset=dataset)


def test_a_dataset_smaller_than_a_batch_is_refused(make_trainer):
    class Small(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return i

    with pytest.raises(ValueError, match="dataset has 3 rows, fewer than batch_size=8"):
        make_trainer(dataset=Small())


def lora(make_model):
    peft = pytest.importorskip("peft")
    from transformers import GPT2LMHeadModel

    from fastrl import AutoModelForCausalLMWithValueHead

    config = peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", lora_alpha=32)
    base = make_model().pretrained_model
    assert isinstance(base, GPT2LMHeadModel)
    return AutoModelForCausalLMWithValueHead.from_pretrained(base, peft_config=config)


def test_peft_without_a_reference_uses_the_model_without_its_adapter(
    make_trainer, make_model, rows
):
    trainer = make_trainer(model=lora(make_model), ref_model=None, learning_rate=1e-2)
    assert trainer.ref_model is None
    assert trainer.config.is_peft_model
    base = {k: v.clone() for k, v in trainer.model.named_parameters() if "lora" not in k}
    assert trainer.step(*rows())["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(trainer.step(*rows())["objective/kl"]) > 1e-3
    changed = {k for k, v in trainer.model.named_parameters() if k in base and (v != base[k]).any()}
    assert changed == {"v_head.summary.weight", "v_head.summary.bias"}


def test_peft_with_a_reference_uses_it(make_trainer, make_model, rows):
    trainer = make_trainer(model=lora(make_model), ref_model=make_model(seed=5))
    assert abs(trainer.step(*rows())["objective/kl"]) > 1e-2


def test_encoder_decoder_steps_and_generates(make_trainer, tokenizer, rows):
    from transformers import T5Config, T5ForConditionalGeneration

    from fastrl import AutoModelForSeq2SeqLMWithValueHead

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=46, pad_token_id=46, eos_token_id=47,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(T5ForConditionalGeneration(config))
    trainer = make_trainer(model=model, ref_model=None)
    queries, responses, scores = rows()
    stats = trainer.step(queries, responses, scores)
    assert stats["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(trainer.step(queries, responses, scores)["objective/kl"]) > 1e-5
    generated = trainer.generate(queries, batch_size=4, max_new_tokens=5, return_prompt=False)
    assert len(generated) == 8
    assert all(g[0] == 46 for g in generated)


@pytest.mark.parametrize(("stage", "reference_stage"), [(2, 0), (3, 3)])
def test_deepspeed_reference_engine(make_trainer, monkeypatch, stage, reference_stage):
    seen = {}

    def initialize(model, config):
        seen.update(config)
        return model, None, None, None

    fake = types.SimpleNamespace(initialize=initialize)
    monkeypatch.setitem(sys.modules, "deepspeed", fake)
    trainer = make_trainer()
    plugin = types.SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": stage}})
    state = types.SimpleNamespace(deepspeed_plugin=plugin)
    trainer.accelerator = types.SimpleNamespace(state=state)
    PPOTrainer._prepare_deepspeed(trainer, trainer.ref_model)
    assert seen["zero_optimization"]["stage"] == reference_stage
    assert ("reduce_bucket_size" in seen["zero_optimization"]) == (stage == 3)
    assert plugin.deepspeed_config == {"zero_optimization": {"stage": stage}}


@pytest.mark.parametrize(
    ("stated", "limit", "found"),
    [("auto", None, 0.0), ("auto", 0.5, 0.5), (0.7, None, 0.7), (0.7, 0.7, 0.7)],
)
def test_deepspeed_clips_where_the_config_says(stated, limit, found):
    config = {"gradient_clipping": stated}
    plugin = types.SimpleNamespace(deepspeed_config=config)
    accelerator = types.SimpleNamespace(state=types.SimpleNamespace(deepspeed_plugin=plugin))
    clip_in_engine(accelerator, limit)
    assert config == {"gradient_clipping": found}
    if stated != "auto":
        with pytest.raises(ValueError, match=r"max_grad_norm=0.1, .* gradient_clipping=0.7"):
            clip_in_engine(accelerator, 0.1)
        assert config == {"gradient_clipping": stated}
