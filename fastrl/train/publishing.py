"""What leaves a `step()`-style trainer: statistics to trackers, models to folders and the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from fastrl.legacy import warn_once
from fastrl.train.hub import HubTrainer

_MODEL_CARD = """---
library_name: fastrl
tags: [fastrl, ppo, reinforcement-learning, text-generation]
---
# {model_name}

Fine-tuned from `{base}` with fastrl's PPO. A value head is saved beside the language model.

```python
from fastrl import AutoModelForCausalLMWithValueHead

model = AutoModelForCausalLMWithValueHead.from_pretrained("{model_id}")
```

`transformers.AutoModelForCausalLM` loads the same folder without the value head.
"""


class PublishingTrainer(HubTrainer):
    """Trackers, model card, saving and pushing."""

    config: Any
    model: Any
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    is_distributed: bool
    current_step: int

    def _start_trackers(self) -> None:
        config = self.config.to_dict()
        if self.config.log_with != "tensorboard":  # tensorboard takes flat values only
            config = {"trl_ppo_trainer_config": config}
        self.accelerator.init_trackers(
            self.config.tracker_project_name, config=config, init_kwargs=self.config.tracker_kwargs
        )

    def log_stats(
        self,
        stats: Mapping[str, Any],
        batch: Mapping[str, Any],
        rewards: Any,
        columns_to_log: tuple[str, ...] | list[str] = ("query", "response"),
    ) -> None:
        """Send a step's statistics to the trackers, with `env/reward_{mean,std,dist}` of all ranks.

        Args:
            stats: what `step` returned, and anything of the caller's.
            batch: columns of this rank's rows; wandb gets `columns_to_log` as a table.
            rewards: the raw scores, a tensor (B,) or a list of numbers or one-element tensors.

        Raises:
            ValueError: with wandb, if a column to log is not in the batch.
        """
        if not isinstance(rewards, torch.Tensor):
            rewards = torch.tensor([float(r) for r in rewards])
        device = self.accelerator.device
        rewards = self.accelerator.gather(rewards.float().to(device)).flatten().cpu()
        logs: dict[str, Any] = dict(stats)
        if self.config.log_with == "wandb":
            logs.update(self._game_log(batch, rewards, columns_to_log))
        elif not {"query", "response"} & set(batch):
            warn_once("batch holds neither 'query' nor 'response': no game log is written")
        if not self.accelerator.is_main_process:
            return
        logs = {
            k: v.float() if isinstance(v, torch.Tensor) and v.dtype == torch.bfloat16 else v
            for k, v in logs.items()
        }
        logs["env/reward_mean"] = rewards.mean().item()
        logs["env/reward_std"] = rewards.std().item()
        logs["env/reward_dist"] = rewards.numpy()
        step = None
        if self.config.log_with == "tensorboard":
            self.current_step += 1
            step = self.current_step
        self.accelerator.log(logs, step=step)

    def _game_log(
        self, batch: Mapping[str, Any], rewards: torch.Tensor, columns: tuple[str, ...] | list[str]
    ) -> dict[str, Any]:
        missing = [c for c in columns if c not in batch]
        if missing:
            raise ValueError(f"columns_to_log: {missing} not in the batch's {sorted(batch)}")
        values = [list(batch[c]) for c in columns]
        if self.is_distributed:
            values = [gather_object(v) for v in values]
        if not self.accelerator.is_main_process:
            return {}
        import wandb

        rows = [list(row) for row in zip(*values, rewards.tolist(), strict=True)]
        return {"game_log": wandb.Table(columns=[*columns, "reward"], rows=rows)}

    def _card(self, model_name: str | None, model_id: str) -> str:
        """The text of the model card."""
        config = getattr(self.accelerator.unwrap_model(self.model), "config", None)
        base = getattr(config, "_name_or_path", "") or "a local model"
        return _MODEL_CARD.format(model_name=model_name, base=base, model_id=model_id)

    def _save_pretrained(self, save_directory: str | Path) -> None:
        self.accelerator.unwrap_model(self.model).save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)
        self.create_model_card(str(save_directory))

    def _show_tokens(self, tokens: torch.Tensor, masks: torch.Tensor) -> None:
        """Print tokens (L,) with the counted ones of masks (L,) highlighted."""
        from rich import print as rich_print
        from rich.text import Text

        text = Text()
        for token, mask in zip(tokens.tolist(), masks.tolist(), strict=True):
            style = "black on deep_sky_blue1" if mask else "black on cyan3"
            text.append(str(self.tokenizer.decode(token)), style=style)
            text.append(" ")
        rich_print(text)
