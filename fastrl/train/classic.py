"""What a `step()`-style trainer needs around its algorithm: processes, data, generation, inputs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, LoggerType, ProjectConfiguration
from torch.utils.data import DataLoader, Dataset

from fastrl.models import PreTrainedModelWrapper, create_reference_model
from fastrl.models.embeddings import position_limit, vocabulary_size
from fastrl.models.policy import counts_pads, prepare_policy
from fastrl.rollout.responses import generate_batched, generate_one
from fastrl.train import setup
from fastrl.train.agreement import agreed
from fastrl.train.classic_parts import check_pad_id, clip_in_engine
from fastrl.train.descent import Descent
from fastrl.train.frozen import deepspeed_engine
from fastrl.train.moments import RunningMoments
from fastrl.train.precision import keep_answers
from fastrl.train.publishing import PublishingTrainer
from fastrl.train.step_inputs import Limits, check_prompts, check_step_inputs

_LOGGED_COLUMNS = ("label", "query", "response")  # kept beside the columns that forward() takes


class ClassicTrainer(PublishingTrainer):
    """Accelerator, dataloader, generation and inputs of a trainer driven by calls of `step()`.

    Subclasses set `config`, `model`, `tokenizer` and call the pieces from their `__init__`.
    """

    _signature_columns: list[str] | None = None
    ref_model: Any
    is_peft_model: bool
    _pads_count: bool
    push_to_hub_kwargs: dict[str, Any]
    compare_step: int
    highest_reward: float
    running: RunningMoments
    _descend: Descent
    data_collator: Any
    optional_peft_ctx: Callable[[], AbstractContextManager[Any]]
    current_device: torch.device
    is_encoder_decoder: bool

    def _start_accelerator(self) -> Accelerator:
        """An Accelerator with the config's trackers; gradients accumulate by count alone.

        Left to itself accelerate also synchronises on the last batch of a dataloader, which
        would turn one optimizer step into several there.
        """
        config = self.config
        kwargs = dict(config.accelerator_kwargs)
        if "gradient_accumulation_plugin" not in kwargs:
            kwargs["gradient_accumulation_plugin"] = GradientAccumulationPlugin(
                num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
            )
        project = ProjectConfiguration(**config.project_kwargs)
        accelerator = Accelerator(log_with=config.log_with, project_config=project, **kwargs)
        require_trackers(config.log_with, accelerator.log_with)
        clip_in_engine(accelerator, config.max_grad_norm)
        keep_answers(accelerator)
        return accelerator

    def _describe_run(self) -> None:
        """Fill what config and trainer know only now."""
        config, model = self.config, self.model
        config.world_size = self.accelerator.num_processes
        config.global_backward_batch_size = config.backward_batch_size * config.world_size
        config.global_batch_size = config.batch_size * config.world_size
        config.is_encoder_decoder = self.is_encoder_decoder = hasattr(model, "is_encoder_decoder")
        config.is_peft_model = self.is_peft_model = bool(getattr(model, "is_peft_model", False))
        if config.push_to_hub_if_best_kwargs and "repo_id" not in config.push_to_hub_if_best_kwargs:
            raise ValueError("push_to_hub_if_best_kwargs needs a 'repo_id' to push to")
        self._check_push_arguments(config.push_to_hub_if_best_kwargs)
        self.push_to_hub_kwargs = config.push_to_hub_if_best_kwargs

    def _make_reference(
        self, ref_model: PreTrainedModelWrapper | None, num_shared_layers: int | None
    ) -> PreTrainedModelWrapper | None:
        self.optional_peft_ctx = nullcontext
        if self.is_peft_model:
            self.optional_peft_ctx = self.model.pretrained_model.disable_adapter
        if ref_model is not None:
            if num_shared_layers is not None:
                warnings.warn(
                    "num_shared_layers is ignored: a ref_model was given, which shares nothing",
                    UserWarning,
                    stacklevel=3,
                )
            return ref_model
        if self.is_peft_model:
            if num_shared_layers is not None:
                raise ValueError(
                    "num_shared_layers: a PEFT model is its own reference with the adapter off, "
                    "and shares every layer; leave it out"
                )
            return None
        return create_reference_model(self.model, num_shared_layers=num_shared_layers)

    def _prepare(self, optimizer: Any, loader: Any, lr_scheduler: Any) -> None:
        """Give models, optimizer, dataloader and scheduler to accelerate."""
        prepare = self.accelerator.prepare
        self.current_device = self.accelerator.device
        if getattr(self.model, "is_sequential_parallel", False):
            self.current_device = torch.device(self.current_device.type, 0)
        self._pads_count = False
        if not self.is_encoder_decoder:
            # TRL gives no position_ids: where the model then counts pads, so do packed rows.
            self._pads_count = counts_pads(self.model) and not self.config.position_ids
        self.model, self.optimizer, self.dataloader, self.lr_scheduler = prepare(
            self.model, optimizer, loader, lr_scheduler
        )
        if self.ref_model is None:
            return
        if not self.is_encoder_decoder:
            prepare_policy(self.ref_model)
        base = self.ref_model.pretrained_model
        quantised = any(getattr(base, f"is_loaded_in_{n}bit", False) for n in (4, 8))
        if self.accelerator.distributed_type != "DEEPSPEED":
            self.ref_model = self.accelerator.prepare_model(self.ref_model, evaluation_mode=True)
        elif not quantised:
            self.ref_model = self._prepare_deepspeed(self.ref_model)

    def prepare_dataloader(
        self, dataset: Any, data_collator: Callable[..., Any] | None = None
    ) -> DataLoader:
        """Shuffled batches of `config.batch_size`, the incomplete last one dropped.

        A `datasets.Dataset` loses the columns that neither `forward` nor logging reads, unless
        `config.remove_unused_columns` is False.

        Raises:
            ValueError: if there are fewer rows than one batch.
            TypeError: if the collator is no function.
        """
        setup.check_collator(data_collator)
        if hasattr(dataset, "remove_columns"):
            dataset = self._remove_unused_columns(dataset)
        if hasattr(dataset, "__len__") and len(dataset) < self.config.batch_size:
            raise ValueError(
                f"dataset has {len(dataset)} rows, fewer than batch_size="
                f"{self.config.batch_size}: no batch would ever be full"
            )
        return DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            collate_fn=data_collator,
            shuffle=True,
            drop_last=True,
        )

    def _remove_unused_columns(self, dataset: Any) -> Any:
        if not self.config.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        kept = set(self._signature_columns or ())
        return dataset.remove_columns([c for c in dataset.column_names if c not in kept])

    def _set_signature_columns_if_needed(self) -> None:
        """Decide which columns of a dataset are kept, unless a subclass has."""
        if self._signature_columns is None:
            taken = inspect.signature(self.model.forward).parameters
            self._signature_columns = [*taken, *_LOGGED_COLUMNS]

    def _checked_dataset(self, dataset: Any) -> Any:
        """The dataset if it is one; None with the warning TRL gave."""
        if dataset is None:
            message = "No dataset is provided: config.batch_size must equal the rows of each step"
            if self.accelerator.num_processes > 1:
                message += "; prepare your own dataloader with trainer.accelerator.prepare(...)"
            warnings.warn(message, UserWarning, stacklevel=3)
            return None
        known = isinstance(dataset, Dataset) or hasattr(dataset, "remove_columns")
        if not known or isinstance(dataset, dict):
            raise ValueError(
                f"dataset is a {type(dataset).__name__}: give a torch.utils.data.Dataset or a "
                "datasets.Dataset (of a DatasetDict, one split)"
            )
        if not hasattr(dataset, "__len__"):
            raise ValueError(
                f"dataset is a {type(dataset).__name__}, a stream without a length, which cannot "
                "be shuffled: give one with a length, or None and batches of your own"
            )
        return dataset

    def generate(
        self,
        query_tensor: torch.Tensor | list[torch.Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Responses of the policy, and of the reference if asked for.

        Args:
            query_tensor: one 1-D prompt, or a list of them.
            length_sampler: gives `max_new_tokens`; drawn once per chunk of a list.
            batch_size: prompts generated at a time, of a list.
            return_prompt: whether responses start with their prompt.
            generate_ref_response: return `(responses, reference's responses)`.
            generation_kwargs: as `transformers.GenerationMixin.generate` takes them.

        Returns:
            For a list: 1-D tensors, each cut after its first end-of-sequence token.
            For one prompt: a tensor (1, L), not cut.

        Raises:
            ValueError: for a prompt that is not 1-D, is empty or holds what are no ids of the
                model's, or a wrong argument.
        """
        kwargs: dict[str, Any] = {"length_sampler": length_sampler, "return_prompt": return_prompt}
        if length_sampler is not None and not callable(length_sampler):
            raise ValueError(
                f"length_sampler must be callable, got {type(length_sampler).__name__}; for one "
                "length give max_new_tokens"
            )
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: a whole number of at least 1 is needed")
        if isinstance(query_tensor, list):
            kwargs["batch_size"] = batch_size
        response = self._respond(self.model, query_tensor, **kwargs, **generation_kwargs)
        if not generate_ref_response:
            return response
        with self._reference() as reference:
            return response, self._respond(reference, query_tensor, **kwargs, **generation_kwargs)

    def _respond(self, model: Any, query: Any, **kwargs: Any) -> Any:
        """One model's responses to a prompt or a list of prompts."""
        inner = self.accelerator.unwrap_model(model)
        rows = query if isinstance(query, list) else [query]
        check_prompts("query_tensor", rows, vocabulary_size(inner.pretrained_model))
        rows = [row.to(self.current_device, torch.int64) for row in rows]
        if not isinstance(query, list):
            kwargs["is_encoder_decoder"] = self.is_encoder_decoder
            return generate_one(inner, rows[0], **kwargs)
        if len({len(row) for row in rows}) > 1:
            check_pad_id(self.tokenizer, inner.pretrained_model)
        return self._generate_batched(model, rows, **kwargs)

    def _generate_batched(
        self, model: Any, query_tensors: list[torch.Tensor], **kwargs: Any
    ) -> list[torch.Tensor]:
        """One model's responses; keywords of `rollout.responses.generate_batched`."""
        return generate_batched(
            self.accelerator.unwrap_model(model),
            self.tokenizer,
            query_tensors,
            device=self.current_device,
            is_encoder_decoder=self.is_encoder_decoder,
            **kwargs,
        )

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference model, or the policy with its adapter off where that is the reference."""
        if self.ref_model is not None:
            yield self.ref_model
        else:
            with self.optional_peft_ctx():
                yield self.model

    def prepare_model_inputs(
        self, queries: list[torch.Tensor], responses: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Padded `input_ids` and `attention_mask` (B, T) on the tokenizer's padding side.

        A decoder-only model gets query and response joined; an encoder–decoder the query, and the
        response as `decoder_input_ids` and `decoder_attention_mask`.
        """
        if self.is_encoder_decoder:
            decoder = self._padded(responses)
            return {**self._padded(queries), **{f"decoder_{k}": v for k, v in decoder.items()}}
        return self._padded([torch.cat(pair) for pair in zip(queries, responses, strict=True)])

    def _padded(self, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        batch = self.data_collator(
            [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
        )
        return {k: batch[k].to(self.current_device) for k in ("input_ids", "attention_mask")}

    def _padded_across_processes(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs at the width of the widest process, so that statistics can be averaged."""
        return {
            key: self.accelerator.pad_across_processes(
                value,
                dim=1,
                pad_index=self.tokenizer.pad_token_id if key.endswith("input_ids") else 0,
                pad_first=self.tokenizer.padding_side == "left",
            )
            for key, value in inputs.items()
        }

    def _prepare_deepspeed(self, model: torch.nn.Module) -> torch.nn.Module:
        """The reference as a DeepSpeed engine."""
        return deepspeed_engine(model, self.accelerator)

    def _step_safety_checker(
        self, batch_size: int | None, queries: Any, responses: Any, scores: Any, masks: Any = None
    ) -> tuple[Any, Any, Any, Any]:
        """The step's rows on this device, after every rank's rows have passed the checks."""
        if not torch.is_grad_enabled():
            raise RuntimeError("step() trains: call it outside no_grad() and inference_mode()")
        with agreed(self.accelerator, "the check of queries, responses and scores"):
            check_step_inputs(batch_size, queries, responses, scores, masks, self._limits())
            sizes = {len(q) + len(r) for q, r in zip(queries, responses, strict=True)}
            if self._reads_padding() and (self.is_encoder_decoder or len(sizes) > 1):
                check_pad_id(
                    self.tokenizer, self.accelerator.unwrap_model(self.model).pretrained_model
                )
        device = self.current_device
        queries, responses = (
            [row.to(device, torch.int64) for row in rows] for rows in (queries, responses)
        )
        if masks is not None:
            masks = [mask.to(device) for mask in masks]
        return queries, responses, [score.to(device) for score in scores], masks

    def _reads_padding(self) -> bool:
        """Whether the padding of a step's rows goes through the model."""
        return True

    def _limits(self) -> Limits:
        """The ids and lengths that model and reference both take."""
        models = [m for m in (self.model, self.ref_model) if m is not None]
        inner = [self.accelerator.unwrap_model(m).pretrained_model for m in models]
        longest = [] if self.is_encoder_decoder else [position_limit(m) for m in inner]
        return Limits(
            vocabulary=min((n for m in inner if (n := vocabulary_size(m))), default=None),
            tokens=min((n for n in longest if n), default=None),
            uncounted=2 if self.is_encoder_decoder else 0,
        )

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Take back what a step that fails has changed beside the weights, to be tried again."""
        running, generator = vars(self.running).copy(), np.random.get_state()
        training = self.model.training
        try:
            yield
        except BaseException:
            vars(self.running).update(running)
            np.random.set_state(generator)
            self._descend.abandon()
            self.model.train(training)
            raise

    def _push_if_best(self, scores: torch.Tensor) -> None:
        """Every `compare_steps` steps, push the model if its mean score is the best yet."""
        if not self.push_to_hub_kwargs:
            return
        mean = scores.float().mean().item()
        if self.compare_step % self.config.compare_steps == 0 and mean > self.highest_reward:
            self.highest_reward = mean
            self.push_to_hub(**self.push_to_hub_kwargs)
        self.compare_step += 1


def require_trackers(wanted: Any, found: list[Any]) -> None:
    """Check that accelerate has every tracker asked for; it leaves out what is not installed.

    Raises:
        ImportError: naming the tracker.
    """
    there = {str(tracker) for tracker in found}
    for tracker in wanted if isinstance(wanted, list | tuple) else [wanted]:
        name = str(tracker)
        if isinstance(tracker, str | LoggerType) and name not in there | {"all"}:
            raise ImportError(f"log_with={name!r} needs the package {name}: pip install {name}")
