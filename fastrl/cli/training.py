"""What the training commands share: options, data, and what happens around `trainer.train()`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from fastrl.train.callbacks import RichProgressCallback
from fastrl.train.model_config import ModelConfig, get_peft_config, get_quantization_config
from fastrl.train.parser import TrlParser
from fastrl.train.script_arguments import (
    DatasetMixtureConfig,
    ScriptArguments,
    get_dataset,
    load,
    pick,
)

ABOUT_LAUNCH = (
    "--config FILE reads options from YAML. --accelerate_config single_gpu|multi_gpu|zero1|zero2|"
    "zero3|fsdp1|fsdp2|FILE and any flag of `accelerate launch` start several processes."
)


def parser_for(
    config: type | Sequence[type],
    name: str,
    about: str,
    subparsers: Any = None,
    prog: str | None = None,
    script: type = ScriptArguments,
    others: Sequence[type] = (ModelConfig, DatasetMixtureConfig),
) -> TrlParser:
    """A parser of script, training (one dataclass or more), model and mixture options.

    It stands alone, or below `subparsers` as the command `name`.
    """
    configs = [config] if isinstance(config, type) else config
    types = (script, *configs, *others)
    if subparsers is not None:
        return subparsers.add_parser(name, help=about, dataclass_types=types)
    return TrlParser(
        types,
        prog=prog,
        usage="%(prog)s [--config FILE] [--accelerate_config NAME] [options, see --help]",
        description=f"{about[0].upper()}{about[1:]}. {ABOUT_LAUNCH}",
    )


def datasets_for(
    script_args: ScriptArguments, dataset_args: DatasetMixtureConfig, evaluates: bool
) -> tuple[Any, Any]:
    """(training rows, evaluation rows or None).

    Raises:
        ValueError: no dataset, two ways to name it, or a split that is not there.
    """
    name = script_args.dataset_name
    if bool(dataset_args.datasets) == bool(name):
        raise ValueError("give either dataset_name or, in the --config file, datasets")
    if dataset_args.datasets:
        splits, name = get_dataset(dataset_args), "mixture"
    else:
        splits = load(name, script_args.dataset_config, streaming=script_args.dataset_streaming)
    train = pick(splits, script_args.dataset_train_split, name)
    return train, pick(splits, script_args.dataset_test_split, name) if evaluates else None


def trainer_arguments(
    script_args: ScriptArguments,
    training_args: Any,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> dict[str, Any]:
    """The keywords of SFTTrainer, DPOTrainer, KTOTrainer and RewardTrainer."""
    if model_args.model_name_or_path is None:
        raise ValueError("model_name_or_path is needed: a folder, or a name on the hub")
    given = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    training_args.model_init_kwargs = {**given, **(training_args.model_init_kwargs or {})}
    evaluates = training_args.eval_strategy != "no"
    train, evaluation = datasets_for(script_args, dataset_args, evaluates)
    return {
        "model": model_args.model_name_or_path,
        "args": training_args,
        "train_dataset": train,
        "eval_dataset": evaluation,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
    }


def load_quantised(training_args: Any, quantization_config: Any) -> None:
    """Have a config's own keywords of loading quantise the model, where the trainer takes no such.

    What `model_init_kwargs` says of it already comes first; None changes nothing.
    """
    if quantization_config is not None:
        own = training_args.model_init_kwargs or {}
        training_args.model_init_kwargs = {"quantization_config": quantization_config, **own}


def fit(trainer: Any, script_args: ScriptArguments) -> None:
    """Train, save to `output_dir`, push if asked to, and close the trackers."""
    args = trainer.args
    known = {type(callback) for callback in trainer.callback_handler.callbacks}
    if sys.stdout.isatty() and not args.disable_tqdm and RichProgressCallback not in known:
        trainer.add_callback(RichProgressCallback())
    if script_args.ignore_bias_buffers:
        trainer.model._ddp_params_and_buffers_to_ignore = [
            name for name, buffer in trainer.model.named_buffers() if buffer.dtype == torch.bool
        ]
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"saved to {args.output_dir}")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    if hasattr(trainer, "end"):  # since transformers 5.18
        trainer.end()
