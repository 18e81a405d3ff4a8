"""The research projects: flags as readers know them, and smoke runs from end to end."""

from __future__ import annotations

import csv
import importlib.util
import math
import re
import sys
from pathlib import Path

import datasets
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

PROJECTS = Path(__file__).resolve().parents[2] / "examples" / "research_projects"
SCRIPTS = {
    path.stem: path
    for path in sorted(PROJECTS.rglob("*.py"))
    if "def main(argv" in path.read_text(encoding="utf-8")
}


@pytest.fixture
def script(monkeypatch, tmp_path):
    """script("rl_training"): the module; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.syspath_prepend(str(PROJECTS))

    def load(name):
        monkeypatch.syspath_prepend(str(SCRIPTS[name].parent))
        spec = importlib.util.spec_from_file_location(f"project_{name}", SCRIPTS[name])
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory):
    """Tiny models and made-up rows, made by the first script that needs them."""
    return str(tmp_path_factory.mktemp("smoke"))


def test_the_scripts_that_the_guides_name_are_there():
    assert {
        "gpt-j-6b-toxicity",
        "evaluate-toxicity",
        "supervised_finetuning",
        "reward_modeling",
        "rl_training",
        "merge_peft_adapter",
        "sft_llama2",
        "dpo_llama2",
        "calculator",
        "triviaqa",
        "python_interpreter",
    } <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_a_flag_that_is_wrong(script, capsys, name):
    main = script(name).main
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "--smoke" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--smokee"])
    assert stop.value.code == 2 and "did you mean '--smoke'" in capsys.readouterr().err


COMMAND_LINES = [
    (
        "gpt-j-6b-toxicity",
        "--log_with wandb --learning_rate 1.4e-5 --mini_batch_size 1 --batch_size 8 "
        "--gradient_accumulation_steps 2 --model_save_path here",
        {"log_with": "wandb", "learning_rate": 1.4e-5, "batch_size": 8, "mini_batch_size": 1}
        | {"gradient_accumulation_steps": 2, "model_save_path": "here", "num_shared_layers": 20}
        | {"model_name": "ybelkada/gpt-j-6b-sharded-bf16"},
    ),
    (
        "evaluate-toxicity",
        "--model_type ybelkada/gpt-j-6b-detoxs --num_samples 100 --context_length 1000",
        {"model_type": "ybelkada/gpt-j-6b-detoxs", "num_samples": 100, "context_length": 1000}
        | {"output_file": "toxicity.csv", "batch_size": 64, "max_new_tokens": 30},
    ),
    (
        "supervised_finetuning",
        "--model_path=llama --streaming --no_gradient_checkpointing --learning_rate 1e-5 "
        "--max_steps 5000 --output_dir ./llama-se",
        {"model_path": "llama", "streaming": True, "no_gradient_checkpointing": True}
        | {"learning_rate": 1e-5, "max_steps": 5000, "output_dir": "./llama-se", "bf16": False}
        | {"seq_length": 1024, "subset": "data/finetune", "size_valid_set": 4000},
    ),
    (
        "reward_modeling",
        "--model_name=llama-se --train_subset 500 --gradient_checkpointing True",
        {"model_name": "llama-se", "train_subset": 500, "gradient_checkpointing": True}
        | {"eval_subset": 50000, "max_length": 512, "bf16": True, "learning_rate": 2e-5},
    ),
    (
        "rl_training",
        "--log_with=wandb --model_name=llama-se --reward_model_name=llama-se-rm --adafactor=False "
        "--tokenizer_name=llama --save_freq=100 --output_max_length=128 --batch_size=8 "
        "--gradient_accumulation_steps=8 --batched_gen=True --ppo_epochs=4 --seed=0 "
        "--learning_rate=1.4e-5 --early_stopping=True --output_dir=out",
        {"adafactor": False, "tokenizer_name": "llama", "save_freq": 100, "output_dir": "out"}
        | {"output_max_length": 128, "batched_gen": True, "early_stopping": True}
        | {"mini_batch_size": 1, "target_kl": 0.1, "init_kl_coef": 0.2, "steps": 20000},
    ),
    (
        "merge_peft_adapter",
        "--base_model_name=llama --adapter_model_name=adapter --output_name=merged",
        {"base_model_name": "llama", "adapter_model_name": "adapter", "output_name": "merged"},
    ),
    (
        "dpo_llama2",
        "--model_name_or_path=sft/final_checkpoint --output_dir=dpo --sanity_check True",
        {"model_name_or_path": "sft/final_checkpoint", "output_dir": "dpo", "beta": 0.1}
        | {"sanity_check": True, "optimizer_type": "paged_adamw_32bit", "max_steps": 1000},
    ),
    (
        "triviaqa",
        "--log_with wandb --iterations 500 --max_new_tokens 128 --seed 3",
        {"log_with": "wandb", "iterations": 500, "max_new_tokens": 128, "seed": 3}
        | {"model_name": "bigcode/starcoderbase", "batch_size": 32, "mini_batch_size": 1}
        | {"gradient_accumulation_steps": 16, "ppo_epochs": 1, "learning_rate": 1e-5},
    ),
    (
        "python_interpreter",
        "--model_name bigcode/starcoderbase-1b --n_epochs 8 --batch_size 16",
        {"model_name": "bigcode/starcoderbase-1b", "n_epochs": 8, "batch_size": 16},
    ),
    ("calculator", "", {"model_name": "gpt2", "batch_size": 256, "mini_batch_size": 64}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "expected"), COMMAND_LINES, ids=lambda v: str(v)[:20])
def test_command_lines_of_the_research_projects(script, name, line, expected):
    module = script(name)
    import smoke

    _, args = smoke.parse((module.ScriptArguments,), module.SMOKE, "about", line.split())
    assert {key: getattr(args, key) for key in expected} == expected


@pytest.mark.filterwarnings("ignore:old spellings")
def test_sft_llama2_takes_the_trainers_own_flags(script):
    module = script("sft_llama2")
    import smoke

    line = (
        "--output_dir=./sft --max_steps=500 --logging_steps=10 --save_steps=10 "
        "--per_device_train_batch_size=4 --gradient_accumulation_steps=2 "
        "--gradient_checkpointing=False --group_by_length=False --learning_rate=1e-4 "
        "--lr_scheduler_type=cosine --warmup_steps=100 --weight_decay=0.05 "
        "--optim=paged_adamw_32bit --bf16=False --remove_unused_columns=False "
        "--run_name=sft_llama2 --report_to=none"
    )
    types = (module.ScriptArguments, module.SFTConfig)
    _, args, config = smoke.parse(types, module.SMOKE, "about", line.split())
    assert (args.model_name, args.lora_r) == ("meta-llama/Llama-2-7b-hf", 8)
    assert (config.max_steps, config.learning_rate, config.warmup_steps) == (500, 1e-4, 100)
    assert (config.optim, config.run_name) == ("paged_adamw_32bit", "sft_llama2")
    assert config.gradient_checkpointing is False and config.remove_unused_columns is False


def test_the_calculator_knows_arithmetic_and_nothing_else(script):
    calculator = script("calculator")
    values = {"13-3": 10, " 4*(2+1) ": 12, "-7/2": -3.5, "2+3*4": 14}
    assert {text: calculator.calculate(text) for text in values} == values
    for text in ("2**9", "abs(1)", "True+1", "'a'*3"):
        with pytest.raises(ValueError, match="more than arithmetic"):
            calculator.calculate(text)
    said = ["Result=8<submit>", "Result = -8.0 <submit>", "Result=8", "Result=80<submit>", ""]
    assert calculator.exact_match(said, [8, -8, 8, 8, 8]) == [1, 1, 0, 0, 0]


def test_the_interpreter_prints_fails_and_stops(script, monkeypatch):
    module = script("python_interpreter")
    assert module.interpret("for n in (1, 2):\n  print(n * 21)") == "21\n42"
    assert module.interpret("print(1 / 0)") == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(module, "SECONDS", 0.2)
    with pytest.raises(TimeoutError, match=r"not done after 0\.2 s"):
        module.interpret("while True: pass")


def test_the_search_ranks_by_bm25(script):
    module = script("triviaqa")
    texts = ["the red fox", "the fox and the hen and the dog", "a bird"]
    search = module.Search(texts)

    def by_hand(times, words, holding):  # k1 1.2, b 0.75, three passages of 13 words in all
        rarity = math.log(1 + (3 - holding + 0.5) / (holding + 0.5))
        return rarity * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * words / (13 / 3)))

    first = by_hand(1, 3, 2) + by_hand(1, 3, 1)  # fox, red
    second = by_hand(1, 8, 2) + by_hand(1, 8, 1)  # fox, hen
    assert first > second > by_hand(1, 3, 2)
    assert [search(q) for q in ("Red fox?", "fox", "hen fox")] == [texts[0], texts[0], texts[1]]
    assert search("whale") == "nothing found"
    said = ["Answer: The Red Sea<submit>", "Answer: Red Sea", "Answer: redness<submit>"]
    assert module.submitted(said, [["red sea"], ["red sea"], ["red"]]) == [1, 0, 0]


def test_an_episode_of_the_tools_prompts_ends_in_what_it_is_rewarded_for(script):
    """What the prompts show is what the environment does, and what the reward counts."""
    calculator, python = script("calculator"), script("python_interpreter")
    pattern = r"<request><\w+>(.*?)<call>(.*?)<response>\s*(Result=(-?\d+)<submit>)"
    for module, tool in ((calculator, calculator.calculate), (python, python.interpret)):
        shown = re.findall(pattern, module.PROMPT, re.DOTALL)
        assert len(shown) == 2
        for asked, answer, said, target in shown:
            assert str(tool(asked)) == answer
            assert module.exact_match([said], [float(target)]) == [1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tools_are_asked_more_and_more(script, smoke_folder):
    rewards = script("calculator").main(["--smoke", smoke_folder])
    assert len(rewards) == 10 and sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.1
    assert (Path("runs/calculator") / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["triviaqa", "python_interpreter"])
def test_the_other_tools_are_called_and_rewarded(script, smoke_folder, monkeypatch, capsys, name):
    module = script(name)
    monkeypatch.setattr("tool_training.TRANSCRIPTS", 600)
    rewards = module.main(["--smoke", smoke_folder, "--iterations", "2"])
    shown = re.findall(r"reward (0\.\d\d)  episodes with a tool (0\.\d\d)", capsys.readouterr().out)
    assert [float(reward) for reward, _ in shown] == pytest.approx(rewards, abs=0.006)
    assert all(float(called) > 0.2 for _, called in shown)
    assert max(rewards) > 0.2  # who guesses is seldom right
    assert (Path("runs") / name / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_stack_llama_from_sft_to_ppo(script, smoke_folder):
    smoke = ["--smoke", smoke_folder]
    sft = script("supervised_finetuning").main(smoke)
    assert sft["after"] < sft["before"] - 0.3
    merge = script("merge_peft_adapter").main
    policy = merge(smoke)
    texts = ["Question: How do I sort a list in Go?\n\nAnswer: No idea, ask somebody else."]
    ids = AutoTokenizer.from_pretrained(policy)(texts, return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(f"{smoke_folder}/stack_exchange/llama")
    adapter = "runs/stack_llama/sft/final_checkpoint"
    with torch.no_grad():
        start = base(ids).logits
        tuned = PeftModel.from_pretrained(base, adapter).eval()(ids).logits
        found = AutoModelForCausalLM.from_pretrained(policy)(ids).logits
    torch.testing.assert_close(found, tuned, rtol=1e-4, atol=1e-4)
    assert (found - start).abs().max() > 0.1

    reward = script("reward_modeling").main([*smoke, "--model_name", policy])
    assert reward["after"]["eval_loss"] < 0.1 < reward["before"]["eval_loss"]
    assert reward["after"]["eval_accuracy"] > 0.95
    words = ["--adapter_model_name", "runs/stack_llama/reward/final_checkpoint"]
    judge = merge([*smoke, *words, "--output_name", "runs/stack_llama/reward_merged"])

    rl = script("rl_training").main
    words = [*smoke, "--model_name", policy, "--reward_model_name"]
    scores = rl([*words, judge])
    assert len(scores) == 10 and sum(scores[-3:]) / 3 > scores[0] + 0.3
    assert (Path("runs/stack_llama/rl/final") / "adapter_config.json").is_file()

    # The first answers are the same, so a reward model with its sign turned gives minus the score.
    turned = AutoModelForSequenceClassification.from_pretrained(judge)
    turned.score.weight.data.neg_()
    turned.save_pretrained("turned")
    AutoTokenizer.from_pretrained(judge).save_pretrained("turned")
    (first,) = rl([*words, "turned", "--steps", "32"])
    assert first == pytest.approx(-scores[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_stack_llama_2_from_sft_to_dpo(script, smoke_folder):
    smoke = ["--smoke", smoke_folder]
    sft = script("sft_llama2").main([*smoke, "--max_steps", "20"])
    assert sft["after"] < sft["before"] - 0.2
    dpo = script("dpo_llama2").main
    found = dpo([*smoke, "--max_steps", "15"])
    assert found["before"]["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert found["after"]["eval_rewards/margins"] > 1
    assert found["after"]["eval_rewards/accuracies"] > 0.95
    # The adapter and the model it was merged into are one starting point.
    merged = "runs/stack_llama_2/sft/final_merged_checkpoint"
    other = dpo([*smoke, "--max_steps", "1", "--model_name_or_path", merged])
    key = "eval_logps/chosen"
    assert other["before"][key] == pytest.approx(found["before"][key], rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_toxicity_falls_and_is_measured(script, smoke_folder):
    smoke = ["--smoke", smoke_folder]
    found = script("gpt-j-6b-toxicity").main(smoke)
    assert found["before"] > 0.4 and found["after"] < 0.5 * found["before"]

    evaluate = script("evaluate-toxicity").main
    ((start, (mean, _)),) = evaluate(smoke).items()
    assert start == f"{smoke_folder}/toxicity/model" and mean > 0.4
    ((tuned, (less, spread)),) = evaluate([*smoke, "--model_type", "runs/toxicity"]).items()
    assert tuned == "runs/toxicity" and less < 0.5 * mean
    with open("toxicity.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [[tuned, str(less), str(spread)]]
