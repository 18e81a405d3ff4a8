"""The README.md that is written beside a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
}


def write(
    folder: Path,
    title: str,
    base: str | None,
    dataset: str | None,
    tags: Sequence[str],
    method: str,
    paper: Mapping[str, str],
    task: str = "text-generation",
) -> None:
    """Write the card.

    Args:
        folder: where README.md goes.
        title: the model's name.
        base: name or path of the model it started from; a local path is not shown.
        dataset: name of the dataset.
        tags: for the hub.
        method: name of the algorithm.
        paper: `title` and `id` (of arXiv) of its paper; may be empty.
        task: what the model does, as transformers' pipelines name it.
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
        use=_USE[task].format(title=title),
        paper=source,
        transformers_version=transformers.__version__,
    )
    folder.mkdir(parents=True, exist_ok=True)
    ModelCard(f"---\n{data.to_yaml()}\n---\n{body}").save(folder / "README.md")
