"""A trainer's batches where each prompt is answered several times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader

from fastrl.train import online_setup
from fastrl.train.agreement import agreed
from fastrl.train.batch import Batch
from fastrl.train.experience import Experience
from fastrl.train.online_config import OnlineConfig
from fastrl.train.repeat import RepeatSampler, repeat_iterable_dataset
from fastrl.train.trainer import Trainer

Rows = list[dict[str, Any]]


def as_they_are(rows: Rows) -> Rows:
    """The collator: rows stay dicts until answers to their prompts have been drawn."""
    return rows


class Step(list[Rows]):
    """The rows of an optimizer step; iterating over it draws the answers and gives its passes.

    transformers restores the generators' states of a checkpoint between asking for an optimizer
    step's batches and iterating over them, and what is drawn has to be drawn after that.
    """

    def __init__(self, batches: list[Rows], passes: Callable[[list[Rows]], list[Batch]]) -> None:
        super().__init__(batches)
        self._make = passes

    def __iter__(self) -> Iterator[Any]:
        """The passes, as many as there were batches."""
        return iter(self._make(list(super().__iter__())))


class PromptTrainer(Trainer):
    """A `Trainer` that takes generation batches: rows of prompts, each G times."""

    args: OnlineConfig
    _micro_step: int  # micro-steps taken in this training
    _slices: list[Experience]  # of the present generation batch
    _owned = False  # whether an environment gives the prompts

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt"]

    def get_train_dataloader(self) -> DataLoader:
        """Generation batches of rows, each as often as it is trained on."""
        self._micro_step, self._slices = 0, []
        args, dataset = self.args, self.train_dataset
        if isinstance(dataset, IterableDataset):
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=self._order_seed)
            dataset = repeat_iterable_dataset(dataset, *self._repeats)
        return self._get_dataloader(
            dataset=dataset,
            description="Training",
            batch_size=self._train_batch_size * args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """As transformers'; a stream that ends before the first step has too few prompts.

        Raises:
            ValueError: on every process, if so.
        """
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state.global_step == 0 and isinstance(self.train_dataset, IterableDataset):
            with agreed(self.accelerator, "reading train_dataset"):
                self._require_prompts(found[0])
        return found

    def _require_prompts(self, batches: list[Any]) -> None:
        if batches:
            return
        args = self.args
        needed = args.generation_batch_size // args.num_generations
        raise ValueError(
            f"train_dataset ended before it gave {needed} prompts, which a generation batch takes "
            f"(generation_batch_size={args.generation_batch_size}, num_generations="
            f"{args.num_generations}), so there was nothing to train on; lower "
            "per_device_train_batch_size or steps_per_generation"
        )

    @property
    def _order_seed(self) -> int:
        """Of the order in which prompts are taken."""
        args = self.args
        return args.seed if args.data_seed is None else args.data_seed

    @property
    def _repeats(self) -> tuple[int, int, int]:
        """(completions a prompt, prompts of a generation batch, uses of it)."""
        args = self.args
        group = args.num_generations
        uses = args.num_iterations * args.steps_per_generation
        return group, args.generation_batch_size // group, uses

    @property
    def group_size(self) -> int:
        """G: completions of each prompt; in evaluation it may be another number."""
        args = self.args
        return args.num_generations if self.model.training else self._eval_group

    @property
    def _eval_group(self) -> int:
        return self.args.num_generations_eval or self.args.num_generations

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        dataset = self.train_dataset if dataset is None else dataset
        shuffle = self.args.shuffle_dataset
        return RepeatSampler(dataset, *self._repeats, shuffle=shuffle, seed=self._order_seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> RepeatSampler:
        return RepeatSampler(eval_dataset, self._eval_group, seed=self._order_seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As transformers'; of a stream each prompt is repeated too."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(self._each_repeated(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `get_eval_dataloader`."""
        return super().get_test_dataloader(self._each_repeated(test_dataset))

    def _each_repeated(self, dataset: Any) -> Any:
        """A stream with each prompt repeated; of a dataset the sampler does that."""
        self.args.require_whole_groups_in_eval(self._eval_group)
        if not isinstance(dataset, IterableDataset):
            return dataset
        return repeat_iterable_dataset(dataset.shuffle(seed=self._order_seed), self._eval_group)

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """Rows are prepared when answers are drawn."""
        online_setup.check_rows("eval_dataset", dataset, self._owned)
        return dataset
