"""Launch configurations of the examples, and the launchers' command lines of the guides."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands import launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from fastrl.cli.launch import CONFIGS, named_configs

ROOT = Path(__file__).resolve().parents[2]
ACCELERATE = ROOT / "examples" / "accelerate_configs"
DEEPSPEED = ROOT / "examples" / "deepspeed_configs"
EVERY = sorted([*ACCELERATE.glob("*.yaml"), *DEEPSPEED.glob("*.yaml")])
# Of the Trainer guide's four files: what each says beside the lines that all share.
SHARED = {
    "compute_environment": "LOCAL_MACHINE",
    "downcast_bf16": "no",
    "machine_rank": 0,
    "main_training_function": "main",
    "rdzv_backend": "static",
    "same_network": True,
    "tpu_env": [],
    "tpu_use_cluster": False,
    "tpu_use_sudo": False,
    "use_cpu": False,
}
GUIDE = {
    "ddp_two_machines": {
        "distributed_type": "MULTI_GPU",
        "gpu_ids": "all",
        "main_process_ip": "192.168.20.1",
        "main_process_port": 9898,
        "mixed_precision": "fp16",
        "num_machines": 2,
        "num_processes": 8,
    },
    "fsdp_bert": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_backward_prefetch": "BACKWARD_PRE",  # the guide's older key is read by nobody
            "fsdp_forward_prefetch": True,
            "fsdp_offload_params": False,
            "fsdp_sharding_strategy": 1,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_sync_module_states": True,
            "fsdp_transformer_layer_cls_to_wrap": "BertLayer",
            "fsdp_use_orig_params": True,
        },
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": 2,
    },
    "deepspeed_config_file": {
        "deepspeed_config": {
            "deepspeed_config_file": "examples/deepspeed_configs/ds_zero3_config.json",
            "zero3_init_flag": True,
        },
        "distributed_type": "DEEPSPEED",
        "num_machines": 1,
        "num_processes": 4,
    },
    "deepspeed_zero2_plugin": {
        "deepspeed_config": {
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.7,
            "offload_optimizer_device": "cpu",
            "offload_param_device": "cpu",
            "zero3_init_flag": True,
            "zero_stage": 2,
        },
        "distributed_type": "DEEPSPEED",
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": 4,
    },
}


@pytest.fixture
def launched(monkeypatch):
    """launched(*words): (which launcher `accelerate launch` chose, its environment)."""

    def start(*words):
        found = []

        def fake(kind):
            return lambda args: found.append((kind, args))

        for kind in ("deepspeed_launcher", "multi_gpu_launcher", "simple_launcher"):
            monkeypatch.setattr(launch, kind, fake(kind.removesuffix("_launcher")))
        monkeypatch.setattr(launch, "is_deepspeed_available", lambda: True)
        launch.launch_command(launch.launch_command_parser().parse_args(list(words)))
        ((kind, args),) = found
        args.main_process_port = args.main_process_port or 0  # any free one
        if kind == "deepspeed":
            return kind, args, prepare_deepspeed_cmd_env(args)[1]
        return kind, args, prepare_multi_gpu_env(args) if kind == "multi_gpu" else {}

    return start


# --- the files -----------------------------------------------------------------------------------
def test_files_of_all_names_that_readers_type():
    names = {path.stem for path in ACCELERATE.glob("*.yaml")}
    zero = {f"deepspeed_zero{stage}" for stage in (1, 2, 3)}
    assert names >= {"single_gpu", "multi_gpu", "fsdp1", "fsdp2", *zero}  # of TRL 0.7 and 0.24
    assert names >= {"zero1", "zero2", "zero3"}  # of TRL 1.16
    assert {path.stem for path in DEEPSPEED.glob("*.yaml")} == zero


@pytest.mark.parametrize("name", named_configs())
def test_examples_are_copies_of_the_package_s(name):
    """Files, as links do not outlive every archive; equal, so that there is one truth."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert (ACCELERATE / f"{name}.yaml").read_text() == text
    if name.startswith("zero"):
        assert (ACCELERATE / f"deepspeed_{name}.yaml").read_text() == text
        assert (DEEPSPEED / f"deepspeed_{name}.yaml").read_text() == text


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_accelerate_launch_with_each_configuration(launched, path):
    kind, args, environment = launched(f"--config_file={path}", "--num_processes", "2", "s.py")
    config = yaml.safe_load(path.read_text())
    chosen = {"NO": "simple", "MULTI_GPU": "multi_gpu", "FSDP": "multi_gpu"}
    assert kind == chosen.get(config["distributed_type"], "deepspeed")
    assert (args.num_processes, args.training_script) == (2, "s.py")
    for key, value in config.get("fsdp_config", {}).items():
        name = key.upper().replace("_LAYER_CLS", "_CLS")
        assert environment[name].lower() == str(value).lower()  # each key is one that is read
    of_file = {
        "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
        "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
        "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
        "zero3_init_flag": "ACCELERATE_DEEPSPEED_ZERO3_INIT",
        "zero3_save_16bit_model": "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
        "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
        "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    }
    for key, value in config.get("deepspeed_config", {}).items():
        if key != "deepspeed_multinode_launcher":
            assert environment[of_file[key]].lower() == str(value).lower()


def test_fsdp_files_leave_checkpointing_to_the_trainer_and_wrap_by_layer(launched):
    """One of the two checkpoints activations: the arguments of trainers do, by default."""
    paths = sorted(ACCELERATE.glob("fsdp[12]*.yaml"))
    assert len(paths) == 4
    for path in paths:
        environment = launched(f"--config_file={path}", "--num_processes", "2", "s.py")[2]
        assert environment["FSDP_ACTIVATION_CHECKPOINTING"] == "false"
        assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"


@pytest.mark.parametrize("name", GUIDE)
def test_yaml_files_of_the_trainer_guide(name):
    assert yaml.safe_load((ACCELERATE / f"{name}.yaml").read_text()) == SHARED | GUIDE[name]


def test_two_machines_meet_at_the_first(launched):
    words = ("--config_file", str(ACCELERATE / "ddp_two_machines.yaml"), "--machine_rank", "1")
    _, args, environment = launched(*words, "s.py")
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "4", 1)
    assert args.rdzv_endpoint == "192.168.20.1:9898"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "fp16"


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("deepspeed_zero2_cpu_offload", {"offload_optimizer_device": "cpu"}),
        (
            "deepspeed_zero3_cpu_offload",
            {"offload_optimizer_device": "cpu", "offload_param_device": "cpu"},
        ),
        ("fsdp1_cpu_offload", {"fsdp_offload_params": True}),
        ("fsdp2_cpu_offload", {"fsdp_offload_params": True}),
    ],
)
def test_cpu_offload_forms_differ_in_nothing_else(name, moved):
    offloading = yaml.safe_load((ACCELERATE / f"{name}.yaml").read_text())
    plain = yaml.safe_load((ACCELERATE / f"{name.removesuffix('_cpu_offload')}.yaml").read_text())
    (section,) = (key for key in plain if key.endswith("_config"))
    assert offloading == plain | {section: plain[section] | moved}


def test_the_deepspeed_file_that_is_named_is_there():
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    named = GUIDE["deepspeed_config_file"]["deepspeed_config"]["deepspeed_config_file"]
    config = json.loads((ROOT / named).read_text())
    assert HfDeepSpeedConfig(config).is_zero3()
    assert config["train_micro_batch_size_per_gpu"] == "auto"  # the trainer's arguments decide


# --- command lines of the guides -----------------------------------------------------------------
def test_accelerate_launch_with_fsdp_flags(launched):
    words = ["--num_processes=2", "--use_fsdp", "--mixed_precision=bf16"]
    words += ["--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP"]
    words += ["--fsdp_transformer_layer_cls_to_wrap=BertLayer", "--fsdp_sharding_strategy=1"]
    words += ["--fsdp_state_dict_type=FULL_STATE_DICT", "sft.py", "--max_seq_length", "128"]
    kind, args, environment = launched(*words)
    assert (kind, args.num_processes) == ("multi_gpu", 2)
    assert args.training_script_args == ["--max_seq_length", "128"]
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "BertLayer"
    assert environment["FSDP_SHARDING_STRATEGY"] == "1"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_accelerate_config_s_file_is_what_launch_takes(launched, tmp_path):
    from accelerate.commands.config.default import write_basic_config

    written = write_basic_config(mixed_precision="no", save_location=str(tmp_path / "config.yaml"))
    kind, args, _ = launched("--config_file", str(written), "examples/scripts/ppo.py")
    assert kind == "simple" and args.training_script == "examples/scripts/ppo.py"
    assert yaml.safe_load(written.read_text())["distributed_type"] == "NO"


@pytest.mark.parametrize("script", ["your_script.py", "examples/scripts/ppo.py"])
def test_accelerate_launch_alone(launched, monkeypatch, script):
    monkeypatch.setattr(launch, "default_config_file", "there is none")
    kind, args, _ = launched(script)
    assert (kind, args.training_script, args.training_script_args) == ("simple", script, [])


def test_deepspeed_config_by_its_flags(launched):
    named = "examples/deepspeed_configs/ds_zero3_config.json"
    words = ["--use_deepspeed", "--deepspeed_config_file", named, "--num_processes", "2"]
    kind, args, environment = launched(*words, "examples/scripts/sft.py", "--max_steps", "1")
    assert (kind, args.training_script_args) == ("deepspeed", ["--max_steps", "1"])
    assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == named


GLUE = (
    "--model_name_or_path google-bert/bert-base-cased --task_name mrpc --do_train --do_eval "
    "--max_seq_length 128 --per_device_train_batch_size 16 --learning_rate 5e-5 "
    "--num_train_epochs 3 --output_dir out/mrpc/ --overwrite_output_dir"
)


@dataclasses.dataclass
class GlueArguments:
    """What such a script adds to the trainer's arguments."""

    model_name_or_path: str
    task_name: str | None = None
    max_seq_length: int = 64


@pytest.mark.filterwarnings("ignore:HfArgumentParser, old flags:FutureWarning")
@pytest.mark.parametrize("flags", [[], ["--num_processes=2", "--use_fsdp"]])
def test_run_glue_by_accelerate_launch(launched, monkeypatch, flags):
    """The Trainer guide's line: the launcher passes the words on, and old arguments read them."""
    from transformers import HfArgumentParser, TrainingArguments

    from fastrl.compat.transformers_patch import patch_transformers, restore_transformers

    monkeypatch.setattr(launch, "default_config_file", "there is none")
    _, args, _ = launched(*flags, "./run_glue.py", *GLUE.split())
    assert args.training_script_args == GLUE.split()
    patch_transformers()
    try:
        parser = HfArgumentParser((GlueArguments, TrainingArguments))
        own, training = parser.parse_args_into_dataclasses(args.training_script_args)
    finally:
        restore_transformers()
    assert (own.model_name_or_path, own.task_name) == ("google-bert/bert-base-cased", "mrpc")
    assert own.max_seq_length == 128 and training.output_dir == "out/mrpc/"
    assert (training.learning_rate, training.num_train_epochs) == (5e-5, 3)
    assert training.do_train and training.do_eval


def test_torch_distributed_launch_gives_the_script_a_local_rank():
    """Without --use-env it appends the flag, which test_script_flags has the scripts take."""
    from torch.distributed.launch import parse_args
    from torch.distributed.run import config_from_args

    words = ["--nproc_per_node=2", "examples/scripts/sft.py", "--max_steps", "2"]
    config, _, given = config_from_args(parse_args(words))
    assert config.nproc_per_node == 2
    assert given[-4] == "examples/scripts/sft.py" and given[-2:] == ["--max_steps", "2"]
    assert given[-3].startswith("--local-rank=")


def test_deepspeed_num_gpus():
    runner = pytest.importorskip("deepspeed.launcher.runner")
    args = runner.parse_args(["--num_gpus", "2", "sft.py", "--max_steps", "2"])
    assert (args.num_gpus, args.user_script) == (2, "sft.py")


# --- runs ----------------------------------------------------------------------------------------
def run(command, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT
    )


def written(folder, done):
    """(summary, rows of the log) of the PPO script."""
    summary = folder / "summary.json"
    assert summary.exists(), done.stderr[-3000:]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    return json.loads(summary.read_text()), rows


@pytest.mark.slow
def test_accelerate_launch_runs_a_script(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision", "bf16"]
    command += ["--config_file=examples/accelerate_configs/single_gpu.yaml", "--num_processes", "1"]
    command += ["examples/scripts/ppo.py", "--smoke", "--use_peft", "--use_score_scaling"]
    done = run([*command, "--output_dir", str(tmp_path)])
    assert done.returncode == 0, done.stderr[-3000:]
    summary, rows = written(tmp_path, done)
    assert (summary["processes"], summary["mixed_precision"]) == (1, "bf16")
    assert all(math.isfinite(row["ppo/loss/total"]) for row in rows)
    assert "judge P(positive)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "checkpoint" / "adapter_config.json").exists()


@pytest.mark.slow
def test_the_ppo_script_on_two_processes(tmp_path):
    """By the guide's launcher, which appends --local-rank. gloo may abort at exit, so what the
    first rank wrote is judged and not the exit status."""
    command = [sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=2"]
    command += ["--standalone", "examples/scripts/ppo.py", "--smoke", "--output_dir", str(tmp_path)]
    devices = {"CUDA_VISIBLE_DEVICES": "0,2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    summary, rows = written(tmp_path, run(command, ACCELERATE_USE_CPU="true", **devices))
    assert (summary["processes"], summary["mixed_precision"]) == (2, "no")
    assert abs(rows[0]["objective/kl"]) < 1e-3  # both ranks start from the same model


@pytest.mark.slow
@pytest.mark.parametrize("visible", ["", "2,0"])
def test_import_opens_no_context_whatever_gpus_are_visible(tmp_path, visible):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, fastrl\n"
        "from fastrl import PPOTrainer, SFTTrainer, GRPOTrainer\n"
        "assert not torch.cuda.is_initialized()\n"
        "logits = torch.zeros(2, 3, 5, requires_grad=True)\n"
        "logp, entropy = fastrl.ops.token_logprobs(logits, torch.zeros(2, 3, dtype=torch.long))\n"
        "print(round(float(logp.exp().sum()), 4))\n"
    )
    order = "FASTEST_FIRST" if visible else "PCI_BUS_ID"
    done = run([sys.executable, str(script)], CUDA_VISIBLE_DEVICES=visible, CUDA_DEVICE_ORDER=order)
    assert done.stdout.strip() == "1.2", done.stderr[-3000:]  # six times 1/5
