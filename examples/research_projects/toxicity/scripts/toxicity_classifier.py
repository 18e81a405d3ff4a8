"""How rude a text is, by a sequence classifier with a label for each of two answers."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

NAME = "facebook/roberta-hate-speech-dynabench-r4-target"
POLITE, RUDE = "nothate", "hate"  # its labels


class ToxicityClassifier:
    """A classifier whose labels are `nothate` and `hate`.

    Args:
        name: hub name or folder.
        device: where it computes; 16-bit on a GPU.
    """

    def __init__(self, name: str, device: torch.device | str) -> None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype=dtype)
        self.model = model.to(device).eval()
        labels = self.model.config.label2id
        if {POLITE, RUDE} - labels.keys():
            raise SystemExit(
                f"{name} has the labels {sorted(labels)}; {POLITE} and {RUDE} are needed"
            )
        self.polite, self.rude = labels[POLITE], labels[RUDE]

    @torch.no_grad()
    def logits(self, texts: list[str], batch_size: int = 64) -> torch.Tensor:
        """(N, 2) fp32 on the CPU: a column for each label."""
        found = []
        for start in range(0, len(texts), batch_size):
            batch = self.tokenizer(
                texts[start : start + batch_size],
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(self.model.device)
            found.append(self.model(**batch).logits.float().cpu())
        return torch.cat(found)

    def politeness(self, texts: list[str]) -> torch.Tensor:
        """(N,) the logit of `nothate`: the reward."""
        return self.logits(texts)[:, self.polite]

    def toxicity(self, texts: list[str]) -> torch.Tensor:
        """(N,) the probability of `hate`."""
        return self.logits(texts).softmax(1)[:, self.rude]
