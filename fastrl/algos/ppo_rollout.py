"""Around PPO's `train()` form: prompts, responses, scores, samples to look at, and files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from fastrl.algos import ppo_train_parts as parts
from fastrl.algos.ppo_samples import Row, SampleGenerations, show
from fastrl.models.actor_critic import PolicyAndValue, Responses, require_token_values
from fastrl.models.adapters import use_adapter
from fastrl.models.embeddings import vocabulary_size
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.models.pooled import prepare_rewards, rewards
from fastrl.rollout.completion import Request
from fastrl.rollout.plan import Plan
from fastrl.rollout.prompts import limits, row_seeds
from fastrl.train.trainer import Trainer

_VALUE_MODEL = "value_model"  # folder of a checkpoint
_SAMPLE_TEMPERATURE = 0.01  # of the answers that are shown


class PPORollout(Trainer):
    """A `Trainer` of a policy and its value model, with what it samples from and is scored by.

    Checkpoints and `save_model` hold the policy as `from_pretrained` loads it; a checkpoint has the
    value model beside it, in `value_model/`.
    """

    processing_class: Any  # a tokenizer
    train_dataset: Any
    optimizer: Any
    _signature_columns: Any

    def _begin(self, made: parts.Parts) -> None:
        """Place the models that are not trained, and what a batch needs."""
        args = self.args
        self.policy_model, self.value_model = made.policy, made.value_model
        self.ref_model = made.ref_model
        if made.ref_model is not None:
            prepare_policy(made.ref_model)
            self.ref_model = parts.placed(made.ref_model, self.accelerator)
        prepare_rewards(made.reward_model)
        self.reward_model = parts.placed(made.reward_model, self.accelerator)
        stop = self.processing_class.eos_token_id if args.stop_token else args.stop_token_id
        self.stop_token_id: int | None = stop
        self._waiting: list[list[int]] = []  # prompts of a batch whose others are to come
        self._ratios: list[torch.Tensor] = []  # of a batch's micro-batches so far
        if args.num_sample_generations and self.eval_dataset is not None:
            every = max(1, args.num_total_batches // args.num_sample_generations)
            self.add_callback(SampleGenerations(self, every))

    def _make_ready(self, model: nn.Module) -> None:
        assert isinstance(model, PolicyAndValue)
        prepare_policy(model.policy)
        require_token_values(model.value_model)

    # --- prompts ---------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Prompts in random order, of each pass as many as make whole batches."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        whole = len(dataset) // self.args.batch_size * self.args.batch_size
        return RandomSampler(dataset, num_samples=whole)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of prompts; `gradient_accumulation_steps` of them are answered at once."""
        self._waiting, self._ratios = [], []
        size = self._train_batch_size
        self._train_batch_size = size * self.args.num_mini_batches
        try:
            return super().get_train_dataloader()
        finally:
            self._train_batch_size = size

    def get_total_train_batch_size(self, args: Any) -> int:
        """Responses that a step of the run learns from."""
        return args.batch_size

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [parts.COLUMN, "attention_mask"]

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """As the evaluation dataset given at construction."""
        policy = self.accelerator.unwrap_model(self.model).policy
        return parts.prompts("eval_dataset", dataset, self.processing_class, policy, self.args)

    # --- responses -------------------------------------------------------------------------------

    def _respond(
        self, model: nn.Module, prompts: list[list[int]], temperature: float
    ) -> list[tuple[int, ...]]:
        """One response to each prompt, the stop or padding token that ends it included."""
        args, pad = self.args, self.processing_class.pad_token_id
        asked = {
            "do_sample": True,
            "temperature": temperature,
            "top_k": 0,
            "top_p": 1.0,
            "max_new_tokens": args.response_length,
            "eos_token_id": [pad] if self.stop_token_id is None else [self.stop_token_id, pad],
            "pad_token_id": pad,
        }
        plan = Plan.of(model, None, asked, self.processing_class)
        policy = self.accelerator.unwrap_model(model).policy
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        seeds = row_seeds(
            (args.seed << 40) + self.state.global_step * world + rank, len(prompts), 1
        )
        most = limits(policy, plan.config, prompts)
        requests = [
            Request(tuple(ids), own, (limit,))
            for ids, own, limit in zip(prompts, seeds, most, strict=True)
        ]
        answers = plan.answers(requests, args.local_rollout_forward_batch_size)
        return [completion.token_ids for (completion,) in answers]

    def _framed(self, prompts: list[list[int]], drawn: list[tuple[int, ...]]) -> Responses:
        """The responses, each without the padding token that ended it."""
        pad = self.processing_class.pad_token_id
        counted = [ids[: ids.index(pad)] if pad in ids else ids for ids in drawn]
        width = self.args.response_length if self.stop_token_id is None else max(map(len, drawn))
        return Responses.of(prompts, counted, width, self.accelerator.device)

    def _eos_counts(self, drawn: list[tuple[int, ...]], width: int) -> list[int]:
        """EOS tokens in each row of the frame; where EOS pads, padding is EOS."""
        eos, pad = self.processing_class.eos_token_id, self.processing_class.pad_token_id
        fill = 1 if eos == pad else 0
        return [ids.count(eos) + fill * (width - len(ids)) for ids in drawn]

    @torch.no_grad()
    def _scores(self, responses: Responses) -> torch.Tensor:
        """(B,) fp32: what the reward model says of prompt and response."""
        known = vocabulary_size(self.accelerator.unwrap_model(self.reward_model))
        highest = int(responses.ids.max())
        if known is not None and highest >= known:
            raise ValueError(
                f"reward_model has embeddings for {known} tokens, but a row holds token "
                f"{highest}: it was made for another tokenizer"
            )
        return rewards(self.reward_model, responses.tokens(), responses.ends)

    def _reference_logp(self, model: nn.Module, responses: Responses) -> torch.Tensor:
        """(B, R) log-probabilities under the reference."""
        temperature = self.args.temperature
        if self.ref_model is not None:
            found = logprobs(self.ref_model, responses.tokens(), temperature)
            return responses.frame(found.logp)
        policy = self.accelerator.unwrap_model(model).policy
        with use_adapter(policy, self.args.ref_adapter_name):
            return responses.frame(logprobs(model, responses.tokens(), temperature).logp)

    # --- samples and evaluation ------------------------------------------------------------------

    def _eval_sets(self, dataset: Any) -> dict[str, Dataset]:
        if isinstance(dataset, Mapping):
            return dict(dataset)
        return {} if dataset is None else {"": dataset}

    def _samples(self, dataset: Dataset, most: int | None) -> list[Row]:
        """Nearly greedy answers to the first prompts, of all processes, with their scores."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        rows = dataset.select(range(len(dataset) if most is None else min(most, len(dataset))))
        prompts = [list(ids) for ids in rows[parts.COLUMN]]
        # A rank without a row answers one along: a model spread over ranks needs them all.
        mine = prompts[rank::world] or prompts[:1]
        drawn = self._respond(self.model_wrapped, mine, _SAMPLE_TEMPERATURE)
        scores = self._scores(self._framed(mine, drawn)).tolist()
        decode = self.processing_class.decode
        found: list[Row] = [
            {
                "query": decode(prompt, skip_special_tokens=True),
                "model response": decode(list(ids)),
                "score": score,
            }
            for prompt, ids, score in zip(mine, drawn, scores, strict=True)
        ][: len(prompts[rank::world])]
        return gather_object(found) if world > 1 else found

    def generate_completions(self, sampling: bool = False) -> None:
        """Answer the evaluation prompts and show the answers, with the reward model's scores.

        They go to `output_dir/completions.jsonl`, some to the screen, and as a table to Weights &
        Biases and Comet if `args.report_to` names them. Training is unchanged by it.

        Args:
            sampling: only the first `per_device_eval_batch_size` prompts of each process.

        Raises:
            ValueError: there is no evaluation dataset.
        """
        sets = self._eval_sets(self.eval_dataset)
        if not sets:
            raise ValueError("generate_completions needs the trainer to have an eval_dataset")
        most = self.args.per_device_eval_batch_size * self.args.world_size if sampling else None
        rows = [row for dataset in sets.values() for row in self._samples(dataset, most)]
        if self.is_world_process_zero():
            show(rows, Path(self.args.output_dir), self.args.report_to, self.state.global_step)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Answer evaluation prompts, nearly greedily, and score the answers.

        Args:
            eval_dataset: prompts, or a dict of several datasets; None: those of the constructor.
            ignore_keys: has no part in it.
            metric_key_prefix: before the names of the metrics.

        Returns:
            `<prefix>_objective/scores`, their mean, and `<prefix>_runtime`; for a dict of datasets
            with the dataset's name behind the prefix.

        Raises:
            ValueError: there is no evaluation dataset.
        """
        given = self._eval_sets(eval_dataset)
        sets = {name: self.prepare_eval_dataset(dataset) for name, dataset in given.items()}
        sets = sets or self._eval_sets(self.eval_dataset)
        if not sets:
            raise ValueError("evaluate needs an eval_dataset, here or at construction")
        found: dict[str, float] = {}
        for name, dataset in sets.items():
            start = time.time()
            scores = [row["score"] for row in self._samples(dataset, None)]
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            found[f"{prefix}_objective/scores"] = sum(scores) / len(scores)
            found[f"{prefix}_runtime"] = round(time.time() - start, 4)
        was_training = self.model.training
        self.model.eval()  # these are no metrics of training
        self.log(dict(found))
        self.model.train(was_training)
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> NoReturn:
        """Not possible: prompts have no labels to predict; `evaluate` answers and scores them."""
        raise TypeError("PPO predicts nothing: evaluate(dataset) answers prompts and scores them")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what TRL logs of a batch beside its metrics: `eps`, `lr` and `episode`."""
        start_time = self._began(start_time)
        if "loss" in logs and start_time is not None:
            step, rows = self.state.global_step, self.args.batch_size
            seen = (step - self._initial_global_step) * rows
            logs["eps"] = int(seen / max(time.time() - start_time, 1e-9))
            logs["lr"] = logs["learning_rate"]
            logs["episode"] = step * rows
        super().log(logs, start_time)

    # --- files -----------------------------------------------------------------------------------

    @contextmanager
    def _as_policy(self) -> Iterator[None]:
        """Inside, transformers finds the policy alone under `self.model`."""
        both = self.model
        self.model = self.accelerator.unwrap_model(both).policy
        try:
            yield
        finally:
            self.model = both

    def _spread(self) -> bool:
        """Whether an engine keeps both models' weights in files of its own."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if state_dict is not None:
            mark = "policy."
            own = {k[len(mark) :]: v for k, v in state_dict.items() if k.startswith(mark)}
            state_dict = own
        with self._as_policy():
            super()._save(output_dir, state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy; in a checkpoint the value model too."""
        super().save_model(output_dir, _internal_call)
        if output_dir is None or not _internal_call or self._spread():
            return
        if self.args.should_save:
            value_model: Any = self.accelerator.unwrap_model(self.model).value_model
            value_model.save_pretrained(Path(output_dir) / _VALUE_MODEL)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._spread():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        folder = Path(resume_from_checkpoint) / _VALUE_MODEL
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"resume_from_checkpoint: found no weights in {folder}")
        with self._as_policy():
            super()._load_from_checkpoint(resume_from_checkpoint)
        value_model = self.accelerator.unwrap_model(self.model).value_model
        state = {name: tensor for file in files for name, tensor in load_file(file).items()}
        parts.restore(value_model, state)

    def _load_best_model(self) -> None:
        if self._spread():
            super()._load_best_model()
            return
        with self._as_policy():
            super()._load_best_model()
