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
from transformers import pipeline

generate = pipeline("text-generation", model="{title}")
print(generate([{{"role": "user", "content": "..."}}], max_new_tokens=128)[0])
```

{paper}Versions: transformers {transformers_version}.
"""


def write(
    folder: Path,
    title: str,
    base: str | None,
    dataset: str | None,
    tags: Sequence[str],
    method: str,
    paper: Mapping[str, str],
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
    """
    if base is not None and Path(base).exists():
        base = None
    data = ModelCardData(
        library_name="transformers",
        model_name=title,
        base_model=base,
        datasets=None if dataset is None else [dataset],
        tags=sorted(set(tags)),
    )
    origin = "A model" if base is None else f"[{base}](https://huggingface.co/{base})"
    source = ""
    if paper:
        source = f"Method: [{paper['title']}](https://arxiv.org/abs/{paper['id']}).\n\n"
    body = _BODY.format(
        title=title,
        origin=origin,
        method=method,
        paper=source,
        transformers_version=transformers.__version__,
    )
    folder.mkdir(parents=True, exist_ok=True)
    ModelCard(f"---\n{data.to_yaml()}\n---\n{body}").save(folder / "README.md")
