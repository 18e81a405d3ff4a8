"""What a model and its environment have said to each other, as text and as tokens."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.text import Text


def _print(text: Text) -> None:
    Console(highlight=False).print(text, soft_wrap=True)


class TextHistory:
    """Segments by turns of the system (prompt, tools) and the model. Interface of TRL 0.7.

    Args:
        text: the first segment, the prompt.
        tokens: its ids, (L,).
        system: whether it is the system's and not the model's.

    Raises:
        ValueError: as `append_segment`.
    """

    def __init__(self, text: str, tokens: torch.Tensor, system: bool = True) -> None:
        self.system_spans: list[bool] = []  # per segment: is it the system's?
        self.text_spans: list[tuple[int, int]] = []  # per segment: where it lies in `text`
        self.token_spans: list[tuple[int, int]] = []  # and in `tokens`
        self.text = ""
        self.tokens = torch.empty(0, dtype=torch.int64, device=tokens.device)
        self.token_masks = torch.empty_like(self.tokens)  # 1 where the model wrote the token
        self.completed = False
        self.truncated = False
        self.reward: float | torch.Tensor = 0.0
        self.prompt_color = "black on grey85"
        self.system_color = "black on cyan3"
        self.model_color = "black on deep_sky_blue1"
        self.reward_color = "black on plum1"
        self.append_segment(text, tokens, system=system)

    def append_segment(self, text: str, tokens: torch.Tensor, system: bool = True) -> None:
        """Add a segment at the end.

        Args:
            text: what was said.
            tokens: its ids, (L,).
            system: whether the system and not the model said it.

        Raises:
            ValueError: if text or tokens are empty, or tokens are not 1-D.
        """
        if len(text) == 0 or tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError(
                "a segment needs a text and 1-D tokens, neither of them empty, got "
                f"{text!r:.80} and tokens of shape {tuple(tokens.shape)}"
            )
        self.text_spans.append((len(self.text), len(self.text) + len(text)))
        self.token_spans.append((len(self.tokens), len(self.tokens) + len(tokens)))
        self.system_spans.append(system)
        self.text += text
        self.tokens = torch.cat([self.tokens, tokens.to(self.tokens)])
        written = torch.full_like(self.tokens[-len(tokens) :], 0 if system else 1)
        self.token_masks = torch.cat([self.token_masks, written])

    def complete(self, truncated: bool = False) -> None:
        """Nobody says anything any more.

        Args:
            truncated: whether there was no room for more.
        """
        self.completed = True
        self.truncated = truncated

    @property
    def last_text_segment(self) -> str:
        """The text of the last segment."""
        start, end = self.text_spans[-1]
        return self.text[start:end]

    def split_query_response_tokens(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first segment (Q,), all that follows it (R,), and its mask (R,): 1 = the model's."""
        end = self.token_spans[0][1]
        return self.tokens[:end], self.tokens[end:], self.token_masks[end:]

    def _color(self, segment: int) -> str:
        if segment == 0:
            return self.prompt_color
        return self.system_color if self.system_spans[segment] else self.model_color

    def _show(self, text: Text, show_legend: bool) -> None:
        text.append(f"\n\nReward: {self.reward}", style=self.reward_color)
        _print(text)
        if show_legend:
            self.show_colour_legend()

    def show_text(self, show_legend: bool = False) -> None:
        """Print the text, coloured by who wrote it, and the reward."""
        text = Text(self.text)
        for segment, (start, end) in enumerate(self.text_spans):
            text.stylize(self._color(segment), start, end)
        self._show(text, show_legend)

    def show_tokens(self, tokenizer: Any, show_legend: bool = False) -> None:
        """Print the tokens one by one, coloured by who wrote them, and the reward.

        Args:
            tokenizer: names the tokens, by `convert_ids_to_tokens`.
            show_legend: print what the colours mean as well.
        """
        names = tokenizer.convert_ids_to_tokens(self.tokens.tolist())
        text = Text()
        for segment, (start, end) in enumerate(self.token_spans):
            for name in names[start:end]:
                text.append(name, style=self._color(segment))
                text.append(" ")
        self._show(text, show_legend)

    def show_colour_legend(self) -> None:
        """Print what the colours mean."""
        meanings = {
            "prompt": self.prompt_color,
            "system": self.system_color,
            "model": self.model_color,
            "reward": self.reward_color,
        }
        text = Text("colours:")
        for who, color in meanings.items():
            text.append(" ")
            text.append(f" {who} ", style=color)
        _print(text)
