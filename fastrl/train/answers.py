"""What trainers on answers of a fixed dataset construct alike, with a reference or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from fastrl.data.collate_classic import not_classic
from fastrl.train import setup
from fastrl.train.config import OfflineConfig
from fastrl.train.offline import OfflineTrainer


class AnswerTrainer(OfflineTrainer):
    """A `Trainer` whose rows are prepared and collated as its class says.

    A subclass names its `_config`, how rows are prepared (`_prepare`) and collated (`_collator`);
    its constructor calls `_settled`, `_policy` and this one.

    Args:
        model: the policy, ready to train.
        args: the trainer's own config.
        data_collator: makes batches of prepared rows; None: `_collator`'s.
        train_dataset: rows as users give them.
        eval_dataset: the same, or a dict of several, or None.
        tokenizer: the policy's.
        more: further arguments of `transformers.Trainer`.
    """

    _config: ClassVar[type[OfflineConfig]]
    _architecture: ClassVar[Any] = None  # what loads a model given by name; None: as it was saved
    _prepare: Callable[[Any, Any, Any, str], Any]
    _api_generation = "1"

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None,
        train_dataset: Dataset | IterableDataset,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None,
        tokenizer: PreTrainedTokenizerBase,
        **more: Any,
    ) -> None:
        super().__init__(
            model,
            args,
            not_classic(data_collator) or self._collator(tokenizer, args),
            self._prepared(train_dataset, tokenizer, args, "train"),
            setup.each(eval_dataset, lambda rows: self._prepared(rows, tokenizer, args, "eval")),
            tokenizer,
            **more,
        )

    def _settled(self, model: Any, args: Any, dataset: Any, data_collator: Any) -> Any:
        """The trainer's own config, its dataset and collator looked at and its seed set."""
        args = self._config.of(args, setup.run_name(model, self._name))
        setup.check_collator(data_collator)
        setup.check_dataset("train_dataset", dataset, args)
        set_seed(args.seed)
        return args

    def _policy(
        self,
        model: Any,
        args: Any,
        processing_class: Any,
        quantization_config: Any,
        peft_config: Any,
    ) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        """The model to train, loaded and adapted, and its tokenizer; both agree on padding."""
        model = setup.policy(model, args, quantization_config, self._architecture)
        tokenizer = setup.tokenizer(processing_class, model, args)
        setup.set_pad_token(tokenizer, model, args)
        return setup.with_adapter(model, peft_config, args), tokenizer

    def _prepared(
        self, dataset: Any, tokenizer: PreTrainedTokenizerBase, args: Any, name: str
    ) -> Any:
        """The dataset's rows as the collator takes them."""
        return type(self)._prepare(dataset, tokenizer, args, name)

    def _collator(self, tokenizer: PreTrainedTokenizerBase, args: Any) -> Any:
        raise NotImplementedError

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """As the evaluation dataset given at construction."""
        return self._prepared(dataset, self.processing_class, self.args, "eval")
