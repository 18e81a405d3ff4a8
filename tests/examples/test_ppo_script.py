"""examples/scripts/ppo.py and ppo_train.py: command lines of the guides, and runs offline."""

import importlib.machinery
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def parse(scripts, monkeypatch):
    import command_line
    import ppo

    wandb = types.ModuleType("wandb")  # PPOConfig asks only whether it could be imported
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    return lambda line: command_line.parse(ppo.Options, ppo.HUB_DEFAULTS, line.split(), "about")


# What the script of TRL 0.7.4 did unless told otherwise.
PLAIN = {
    "model_name": "lvwerra/gpt2-imdb",
    "query_dataset": "imdb",
    "reward_model": "sentiment-analysis:lvwerra/distilbert-imdb",
    "learning_rate": 1.41e-5,
    "log_with": None,
    "mini_batch_size": 128,
    "batch_size": 128,
    "gradient_accumulation_steps": 1,
    "early_stopping": False,
    "target_kl": 6.0,
    "kl_penalty": "kl",
    "seed": 0,
    "use_score_scaling": False,
    "use_score_norm": False,
    "score_clip": None,
}
# The commands that the sentiment guide gives to the benchmark runner, which appends the seed.
BENCHMARKS = {
    "--ppo_config.log_with wandb": {},
    "--ppo_config.exp_name sentiment_tuning_step_grad_accu --ppo_config.mini_batch_size 1 "
    "--ppo_config.gradient_accumulation_steps 128 --ppo_config.log_with wandb": {
        "exp_name": "sentiment_tuning_step_grad_accu",
        "mini_batch_size": 1,
        "gradient_accumulation_steps": 128,
    },
    "--ppo_config.exp_name sentiment_tuning_gpt2 --ppo_config.log_with wandb": {
        "exp_name": "sentiment_tuning_gpt2"
    },
    "--ppo_config.exp_name sentiment_tuning_gpt2xl_grad_accu --ppo_config.model_name gpt2-xl "
    "--ppo_config.mini_batch_size 16 --ppo_config.gradient_accumulation_steps 8 "
    "--ppo_config.log_with wandb": {
        "exp_name": "sentiment_tuning_gpt2xl_grad_accu",
        "model_name": "gpt2-xl",
        "mini_batch_size": 16,
        "gradient_accumulation_steps": 8,
    },
    "--ppo_config.exp_name sentiment_tuning_falcon_rw_1b --ppo_config.model_name "
    "tiiuae/falcon-rw-1b --ppo_config.log_with wandb": {
        "exp_name": "sentiment_tuning_falcon_rw_1b",
        "model_name": "tiiuae/falcon-rw-1b",
    },
    "--ppo_config.exp_name sentiment_tuning_peft --use_peft --ppo_config.log_with wandb": {
        "exp_name": "sentiment_tuning_peft",
        "use_peft": True,
    },
}


@pytest.mark.parametrize(("line", "expected"), BENCHMARKS.items())
def test_benchmark_commands_of_the_sentiment_guide(parse, line, expected):
    options, config = parse(f"{line} --seed 3")
    found = vars(config) | {"use_peft": options.use_peft}
    expected = PLAIN | {"log_with": "wandb", "seed": 3, "use_peft": False} | expected
    assert {name: found[name] for name in expected} == expected


def test_flags_of_0_11_that_step_has_no_more(parse):
    with pytest.warns(FutureWarning, match="gradient_checkpointing= has no effect"):
        parse("--gradient_checkpointing True")
    with pytest.warns(FutureWarning, match="dataset_num_proc= has no effect"):
        parse("--ppo_config.dataset_num_proc 2")


def test_run_directly_it_is_the_sentiment_example(parse):
    _, config = parse("")
    assert {name: getattr(config, name) for name in PLAIN} == PLAIN


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "--log_with wandb --use_score_scaling --use_score_norm --score_clip 0.5",
            {"log_with": "wandb", "use_score_scaling": True, "use_score_norm": True}
            | {"score_clip": 0.5, "model_name": "lvwerra/gpt2-imdb"},
        ),
        (
            "--ppo_config.exp_name sentiment --ppo_config.log_with wandb "
            "--ppo_config.mini_batch_size 1 --ppo_config.gradient_accumulation_steps 16",
            {"exp_name": "sentiment", "mini_batch_size": 1, "gradient_accumulation_steps": 16},
        ),
        (
            "--ppo_config.model_name tiiuae/falcon-rw-1b --ppo_config.seed 3",
            {"model_name": "tiiuae/falcon-rw-1b", "seed": 3},
        ),
        ("--seed 7 --ppo-config.mini-batch-size 64", {"seed": 7, "mini_batch_size": 64}),
        ('--tracker_kwargs {"wandb":{"name":"x"}}', {"tracker_kwargs": {"wandb": {"name": "x"}}}),
        ("--adap_kl_ctrl False --score_clip None", {"adap_kl_ctrl": False, "score_clip": None}),
        ("--ppo-config.no-adap-kl-ctrl", {"adap_kl_ctrl": False}),
        ("--ppo_config.seed 4 --seed 5", {"seed": 5}),
        ("--local-rank=1 --ppo_config.seed=4", {"seed": 4}),
    ],
)  # fmt: skip
def test_command_lines_of_the_guides(parse, line, expected):
    _, config = parse(line)
    assert {name: getattr(config, name) for name in expected} == expected


def test_options_of_the_script(parse):
    options, _ = parse("--use_peft --lora_r 8 --use_seq2seq --dataset folder --max_steps 3")
    assert (options.use_peft, options.lora_r, options.use_seq2seq) == (True, 8, True)
    assert (options.dataset, options.max_steps) == ("folder", 3)
    options, _ = parse(
        "--args.use_peft peft_config:lora-config --peft_config.r 4 --args.lora-alpha 2"
    )
    assert (options.use_peft, options.lora_r, options.lora_alpha) == (True, 4, 2)
    assert not parse("--no-use-peft")[0].use_peft


def test_a_config_file_yields_to_flags(parse, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("use_peft: true\nppo_config:\n  seed: 4\n  mini_batch_size: 64\n")
    options, config = parse(f"--config {file} --ppo_config.seed 5")
    assert (options.use_peft, config.seed, config.mini_batch_size) == (True, 5, 64)
    file.write_text("sead: 4\n")
    with pytest.raises(SystemExit):
        parse(f"--config {file}")
    assert "unknown sead; did you mean 'seed'" in capsys.readouterr().err


def test_flags_of_train_go_to_the_other_script(scripts, monkeypatch):
    import ppo
    import ppo_train

    given = []
    monkeypatch.setattr(ppo_train, "main", given.append)
    words = ["--dataset_name", "d", "--reward_model_path", "rm", "--total_episodes", "100"]
    ppo.main(words)
    assert given == [words]
    assert ppo.flags_of_train_form({"gradient_checkpointing", "local_rank", "output_dir"}) == []
    with pytest.raises(SystemExit, match="--report_to is a flag of PPO by train"):
        ppo.main(["--report_to", "wandb"])


@pytest.mark.filterwarnings("ignore:no v_head weight")
def test_the_sentiment_script_with_a_local_hub(scripts, local_hub_directory, tmp_path):
    """Names as they are on the hub: gpt2-imdb, distilbert-imdb, imdb."""
    import ppo

    words = ["--ppo_config.batch_size", "8", "--ppo_config.mini_batch_size=4", "--max_steps", "1"]
    found = ppo.main([*words, "--output_dir", str(tmp_path / "out")])
    assert "judge P(positive)" not in found["before"]
    assert json.loads((tmp_path / "out" / "log.jsonl").read_text())["step"] == 1
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore:no v_head weight")
def test_other_models_and_reviews_by_flags(scripts, hub_folder, tmp_path, monkeypatch):
    """Nothing is where the defaults would look for it, so each flag must name what is used."""
    import ppo

    monkeypatch.chdir(tmp_path)
    made, plain = [], ppo.PPOTrainer
    monkeypatch.setattr(ppo, "PPOTrainer", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    judge = hub_folder / "lvwerra" / "distilbert-imdb"
    words = ["--model_name", str(hub_folder / "gpt2"), "--reward_model"]
    words += [f"sentiment-analysis:{judge}", "--query_dataset", str(hub_folder / "imdb")]
    words += ["--batch_size", "4", "--mini_batch_size", "4", "--max_steps", "1"]
    ppo.main([*words, "--output_dir", str(tmp_path / "out")])
    (logged,) = map(json.loads, (tmp_path / "out" / "log.jsonl").read_text().splitlines())
    rows = (hub_folder / "imdb" / "train.jsonl").read_text().splitlines()
    assert any(json.loads(row)["text"].startswith(made[0].dataset[0]["query"]) for row in rows)
    texts = ["a warm and funny film", "a dull and tired film"]
    scores = ppo.scorer(f"sentiment-analysis:{judge}", None, "cpu")(texts)
    tokenizer = AutoTokenizer.from_pretrained(judge)
    model = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 1]
    assert scores == pytest.approx(logits.tolist(), abs=1e-4) and scores[0] > scores[1]
    assert logged["objective/kl"] == 0 and math.isfinite(logged["reward"])


def test_ppo_by_train_with_a_local_hub(scripts, local_hub_directory, tmp_path, monkeypatch):
    """A tokenizer without a padding token gets one, and the models a row for it."""
    import ppo
    import ppo_train

    rows = [json.dumps({"prompt": f"the film of {n} minutes"}) for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    made = []
    monkeypatch.setattr(ppo_train, "fit", lambda trainer, _: made.append(trainer))
    words = f"--dataset_name {tmp_path}/rows.jsonl --sft_model_path lvwerra/gpt2-imdb --use_cpu "
    words += f"--reward_model_path gpt2 --total_episodes 8 --output_dir {tmp_path} "
    words += "--per_device_train_batch_size 4 --response_length 4 --num_sample_generations 0"
    ppo.main(words.split())
    (trainer,) = made
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (22, 2)
    assert trainer.args.total_episodes == 8
    assert len(trainer.processing_class) == trainer.policy_model.config.vocab_size
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--mini_bach_size 1", "did you mean '--mini_batch_size'"),
        ("--ppo_config.sead 1", "did you mean '--ppo_config.seed'"),
        ("--kl_penalty kll", "invalid choice"),
        ("--use_peft maybe", "neither True nor False"),
        ("--tracker_kwargs {", "no JSON object"),
        ("--batch_size many", "invalid int value"),
    ],
)
def test_a_bad_flag_says_what_is_wrong(parse, capsys, line, message):
    with pytest.raises(SystemExit):
        parse(line)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_ppo_by_train_runs_offline(scripts, tmp_path):
    import ppo_train

    found = ppo_train.main(["--smoke", "--use_cpu", "--output_dir", str(tmp_path)])
    assert 0 <= found["after"] <= 1
    assert (tmp_path / "final" / "model.safetensors").exists()
    assert "loss" in (tmp_path / "reward" / "log.jsonl").read_text()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert max(row.get("episode", 0) for row in rows) == 64


def test_help_and_a_folder_without_reviews(scripts, tmp_path, capsys):
    import ppo

    with pytest.raises(SystemExit):
        ppo.main(["--help"])
    shown = capsys.readouterr().out
    assert "--use_score_scaling" in shown and "--ppo_config.mini_batch_size" in shown
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.pos and \*\.neg files"):
        ppo.main(["--dataset", str(tmp_path), "--output_dir", str(tmp_path / "out")])
