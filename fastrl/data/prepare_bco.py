"""Answers marked good or bad -> tokens for BCO: between BOS and EOS, and cut as TRL 0.28 does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset, Value

from fastrl.data.chat import render, tokenizer_of
from fastrl.data.formats import column_names, detect_format
from fastrl.data.prepare import TOKENS, Made, first_row, main_process_first, map_rows, only
from fastrl.data.prepare_preference import eos_of
from fastrl.data.prepare_unpaired import UNPAIRED_KINDS, UnpairedRows
from fastrl.data.rows import Rows
from fastrl.data.tokenize import Encoder, over_equal

_MADE = {"prompt_ids": TOKENS, "completion_ids": TOKENS, "label": Value("bool")}
_EMBEDDED = {"embedding_ids": TOKENS}


@dataclass(frozen=True)
class Cut:
    """How a row is made to fit.

    A row longer than `max_length`, with one token set aside for a BOS and an EOS that it lacks,
    first has its prompt cut to `max_prompt_length` and then its answer to what is left.
    """

    max_length: int | None
    max_prompt_length: int | None
    truncation_mode: str  # which part of a prompt stays: keep_start or keep_end
    bos: int | None
    eos: int

    @staticmethod
    def said_by(args: Any, tokenizer: Any) -> Cut:
        """As a `BCOConfig` says."""
        ends = tokenizer.bos_token_id, tokenizer.eos_token_id
        return Cut(args.max_length, args.max_prompt_length, args.truncation_mode, *ends)

    def __call__(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]] | None:
        """Prompt from BOS on, answer up to EOS; None if the prompt leaves no room for an answer."""
        lacks_bos, lacks_eos = prompt[:1] != [self.bos], answer[-1:] != [self.eos]
        if self.max_length is not None:
            room = self.max_length - lacks_bos - lacks_eos
            if len(prompt) + len(answer) > room and self.max_prompt_length is not None:
                prompt = self._end(prompt)
            if len(prompt) + len(answer) > room:
                answer = answer[: max(room - len(prompt), 0)]
                if not answer:
                    return None
        if self.bos is not None and prompt[:1] != [self.bos]:
            prompt = [self.bos, *prompt]
        if answer[-1:] != [self.eos]:
            answer = [*answer, self.eos]
        return prompt, answer

    def _end(self, prompt: list[int]) -> list[int]:
        if self.truncation_mode == "keep_start":
            return prompt[: self.max_prompt_length]
        return prompt[-self.max_prompt_length :]


@dataclass(frozen=True)
class _BCORows(UnpairedRows):
    """As for KTO, then cut; and each prompt's tokens for the model that embeds it."""

    cut: Cut | None = None
    embedding_tokenizer: Any = None

    def __call__(self, rows: Rows) -> Made:
        columns, origin = super().__call__(rows)  # none is dropped, without a max_length
        if self.embedding_tokenizer is not None:
            columns = {**columns, "embedding_ids": self._embedded(rows)}
        assert self.cut is not None
        pairs = zip(columns["prompt_ids"], columns["completion_ids"], strict=True)
        cut = [self.cut(prompt, answer) for prompt, answer in pairs]
        left = [row for row, found in enumerate(cut) if found is not None]
        made = only(columns, left)
        made["prompt_ids"] = [found[0] for found in cut if found is not None]
        made["completion_ids"] = [found[1] for found in cut if found is not None]
        return made, [origin[row] for row in left]

    def _embedded(self, rows: Rows) -> list[list[int]]:
        prompts, _, _, origin = self.parts(rows)
        if self.conversational:

            def rendered(some: list[Any], **options: Any) -> list[str]:
                options["add_generation_prompt"] = True
                return render(some, self.processing_class, **options)

            prompts = over_equal(rendered, prompts, rows.repeated(origin).template_arguments())
        return Encoder(self.embedding_tokenizer).texts(prompts, add_special_tokens=False)


def prepare_bco(
    dataset: Dataset | IterableDataset,
    processing_class: Any,
    args: Any,
    name: str = "train",
    embedding_tokenizer: Any = None,
) -> Dataset | IterableDataset:
    """Prompt, answer and label of every row, as TRL 0.28's BCOTrainer prepares them.

    Every prompt begins with BOS, if the tokenizer has one, and every answer ends with EOS, cut or
    not. Pairs become two rows, of each 1000 pairs first all chosen answers. Rows whose prompt
    leaves no room within `max_length` are dropped and counted.

    Args:
        dataset: `prompt`, `completion` and `label`, or pairs (see `prepare_preference`), texts or
            messages; `tools` and `chat_template_kwargs` per row; or what this returned.
        processing_class: tokenizer, or processor with one.
        args: a `BCOConfig`; read are max_length, max_prompt_length, truncation_mode,
            dataset_num_proc, remove_unused_columns.
        name: what to call the dataset.
        embedding_tokenizer: of the model that embeds prompts; None: there is none.

    Returns:
        Columns `prompt_ids`, `completion_ids`, `label`, with an embedding tokenizer
        `embedding_ids`, and `ref_logps` where given; all others too if
        `remove_unused_columns=False`.

    Raises:
        ValueError: rows or columns that do not fit; they are named.
    """
    row = first_row(dataset, name)
    columns = column_names(dataset)
    made = _MADE if embedding_tokenizer is None else {**_MADE, **_EMBEDDED}
    if set(made) <= set(columns):
        return dataset
    found = detect_format(columns, row, wanted=UNPAIRED_KINDS)
    eos_of(processing_class)
    kept = [column for column in ("ref_logps",) if column in columns]
    step = _BCORows(
        processing_class=processing_class,
        kind=found.kind,
        conversational=found.conversational,
        eos=None,
        max_length=None,
        cut=Cut.said_by(args, tokenizer_of(processing_class)),
        embedding_tokenizer=embedding_tokenizer,
    )
    with main_process_first():
        return map_rows(
            dataset,
            step,
            made,
            name=name,
            num_proc=args.dataset_num_proc,
            kept=kept if args.remove_unused_columns else columns,
            fold=1 if found.kind == "unpaired_preference" else 2,
            lost=f"the prompt alone fills max_length={args.max_length} tokens",
        )
