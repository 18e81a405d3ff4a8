"""`transformers.Trainer` as the trainers on fixed datasets need it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from accelerate.utils import DistributedType
from torch import nn
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PredictionOutput

from fastrl.legacy import warn_once
from fastrl.models.policy import prepare_policy
from fastrl.train import card
from fastrl.train.batch import IGNORED, Batch
from fastrl.train.callbacks import LogFileCallback, RichProgressCallback
from fastrl.train.metrics import Metrics
from fastrl.train.precision import keep_answers
from fastrl.train.vocabulary import check_ids

# Parameters that methods users override gained over the years; old overrides do without.
_GAINED = {
    "compute_loss": "num_items_in_batch",
    "training_step": "num_items_in_batch",
    "log": "start_time",
    "create_optimizer": "model",
    "_get_train_sampler": "train_dataset",
}


def _without(method: Callable[..., Any], gained: str, kept: dict[str, Any]) -> Callable[..., Any]:
    """The method called as it was before it gained its last parameter, whose value is `kept`."""
    room = len(inspect.signature(method).parameters)

    def call(*args: Any, **keywords: Any) -> Any:
        kept[gained] = keywords.pop(gained, args[room] if len(args) > room else None)
        return method(*args[:room], **keywords)

    return call


class Trainer(transformers.Trainer):
    """What all trainers have in common; an algorithm adds its data and `compute_loss`.

    `compute_loss` receives a `Batch`: TRL's keys and padding, and the host's knowledge of the rows
    beside them. Metrics go to `self.metrics`, which reads nothing back before the next log. Before
    each optimizer step losses and gradient norm are checked to be finite.
    """

    model: Any
    args: Any  # the trainer's own config
    _name: ClassVar[str]
    _tag_names: ClassVar[tuple[str, ...]]
    _paper: ClassVar[dict[str, str]] = {}
    _task: ClassVar[str] = "text-generation"
    # Whether `compute_loss` divides by the labels of the whole optimizer step, not by its own rows.
    counts_labels: ClassVar[bool] = False

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{type(self).__name__}: several GPUs are visible to one process, which would use "
                "nn.DataParallel; start it by `accelerate launch` or `torchrun`, or show it one "
                "GPU with CUDA_VISIBLE_DEVICES"
            )
        if not (self.counts_labels or self.args.average_tokens_across_devices):
            warn_once(
                "average_tokens_across_devices=False changes nothing: the loss is no mean over the "
                "labels of a step"
            )
        # transformers divides the loss by the accumulation steps unless the count was given to it.
        self.model_accepts_loss_kwargs = self.counts_labels
        keep_answers(self.accelerator)
        self._adapt_old_overrides()
        self._check_ids()
        self._check_sampling()
        self._make_ready(self.model)
        self.model.add_model_tags(list(self._tag_names))
        self.add_callback(LogFileCallback())
        if any(isinstance(c, RichProgressCallback) for c in self.callback_handler.callbacks):
            self._leave_progress_to_rich()
        self._both = {mode: Metrics(self.accelerator) for mode in ("train", "eval")}
        self._losses: list[torch.Tensor] = []
        self._tokens_seen = 0  # over all processes, up to the last log or checkpoint
        self._tokens_since = 0  # of this process, since then
        self._prefix = "eval"

    def _leave_progress_to_rich(self) -> None:
        """transformers' own bar or printed lines would show everything twice."""
        for other in (ProgressCallback, PrinterCallback):
            self.remove_callback(other)

    def add_callback(self, callback: Any) -> None:
        """As transformers' own; `RichProgressCallback` takes the place of the bar that is there."""
        super().add_callback(callback)
        if isinstance(callback, RichProgressCallback) or callback is RichProgressCallback:
            self._leave_progress_to_rich()

    def _check_ids(self) -> None:
        held_out = self.eval_dataset
        sets = held_out if isinstance(held_out, Mapping) else {"eval_dataset": held_out}
        for name, dataset in {"train_dataset": self.train_dataset, **sets}.items():
            check_ids(name, dataset, self.model)

    def _check_sampling(self) -> None:
        """transformers groups by length what has a length and tells each row's."""
        if self.args.train_sampling_strategy != "group_by_length":
            return
        told = {"input_ids", self.args.length_column_name}
        columns = getattr(self.train_dataset, "column_names", None) or []
        if not (hasattr(self.train_dataset, "__len__") and told & set(columns)):
            raise ValueError(
                "train_sampling_strategy='group_by_length' (group_by_length=True): "
                f"{type(self).__name__} cannot read the lengths of these rows, and as it computes "
                "no padding, rows of like lengths would gain nothing: leave it out"
            )

    def _make_ready(self, model: nn.Module) -> None:
        """Install the door through which the model is asked."""
        prepare_policy(model)

    def _adapt_old_overrides(self) -> None:
        self._kept: dict[str, Any] = {}  # what overrides do not take
        for name, gained in _GAINED.items():
            method = getattr(self, name)
            parameters = inspect.signature(method).parameters.values()
            if any(p.name == gained or p.kind == p.VAR_KEYWORD for p in parameters):
                continue
            setattr(self, name, _without(method, gained, self._kept))
            if name == "compute_loss":
                self.model_accepts_loss_kwargs = False

    @property
    def metrics(self) -> Metrics:
        """Where `compute_loss` puts its metrics: those of training or of evaluation."""
        return self._both["train" if self.model.training else "eval"]

    def count_tokens(self, tokens: int) -> None:
        """Add to `num_tokens`, the tokens trained on; those of evaluation do not count."""
        if self.model.training:
            self._tokens_since += tokens

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        """As transformers'; a user's own `create_optimizer_and_scheduler` is called again.

        transformers 5 calls its two halves only. DeepSpeed makes both by its own configuration.
        """
        halves = transformers.Trainer.create_optimizer_and_scheduler
        arguments = (max_steps, train_dataloader, resume_from_checkpoint)
        if type(self).create_optimizer_and_scheduler is halves or self.is_deepspeed_enabled:
            return super()._prepare_for_training(*arguments)
        own = {name: getattr(self, name) for name in ("create_optimizer", "create_scheduler")}

        def both(model: Any = None) -> Any:
            vars(self).update(own)  # which the override may call
            self.create_optimizer_and_scheduler(num_training_steps=max_steps)
            vars(self)["create_scheduler"] = lambda *_, **__: self.lr_scheduler
            return self.optimizer

        vars(self)["create_optimizer"] = both
        try:
            return super()._prepare_for_training(*arguments)
        finally:
            vars(self).update(own)

    # --- inputs --------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> Batch:
        prepared = super()._prepare_inputs(dict(inputs))
        if isinstance(inputs, Batch):
            prepared = {**prepared, "spans": inputs.spans, "pooled": inputs.pooled}
        return Batch(prepared)

    def _get_num_items_in_batch(
        self, batch_samples: list[Mapping[str, Any]], device: torch.device
    ) -> torch.Tensor | None:
        """Labels of the optimizer step, over all processes if `average_tokens_across_devices`."""
        if not self.model_accepts_loss_kwargs or not batch_samples:
            return None
        if any("labels" not in batch for batch in batch_samples):
            return None
        # A sequence's first token has no context to be learnt from.
        counts = [(batch["labels"][..., 1:] != IGNORED).sum() for batch in batch_samples]
        total = torch.stack(counts).sum().to(device)
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, "sum")
        return total

    # --- a step ---------------------------------------------------------------------------------

    def _offload(self) -> AbstractContextManager[Any]:
        if not getattr(self.args, "activation_offloading", False):
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=self.accelerator.device.type == "cuda")

    def training_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns the loss, detached."""
        with self._offload():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss)
        return loss

    def checked(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss; with DeepSpeed, whose backward may move the weights, checked to be finite."""
        if self.model.training and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self._require_finite([loss.detach()], None)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        losses, self._losses = self._losses, []
        # With a loss scaler an infinite gradient is skipped and the scale lowered: no fault.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        self._require_finite(losses, None if scaled else grad_norm)
        return grad_norm

    def _require_finite(self, losses: list[torch.Tensor], grad_norm: Any) -> None:
        """One copy to the host; every process raises if any holds a NaN or an infinity."""
        if hasattr(grad_norm, "full_tensor"):
            grad_norm = grad_norm.full_tensor()
        norm = [] if grad_norm is None else [torch.as_tensor(grad_norm, device=self.args.device)]
        watched = torch.stack([value.detach().float().reshape(()) for value in [*losses, *norm]])
        finite = watched.isfinite().all()
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.gather(finite.int()[None]).min()
        if finite.item():
            return
        seen = watched.tolist()
        shown = f"losses {seen[: len(losses)]}"
        if norm:
            shown += f", gradient norm {seen[-1]}"
        raise FloatingPointError(
            f"optimizer step {self.state.global_step + 1}: not finite ({shown} on rank "
            f"{self.accelerator.process_index}); the weights are as before this step. Lower "
            "learning_rate, look at the rows of this step, or train in fp32"
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, Any, Any]:
        """Loss of a batch; with `compute_metrics` also what `compute_loss` returns beside it."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if prediction_loss_only:
                return self.compute_loss(model, batch).detach(), None, None
            loss, outputs = self.compute_loss(model, batch, return_outputs=True)
        return loss.detach(), outputs["logits"], outputs["labels"]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As transformers' own; a dataset given here is prepared as those given at construction."""
        self._prefix = metric_key_prefix
        given = eval_dataset is not None and not isinstance(eval_dataset, str)
        if given and not isinstance(eval_dataset, Mapping):
            eval_dataset = self.prepare_eval_dataset(eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """As transformers' own, of rows as `evaluate` takes them; with the trainer's metrics."""
        self._prefix = metric_key_prefix
        found = super().predict(
            self.prepare_eval_dataset(test_dataset), ignore_keys, metric_key_prefix
        )
        own = {f"{metric_key_prefix}_{name}": value for name, value in self._found().items()}
        return found._replace(metrics={**(found.metrics or {}), **own})

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """Rows as the collator takes them; a dataset that is prepared is returned as it is."""
        raise NotImplementedError

    # --- what is logged and kept -----------------------------------------------------------------

    def _total_tokens(self) -> int:
        """Tokens trained on by all processes; kept in the checkpoint, so a resumed run goes on."""
        pending = torch.tensor(self._tokens_since, device=self.args.device)
        if self.accelerator.num_processes > 1:
            pending = self.accelerator.reduce(pending, "sum")
        self._tokens_since = 0
        if self.args.include_num_input_tokens_seen == "no":
            self.state.num_input_tokens_seen += int(pending)
            return self.state.num_input_tokens_seen
        self._tokens_seen += int(pending)
        return self._tokens_seen

    def _found(self) -> dict[str, Any]:
        """The metrics since the last log, under the names they have in training."""
        found: dict[str, Any] = self.metrics.collect()
        if found:
            found["num_tokens"] = self._total_tokens()
        return found

    def _began(self, start_time: float | None) -> float | None:
        """When training began, though an override of `log` that takes no time hands none on."""
        return self._kept.get("start_time") if start_time is None else start_time

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics collected since the last log, then log as transformers does."""
        start_time = self._began(start_time)
        found = self._found()
        if not self.model.training:
            found = {f"{self._prefix}_{name}": value for name, value in found.items()}
        logs.update(found)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._total_tokens()
        name = self.args.hub_model_id or Path(self.args.output_dir).name
        self.create_model_card(model_name=name.split("/")[-1])
        super()._save_checkpoint(model, trial)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write `output_dir/README.md` on the main process.

        Args:
            model_name: its title; None: the output folder's name.
            dataset_name: what it was trained on.
            tags: further tags for the hub.
        """
        if not self.is_world_process_zero():
            return
        given = [tags] if isinstance(tags, str) else list(tags or [])
        card.write(
            Path(self.args.output_dir),
            title=model_name or Path(self.args.output_dir).name,
            base=getattr(self.model.config, "_name_or_path", "") or None,
            dataset=dataset_name,
            tags=[*self._tag_names, *given],
            method=self._name,
            paper=self._paper,
            task=self._task,
        )
