"""What trainers share that sample what they learn from (GRPO, RLOO)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import set_seed as set_rank_seed
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from fastrl.models.policy import logprobs, require_fp32_head
from fastrl.rewards.running import RewardFunctions
from fastrl.train import online_setup, setup
from fastrl.train.balance import balanced
from fastrl.train.batch import Batch
from fastrl.train.callbacks import SyncRefModelCallback
from fastrl.train.collecting import Collecting
from fastrl.train.drawing import DrawnBy
from fastrl.train.experience import Experience, joined, regrouped
from fastrl.train.frozen import Reference
from fastrl.train.host_metrics import HostMetrics
from fastrl.train.online_config import OnlineConfig
from fastrl.train.prompt_batches import PromptTrainer, Rows, Step, as_they_are
from fastrl.train.rollout_files import load_rollouts, save_rollouts
from fastrl.train.slice_metrics import SliceMetrics
from fastrl.types import LogProbs


class OnlineTrainer(PromptTrainer):
    """A `Trainer` whose batches are drawn from the policy and scored by reward functions.

    A subclass states two things: what it collects (`experience`) and what it minimises (`loss`,
    with `weights` for each answer). In between, the rows of an optimizer step are put together by
    prompt and computed without padding, each prompt once; `weights` keep what each row counts for
    in the slice (micro-batch) that it was drawn into.

    Args:
        model: a name or folder, a transformers model, or a PEFT model.
        reward_funcs: functions, reward models or their names, one or a list. A function is called
            with lists `prompts`, `completions`, `completion_ids`, every other column of the
            dataset, `trainer_state`, `log_extra`, `log_metric` as keywords, and returns a number a
            completion, or None where it cannot say; it may be async.
        args: the trainer's config; None: defaults, and a folder named by the model.
        train_dataset: rows with `prompt`, a text or a conversation.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the model's own.
        reward_processing_classes: tokenizers of the reward models, where they are not their own.
        callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: for a model given by name.
        peft_config: train an adapter of this kind.
        tools: functions the model may call; their results are not learnt.
        rollout_func: called with the prompts and the trainer, draws the answers itself: a dict of
            `prompt_ids`, `completion_ids`, `logprobs`, maybe `env_mask` and columns for rewards.
        environment_factory: makes an environment for each answer, whose methods are tools; or
            several by name.
        ref_model: the reference; None: a copy of the policy's start, or it without its adapter.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    args: OnlineConfig
    _config: ClassVar[type[OnlineConfig]]
    loss_is_scaled_for_ga = True  # `weights` know the accumulation
    # Answers drawn to a row of the dataloader; rows that depend on each other, so never parted.
    answers_a_row: ClassVar[int] = 1

    def __init__(
        self,
        model: str | nn.Module,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        ref_model: nn.Module | None = None,
    ) -> None:
        online_setup.refuse_overrides(type(self))
        args = self._config.of(args, setup.run_name(model, self._name))
        drawn_by = DrawnBy.of(tools, rollout_func, environment_factory)
        train_dataset = online_setup.check_datasets(train_dataset, eval_dataset, args, drawn_by)
        set_seed(args.seed)
        model, reference, tokenizer = online_setup.assemble(
            model, args, processing_class, quantization_config, peft_config, ref_model
        )
        online_setup.check_prompts(train_dataset, tokenizer, model, args, drawn_by)
        self._owned = drawn_by.environments is not None
        self.router_aux_loss_coef = setup.router_aux_loss_coef(model, args.router_aux_loss_coef)
        super().__init__(
            model,
            args,
            as_they_are,
            train_dataset,
            eval_dataset,
            tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._start(reference, reward_funcs, reward_processing_classes, drawn_by)

    def _start(
        self,
        reference: nn.Module | None,
        reward_funcs: Any,
        reward_processing_classes: Any,
        drawn_by: DrawnBy,
    ) -> None:
        """What stands beside the model: rewards, reference, engine, logs."""
        args = self.args
        if self._fp32_head:
            require_fp32_head(self.model)
        if args.balance_ranks and not self.regroups:
            raise ValueError(
                "balance_ranks moves answers between passes, but the loss depends on which of them "
                "are computed together (a router's auxiliary loss, top_entropy_quantile or a "
                "compute_loss of your own); leave balance_ranks out"
            )
        self._collecting = self._collector(reward_funcs, reward_processing_classes, drawn_by)
        if args.sync_ref_model:
            online_setup.require_apart(reference)
            self.add_callback(SyncRefModelCallback(reference, self.accelerator))
        self._reference = Reference(self.accelerator, reference)
        self._host_metrics = {mode: HostMetrics() for mode in ("train", "eval")}
        self._slices: list[Experience] = []  # of the present generation batch
        self._micro_step = 0  # micro-steps taken, over all epochs
        self._step_seconds = 0.0
        set_rank_seed(args.seed, device_specific=True)  # each process draws answers of its own

    def _collector(self, reward_funcs: Any, tokenizers: Any, drawn_by: DrawnBy) -> Collecting:
        """What draws answers and has them scored by `reward_funcs`."""
        args = self.args
        functions = online_setup.reward_functions(
            reward_funcs, tokenizers, args, self.accelerator, drawn_by
        )
        rewards = RewardFunctions(functions, timeout=args.reward_timeout)
        self.reward_func_names = rewards.names
        self.reward_weights = online_setup.reward_weights(args.reward_weights, rewards.names)
        return Collecting(self, rewards, drawn_by)

    def _check_ids(self) -> None:
        """Prompts become ids when they are drawn from, and are checked then."""

    @property
    def ref_model(self) -> nn.Module | None:
        """The reference, where it is a model apart."""
        return self._reference.model

    # --- what an algorithm states ----------------------------------------------------------------

    def experience(self, answers: Experience, scores: torch.Tensor) -> Experience:
        """What is collected of the answers of a generation batch: advantages and what they need.

        Args:
            answers: of this process, B rows.
            scores: (world B, K) rewards of all processes, groups of G one after the other; NaN
                where a function has none.
        """
        raise NotImplementedError

    def weights(
        self, answers: Experience, accumulation: int, slices: int
    ) -> dict[str, torch.Tensor]:
        """What a token of each row of a slice counts for: `loss_weights` (B,), maybe others.

        Args:
            answers: the rows of one slice.
            accumulation: slices of the optimizer step.
            slices: slices of the generation batch.
        """
        raise NotImplementedError

    def loss(self, inputs: Batch, scores: LogProbs) -> torch.Tensor:
        """What is minimised over the rows of one pass: a scalar, Σ_i w_i l_i; with its metrics.

        Args:
            inputs: answers and what was collected of them: `Experience.tensors` with those of
                `weights`, and `slices` (B,) int64.
            scores: of the answers' tokens under the policy, (B, C) with gradients.
        """
        raise NotImplementedError

    @property
    def regroups(self) -> bool:
        """Whether rows may move between the passes of an optimizer step.

        A router's loss is one of the rows it sees, and a user's own `loss` or `compute_loss` is
        written for slices as they were drawn.
        """
        of = (type(self).loss.__module__, type(self).compute_loss.__module__)
        own = all(module.partition(".")[0] == "fastrl" for module in of)
        return own and self.router_aux_loss_coef == 0

    @property
    def rows_together(self) -> int:
        """How many rows on end of a slice are computed in one pass."""
        return self.answers_a_row

    @property
    def accumulation(self) -> int:
        """Slices of the present optimizer step; evaluation has one."""
        return self.current_gradient_accumulation_steps if self.model.training else 1

    # --- log-probabilities -----------------------------------------------------------------------

    def scores_of(self, model: nn.Module, inputs: Batch, aux_loss: bool = False) -> LogProbs:
        """Log-probabilities and entropies (B, C) of the answers' tokens under the policy."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        tokens = online_setup.spans_of(inputs, ids).tokens(ids)
        found = logprobs(
            model, tokens, self.args.logp_temperature, aux_loss=aux_loss, fp32_head=self._fp32_head
        )
        return online_setup.answers_only(found, inputs["completion_ids"].shape[1])

    @property
    def _fp32_head(self) -> bool:
        return getattr(self.args, "cast_lm_head_to_fp32", False)  # a field of GRPO's

    @torch.no_grad()
    def old_logprobs(self, answers: Experience) -> torch.Tensor:
        """(B, C) log-probabilities of a generation batch under the policy as it is."""
        return self.scores_of(self.model_wrapped, answers.batch()).logp

    def ref_logprobs(self, answers: Experience) -> torch.Tensor:
        """(B, C) log-probabilities of a generation batch under the reference."""
        tensors = answers.tensors
        ids = torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], dim=1)
        tokens = answers.spans().tokens(ids)
        found = self._reference.logprobs(
            self.model_wrapped, tokens, self.args.logp_temperature, fp32_head=self._fp32_head
        )
        return online_setup.answers_only(found, tensors["completion_ids"].shape[1]).logp

    # --- a step ----------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """The batches of an optimizer step, which become its passes when they are iterated over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return Step(batches, self._step_of), None

    def _step_of(self, batches: list[Rows]) -> list[Batch]:
        """The passes of an optimizer step: answers are drawn where their turn has come."""
        if not batches:
            return []  # a stream has come to its end, and begins again
        begin = time.perf_counter()
        self.model.train()
        every = self.args.steps_per_generation * self.args.num_iterations
        slices = []
        for rows in batches:
            if self._micro_step % every == 0 or not self._slices:
                self._slices = self._collecting.slices(rows, self.args.steps_per_generation)
            slices.append(self._slices[self._micro_step % self.args.steps_per_generation])
            self._micro_step += 1
        passes = self._passes(slices)
        self._step_seconds += time.perf_counter() - begin
        return passes

    def _passes(self, slices: list[Experience]) -> list[Batch]:
        """As many passes as slices, each with rows that are cheap to compute together."""
        count = len(slices)
        known = [
            self._weighted(answers, i, count, self.args.steps_per_generation)
            for i, answers in enumerate(slices)
        ]
        self._slice_metrics = SliceMetrics(count, count)
        if not self.regroups:
            return [part.batch() for part in known]
        pad = self.processing_class.pad_token_id
        whole = joined(known, pad)
        if self.args.balance_ranks and self.accelerator.num_processes > 1:
            shares = balanced(whole, count, self.accelerator, pad, self.rows_together)
            return [part.batch() for part in shares]
        return [whole.take(rows).batch() for rows in regrouped(whole, count, self.rows_together)]

    def _weighted(
        self, answers: Experience, number: int, accumulation: int, slices: int
    ) -> Experience:
        """A slice whose rows know what they count for and which slice they are of."""
        rows = torch.full((len(answers),), number, device=self.args.device)
        return answers.with_tensors(
            **self.weights(answers, accumulation, slices),
            slices=rows,
            slice_rows=torch.full_like(rows, len(answers)),
        )

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> Batch:
        # On the device already; and nothing may be cast to a lower precision here.
        return inputs if isinstance(inputs, Batch) else Batch(inputs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """A pass's part of the optimizer step's loss, a scalar.

        Args:
            model: what the trainer calls.
            inputs: see `loss`.
            return_outputs: not possible; the loss of answers has no logits to give.
            num_items_in_batch: has no part in it; the weights know.
        """
        if return_outputs:
            raise ValueError(f"return_outputs: {self._name}'s loss has no outputs beside it")
        coefficient = self.router_aux_loss_coef
        scores = self.scores_of(model, inputs, aux_loss=coefficient > 0)
        loss = self.loss(inputs, scores)
        if coefficient > 0 and scores.aux_loss is not None:
            loss = loss + coefficient * scores.aux_loss / self.accumulation
            self.metrics.mean("aux_loss", scores.aux_loss)
        self._slice_metrics.flush(self.metrics)
        return self.checked(loss)

    def training_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward of one pass; returns the loss, detached."""
        begin = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_seconds += time.perf_counter() - begin
        if self.accelerator.sync_gradients:
            self.host_metrics.add("step_time", self._step_seconds)
            self._step_seconds = 0.0
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of a batch of rows, answers to which are drawn here."""
        (answers,) = self._collecting.slices(inputs, 1)
        known = self._weighted(answers, 0, 1, 1)
        self._slice_metrics = SliceMetrics(1, 1)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, known.batch()).detach(), None, None

    # --- what is logged and kept -----------------------------------------------------------------

    @property
    def host_metrics(self) -> HostMetrics:
        """Metrics that the host knows: of completions and rewards."""
        return self._host_metrics["train" if self.model.training else "eval"]

    def _found(self) -> dict[str, Any]:
        return {**self.host_metrics.collect(), **self.metrics.collect()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As every trainer's; then the completions are shown if `log_completions`."""
        super().log(logs, start_time)
        self._collecting.completions.show(self.state.global_step)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.save_only_model:
            return
        folder, rank = self._checkpoint_folder(trial), self.accelerator.process_index
        every = self.args.steps_per_generation * self.args.num_iterations
        kept = self._slices if self._micro_step % every else []
        save_rollouts(folder, rank, self._micro_step, kept, self.args)

    def _checkpoint_folder(self, trial: Any) -> Path:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        return Path(self._get_output_dir(trial=trial)) / name

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        found = load_rollouts(Path(checkpoint), self.accelerator, self.args)
        if found is not None:  # else another library wrote it: begin with fresh answers
            self._micro_step, self._slices = found
