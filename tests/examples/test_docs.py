"""The pages of docs/algorithms are true: names, defaults, metrics, refusals, links; examples run.

`docs/algorithms/README.md` says how a page is made. An example runs as printed, in a folder that
holds tiny models under the names it loads, with rows of the datasets it names, for a few steps.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    TrainingArguments,
)

import fastrl
from fastrl.cli.main import TRAINING
from fastrl.train.diffusion_config import DiffusionConfig
from tests.algos.offline_parity import making
from tests.examples import local_hub

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "algorithms"
LONGEST = 70  # lines of a page
STEPS = 2
TOKENS = 16  # of an answer that is drawn
LENGTHS = {"max_completion_length", "max_new_tokens", "response_length"}
DENOISING = 3  # steps of an image
CODE = re.compile(r"`([^`]+)`")
NAME = re.compile(r"[\w.-]+/[\w.-]+|gpt2")  # of a model on a hub


@dataclass(frozen=True)
class Page:
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def examples(self) -> list[str]:
        return re.findall(r"^```python\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)

    @cached_property
    def imported(self) -> list[str]:
        """What the examples import of fastrl, in order."""
        return [
            alias.name
            for example in self.examples
            for node in ast.walk(ast.parse(example))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastrl")
            for alias in node.names
        ]

    def tables(self, heading: str) -> Iterator[tuple[list[str], list[list[str]]]]:
        """Headings and rows of the tables that have a column of this heading."""
        for block in re.findall(r"(?:^\|.*\n)+", self.text + "\n", re.MULTILINE):
            cells = [
                [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                for line in block.splitlines()
            ]
            if heading in cells[0]:
                yield cells[0], cells[2:]

    @property
    def options(self) -> Iterator[tuple[str, str, str]]:
        """Class, name and default of each option, as printed."""
        for headings, rows in self.tables("default"):
            named = CODE.findall(headings[0])
            configs = named or [name for name in self.imported if name.endswith("Config")]
            for row in rows:
                names, values = CODE.findall(row[0]), CODE.findall(row[headings.index("default")])
                assert names and len(values) in (1, len(names)), f"{self.path.name}: {row}"
                for name, value in zip(names, values * (len(names) // len(values)), strict=True):
                    yield configs[0], name, value

    @property
    def metrics(self) -> Iterator[tuple[str, bool]]:
        """Name of each metric, with … for any part; whether the example itself logs it."""
        for headings, rows in self.tables("metric"):
            for row in rows:
                for name in CODE.findall(row[headings.index("metric")]):
                    yield name, not row[1].startswith("with ")

    @property
    def refusals(self) -> Iterator[tuple[str, str]]:
        """Expression, and what is said of it."""
        for headings, rows in self.tables("error"):
            for row in rows:
                yield CODE.findall(row[0])[0], row[headings.index("error")].strip("`")


PAGES = [Page(path) for path in sorted(DOCS.glob("*.md")) if path.name != "README.md"]
README = Page(DOCS / "README.md")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)


@each_page
def test_a_page_is_short_and_has_each_part(page):
    lines = page.text.splitlines()
    assert len(lines) <= LONGEST
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120
    assert page.examples and all(len(text.splitlines()) <= 25 for text in page.examples)
    assert any(name.endswith(("Trainer", "Sampler")) for name in page.imported)
    assert list(page.options) and list(page.metrics) + list(page.refusals)
    assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}", page.text)


def test_the_table_has_a_row_for_each_page():
    ((_, rows),) = README.tables("trainer")
    linked = [re.search(r"\]\((\w+)\.md\)", row[0]).group(1) for row in rows]
    assert sorted(linked) == sorted(page.path.stem for page in PAGES)


def test_the_tables_trainers_are_there():
    ((headings, rows),) = README.tables("trainer")
    for row in rows:
        (name,) = CODE.findall(row[headings.index("trainer")])
        assert hasattr(fastrl, name), name


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.path.stem)
def test_commands_exist(page):
    assert set(re.findall(r"`fastrl (\w+)", page.text)) <= set(TRAINING)


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.path.stem)
def test_links_and_files_exist(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.text)
    for target in targets:
        if not target.startswith("https://"):
            assert (page.path.parent / target).exists(), target
    files = r"(?:\w[\w.-]*/)+[\w.-]+\.(?:py|md|yaml)\b"
    for name in re.findall(files, re.sub(r"\]\([^)]*\)", "", page.text)):
        assert (ROOT / name).exists(), name


def default_of(owner: Any, name: str) -> Any:
    """What an argument of a class is where it is not given."""
    if not dataclasses.is_dataclass(owner):
        return inspect.signature(owner).parameters[name].default
    (field,) = (field for field in dataclasses.fields(owner) if field.name == name)
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


@each_page
def test_defaults_are_those_of_the_class(page):
    for owner, name, printed in page.options:
        found = default_of(getattr(fastrl, owner), name)
        assert ast.literal_eval(printed) == found, f"{owner}.{name} is {found!r}, not {printed}"


def says(code: str, names: dict[str, Any], printed: str) -> None:
    """The expression raises a message that has the printed parts in order."""
    with pytest.raises((ValueError, TypeError, ImportError)) as error:
        eval(code, names)
    pattern = ".*".join(re.escape(part.strip()) for part in printed.split("…"))
    assert re.search(pattern, str(error.value), re.DOTALL), f"{code}: {error.value}"


def names_in(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def of_library(code: str) -> bool:
    """Whether the expression needs nothing that an example has made."""
    return all(name[0].isupper() and hasattr(fastrl, name) for name in names_in(code))


@each_page
@pytest.mark.filterwarnings("ignore")
def test_bad_settings_say_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code, printed in page.refusals:
        if of_library(code):
            says(code, {name: getattr(fastrl, name) for name in names_in(code)}, printed)
    assert not list(tmp_path.iterdir())


@cache
def recorded() -> set[str]:
    """Every key of what was recorded of a peer."""
    tests = ROOT / "tests"
    places = (tests / "algos", tests / "fixtures", tests / "rollout")
    texts = (path.read_text() for place in places for path in place.rglob("*.json"))
    return {key for text in texts for key in re.findall(r'"([\w/]+)": ?[\[\d-]', text)}


def pattern(metric: str) -> re.Pattern[str]:
    return re.compile(".+".join(map(re.escape, metric.split("…"))))


@each_page
def test_metrics_are_logged_somewhere(page):
    for metric, _ in page.metrics:
        assert any(map(pattern(metric).fullmatch, recorded())), f"no run has logged {metric}"


# --- examples ------------------------------------------------------------------------------------


def chat(role: str, words: str) -> dict[str, str]:
    return {"role": role, "content": words}


def question(number: int) -> list[dict[str, str]]:
    return [chat("user", f"What is {number} + 4?")]


def pairs(count: int) -> list[dict[str, Any]]:
    """Pairs of conversations that begin alike, as on the hub."""
    rows = making.rows("preference_chat", count)
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


def marked(count: int) -> list[dict[str, Any]]:
    rows = making.rows("completion_chat", count)
    return [{**row, "label": number % 3 > 0} for number, row in enumerate(rows)]


def solved(count: int) -> list[dict[str, Any]]:
    return [{"prompt": question(n), "solution": f"${n + 4}$"} for n in range(count)]


def stepwise(count: int) -> list[dict[str, Any]]:
    steps = {"completions": ["3 + 4 is 7.", "So it is 8."], "labels": [True, False]}
    return [{"prompt": f"What is {n} + 4?", **steps} for n in range(count)]


ROWS = {
    "trl-lib/Capybara": lambda n: making.rows("messages", n),
    "trl-lib/DeepMath-103K": solved,
    "trl-lib/kto-mix-14k": marked,
    "trl-lib/math_shepherd": stepwise,
    "trl-lib/tldr": lambda n: making.rows("completion", n),
    "trl-lib/ultrafeedback-prompt": lambda n: [{"prompt": question(k)} for k in range(n)],
    "trl-lib/ultrafeedback_binarized": pairs,
}


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def model_names(example: str) -> set[str]:
    """Names on a hub that an example loads models and tokenizers by."""
    tree = ast.parse(example)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    others = [
        value
        for call in calls
        if called(call) == "load_dataset" or called(call).endswith("Config")
        for value in [*call.args, *(k.value for k in call.keywords if k.arg == "output_dir")]
    ]
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in others
        if NAME.fullmatch(node.value)
    }


def save(folder: Path) -> None:
    """A tiny model of the kind that the folder's name says."""
    if "stable-diffusion" in folder.name:
        import tiny_pipeline

        tiny_pipeline.save(folder)
        return
    letters = pre_tokenizers.ByteLevel.alphabet()
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = trainers.BpeTrainer(special_tokens=[*making.SPECIAL], initial_alphabet=letters)
    inner.train_from_iterator([], special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=making.CHATML,
    )
    sizes = {**making.COMMON, "vocab_size": len(tokenizer) + 4, "intermediate_size": 64}
    config = Qwen2Config(**sizes, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """The models of the guides, hardly trained."""
    return local_hub.make(tmp_path_factory.mktemp("hub"), rows=16, used=48)


@pytest.fixture
def hub(local_hub_directory, monkeypatch):
    """hub(example): the names it loads are here, and training is short."""
    load, finish = datasets.load_dataset, TrainingArguments.__post_init__
    finish_images = DiffusionConfig.__post_init__

    def rows(name: str, *_: Any, **given: Any) -> Any:
        if name in local_hub.DATASETS:
            return load(name, **given)
        return datasets.Dataset.from_list(list(ROWS[name](16)))

    def briefly(args: Any) -> None:
        args.max_steps, args.logging_steps, args.total_episodes = STEPS, 1, None
        if hasattr(args, "temperature"):  # it draws answers
            for name in LENGTHS & vars(args).keys():
                setattr(args, name, min(getattr(args, name), TOKENS))
        finish(args)

    def few_images(config: Any) -> None:
        config.num_epochs, config.sample_num_steps = STEPS, DENOISING
        config.truncated_rand_backprop_minmax = (0, DENOISING - 1)
        finish_images(config)

    def fill(example: str) -> str:
        for name in model_names(example):
            if not (local_hub_directory / name).exists():
                save(local_hub_directory / name)
        return re.sub(r"(?m)^(for .*range)\(\d+\)", rf"\1({STEPS})", example)

    monkeypatch.setattr(datasets, "load_dataset", rows)
    monkeypatch.setattr(TrainingArguments, "__post_init__", briefly)
    monkeypatch.setattr(DiffusionConfig, "__post_init__", few_images)
    return fill


def logged(names: dict[str, Any]) -> dict[str, Any]:
    """Each metric of the run, its last value."""
    if isinstance(names.get("stats"), dict):
        return names["stats"]
    trainer = names["trainer"]
    history = trainer.state.log_history if hasattr(trainer, "state") else trainer.log_history
    return {key: value for entry in history for key, value in entry.items()}


@pytest.mark.slow
@each_page
@pytest.mark.filterwarnings("ignore")
def test_examples_run_as_printed(page, hub):
    if any("StableDiffusion" in name for name in page.imported):
        pytest.importorskip("diffusers", reason="the page trains a Stable Diffusion pipeline")
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, example in enumerate(page.examples):
        exec(compile(hub(example), f"{page.path.name}[{number}]", "exec"), names)
    for code, printed in page.refusals:
        if not of_library(code):
            says(code, names, printed)
    wanted = [metric for metric, always in page.metrics if always]
    if not wanted:
        return
    found = logged(names)
    losses = [value for key, value in found.items() if re.search(r"\bloss\b", key)]
    assert losses and all(math.isfinite(value) for value in losses)
    for metric in wanted:
        assert any(map(pattern(metric).fullmatch, found)), f"{metric} is not in {sorted(found)}"
