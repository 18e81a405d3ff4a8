"""The README.md that is written beside a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard, ModelCardData

_BODY = """
# {title}

{origin} trained with **{method}** by fastrl.

```python
{use}
```

{paper}Versions: transformers {transformers_version}.
"""

# What a model of this task is used for.
_USE = {
    "text-generation": """from transformers import pipeline

write = pipeline("text-generation", model="{title}")
print(write("...", max_new_tokens=128)[0]["generated_text"])""",
    "text-classification": """from transformers import pipeline

judge = pipeline("text-classification", model="{title}", function_to_apply="none")
print(judge("a question and an answer")[0]["score"])""",
    "token-classification": """from transformers import pipeline

judge = pipeline("token-classification", model="{title}")
print(judge("a question, a step\\n")[-1])  # the class of the token that ends the step""",
}


def made(
    title: str,
    base: str | None,
    dataset: str | None,
    tags: Sequence[str],
    method: str,
    paper: Mapping[str, str],
    task: str = "text-generation",
    name: str | None = None,
    notes: str = "",
) -> ModelCard:
    """The card of a trained model.

    Args:
        title: the model's name.
        base: name or path of the model it started from; a local path is not shown.
        dataset: name of the dataset.
        tags: for the hub.
        method: name of the algorithm.
        paper: `title` and `id` (of arXiv) of its paper; may be empty.
        task: what the model does, as transformers' pipelines name it.
        name: what it is loaded by; None: the title.
        notes: Markdown that comes after the paper, each paragraph ended by an empty line.
    """
    if base is not None and Path(base).exists():
        base = None
    data = ModelCardData(
        library_name="transformers",
        model_name=title,
        base_model=base,
        datasets=None if dataset is None else [dataset],
        tags=sorted(set(tags)),
        pipeline_tag=task,
    )
    origin = "A model" if base is None else f"[{base}](https://huggingface.co/{base})"
    source = ""
    if paper:
        source = f"Method: [{paper['title']}](https://arxiv.org/abs/{paper['id']}).\n\n"
    body = _BODY.format(
        title=title,
        origin=origin,
        method=method,
        use=_USE[task].format(title=name or title),
        paper=source + notes,
        transformers_version=transformers.__version__,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def write(folder: Path, **about: Any) -> None:
    """Write the card of `made(**about)` to `folder/README.md`."""
    card = made(**about)
    folder.mkdir(parents=True, exist_ok=True)
    card.save(folder / "README.md")


def generate_model_card(
    base_model: str | None,
    model_name: str,
    hub_model_id: str,
    dataset_name: str | None,
    tags: Sequence[str],
    wandb_url: str | None = None,
    trackio_url: str | None = None,
    trainer_name: str = "fine-tuning",
    trainer_citation: str | None = None,
    template_file: str | None = None,
    paper_title: str | None = None,
    paper_id: str | None = None,
    comet_url: str | None = None,
) -> ModelCard:
    """A model card, under TRL's arguments.

    Args:
        base_model: the model that was trained.
        model_name: the card's title.
        hub_model_id: what the model is loaded by.
        dataset_name: what it was trained on.
        tags: for the hub.
        wandb_url, trackio_url, comet_url: where the run can be looked at.
        trainer_name: the method.
        trainer_citation: BibTeX of it.
        template_file: must be None; there is one form, which names fastrl.
        paper_title, paper_id: of the method, its id on arXiv.

    Raises:
        ValueError: for a template_file.
    """
    if template_file is not None:
        raise ValueError(
            f"template_file={template_file!r} belongs to another library; leave it out, or use "
            "huggingface_hub.ModelCard.from_template"
        )
    runs = {"Weights & Biases": wandb_url, "Trackio": trackio_url, "Comet": comet_url}
    notes = "".join(f"Run: [{where}]({url}).\n\n" for where, url in runs.items() if url)
    if trainer_citation is not None:
        notes += f"```bibtex\n{trainer_citation.strip()}\n```\n\n"
    return made(
        title=model_name,
        base=base_model,
        dataset=dataset_name,
        tags=["generated_from_trainer", *tags],
        method=trainer_name,
        paper={"title": paper_title or "", "id": paper_id} if paper_id else {},
        name=hub_model_id,
        notes=notes,
    )


def trl_sanitze_kwargs_for_tagging(
    model: Any, tag_names: list[str], kwargs: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Keywords of `push_to_hub` with tags added to those in it; None stays None.

    Args:
        model: gets the tag `unsloth` too if its config says that Unsloth changed it.
        tag_names: the tags to add.
        kwargs: changed in place.
    """
    if kwargs is None:
        return None
    config = getattr(model, "config", None)
    own = ["unsloth"] if getattr(config, "unsloth_version", None) is not None else []
    given = kwargs.get("tags") or []
    kwargs["tags"] = [*([given] if isinstance(given, str) else given), *tag_names, *own]
    return kwargs
