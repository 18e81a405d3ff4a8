"""What a `step()`-style trainer needs around its algorithm: processes, data, generation, inputs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from fastrl.legacy import warn_once
from fastrl.models import SUPPORTED_ARCHITECTURES, PreTrainedModelWrapper, create_reference_model
from fastrl.models.policy import counts_pads, prepare_policy
from fastrl.rollout.generate import generate_batched, generate_one
from fastrl.train.agreement import agreed
from fastrl.train.publishing import PublishingTrainer
from fastrl.train.step_inputs import check_step_inputs

_LOGGED_COLUMNS = ("label", "query", "response")  # kept beside the columns that forward() takes


class ClassicTrainer(PublishingTrainer):
    """Accelerator, dataloader, generation and inputs of a trainer driven by calls of `step()`.

    Subclasses set `config`, `model`, `tokenizer` and call the pieces from their `__init__`.
    """

    ref_model: Any
    is_peft_model: bool
    _pads_count: bool
    push_to_hub_kwargs: dict[str, Any]
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
        return Accelerator(log_with=config.log_with, project_config=project, **kwargs)

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
            return None
        return create_reference_model(self.model, num_shared_layers=num_shared_layers)

    def _prepare(self, optimizer: Any, loader: Any, lr_scheduler: Any) -> None:
        """Give models, optimizer, dataloader and scheduler to accelerate."""
        prepare = self.accelerator.prepare
        self.current_device = self.accelerator.device
        if getattr(self.model, "is_sequential_parallel", False):
            self.current_device = torch.device(torch.accelerator.current_accelerator().type, 0)
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

    def _with_pad_token(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer, padding with its end of sequence if it has no padding token."""
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    "tokenizer has neither a padding nor an end-of-sequence token: set "
                    "tokenizer.pad_token before making the trainer"
                )
            warn_once(f"tokenizer has no padding token: padding with {tokenizer.eos_token!r}")
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def prepare_dataloader(
        self, dataset: Any, data_collator: Callable[..., Any] | None = None
    ) -> DataLoader:
        """Shuffled batches of `config.batch_size`, the incomplete last one dropped.

        A `datasets.Dataset` loses the columns that neither `forward` nor logging reads, unless
        `config.remove_unused_columns` is False.

        Raises:
            ValueError: if there are fewer rows than one batch.
        """
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
        kept = {*inspect.signature(self.model.forward).parameters, *_LOGGED_COLUMNS}
        return dataset.remove_columns([c for c in dataset.column_names if c not in kept])

    def _checked_dataset(self, dataset: Any) -> Any:
        """The dataset if it is one; None with the warning TRL gave."""
        if dataset is None:
            message = "No dataset is provided: config.batch_size must equal the rows of each step"
            if self.accelerator.num_processes > 1:
                message += "; prepare your own dataloader with trainer.accelerator.prepare(...)"
            warnings.warn(message, UserWarning, stacklevel=4)
            return None
        if not (isinstance(dataset, Dataset) or hasattr(dataset, "remove_columns")):
            raise ValueError(
                f"dataset is a {type(dataset).__name__}: give a torch.utils.data.Dataset or a "
                "datasets.Dataset"
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
            ValueError: for a prompt that is not 1-D or is empty.
        """
        kwargs = {"length_sampler": length_sampler, "return_prompt": return_prompt}
        if isinstance(query_tensor, list):
            kwargs["batch_size"] = batch_size
        response = self._respond(self.model, query_tensor, **kwargs, **generation_kwargs)
        if not generate_ref_response:
            return response
        with self._reference() as reference:
            return response, self._respond(reference, query_tensor, **kwargs, **generation_kwargs)

    def _respond(self, model: Any, query: Any, **kwargs: Any) -> Any:
        """One model's responses to a prompt or a list of prompts."""
        for i, row in enumerate(query if isinstance(query, list) else [query]):
            if not isinstance(row, torch.Tensor) or row.ndim != 1 or row.numel() == 0:
                found = tuple(row.shape) if isinstance(row, torch.Tensor) else type(row).__name__
                raise ValueError(f"query_tensor[{i}] must be a 1-D tensor of token ids: {found}")
        if isinstance(query, list):
            return self._generate_batched(model, query, **kwargs)
        model = self.accelerator.unwrap_model(model)
        query = query.to(self.current_device)
        return generate_one(model, query, is_encoder_decoder=self.is_encoder_decoder, **kwargs)

    def _generate_batched(
        self, model: Any, query_tensors: list[torch.Tensor], **kwargs: Any
    ) -> list[torch.Tensor]:
        """Left-padded chunks through one model; keywords of `rollout.generate.generate_batched`."""
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
        """The reference as a DeepSpeed engine: ZeRO-3 as the policy's, anything less as stage 0."""
        import deepspeed

        config = deepcopy(self.accelerator.state.deepspeed_plugin.deepspeed_config)
        if config["zero_optimization"]["stage"] == 3:
            hidden = getattr(model.config, "hidden_size", None)
            if hidden is not None:
                config["zero_optimization"] |= {
                    "reduce_bucket_size": hidden * hidden,
                    "stage3_param_persistence_threshold": 10 * hidden,
                    "stage3_prefetch_bucket_size": 0.9 * hidden * hidden,
                }
        else:
            config["zero_optimization"]["stage"] = 0
        engine, *_ = deepspeed.initialize(model=model, config=config)
        engine.eval()
        return engine

    def _step_safety_checker(
        self, batch_size: int | None, queries: Any, responses: Any, scores: Any, masks: Any = None
    ) -> tuple[Any, Any, Any, Any]:
        """The step's rows on this device, after every rank's rows have passed the checks."""
        embeddings = self.accelerator.unwrap_model(
            self.model
        ).pretrained_model.get_input_embeddings()
        with agreed(self.accelerator, "the check of queries, responses and scores"):
            check_step_inputs(
                batch_size, queries, responses, scores, masks, embeddings.num_embeddings
            )
        on_device = [
            None if rows is None else [row.to(self.current_device) for row in rows]
            for rows in (queries, responses, scores, masks)
        ]
        return tuple(on_device)

    def _push_if_best(self, scores: torch.Tensor) -> None:
        """Every `compare_steps` steps, push the model if its mean score is the best yet."""
        if not self.push_to_hub_kwargs:
            return
        mean = scores.float().mean().item()
        if self.compare_step % self.config.compare_steps == 0 and mean > self.highest_reward:
            self.highest_reward = mean
            self.push_to_hub(**self.push_to_hub_kwargs)
        self.compare_step += 1


def check_parts(model: Any, ref_model: Any, tokenizer: Any, lr_scheduler: Any) -> None:
    """Check the types of what a trainer is made of.

    Raises:
        ValueError: naming the argument and what it was.
    """
    names = " or ".join(c.__name__ for c in SUPPORTED_ARCHITECTURES)
    if not isinstance(model, SUPPORTED_ARCHITECTURES):
        raise ValueError(
            f"model must be an {names}, got {type(model).__name__}: wrap it, "
            "AutoModelForCausalLMWithValueHead.from_pretrained(model)"
        )
    if ref_model is not None and not isinstance(ref_model, SUPPORTED_ARCHITECTURES):
        raise ValueError(f"ref_model must be an {names} or None, got {type(ref_model).__name__}")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"tokenizer must be a transformers tokenizer: {type(tokenizer).__name__}")
    scheduler = torch.optim.lr_scheduler.LRScheduler
    if lr_scheduler is not None and not isinstance(lr_scheduler, scheduler):
        raise ValueError(
            f"lr_scheduler must be a torch LRScheduler, got {type(lr_scheduler).__name__}"
        )


def default_adam(parameters: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Adam, in torch's fused form where all parameters are floats on a CPU or a CUDA device."""
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)
