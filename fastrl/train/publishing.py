"""What leaves a `step()`-style trainer: statistics to trackers, models to folders and the hub."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub import create_repo, upload_folder, whoami
from transformers import PreTrainedTokenizerBase

from fastrl.legacy import closest, warn_once

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


class PublishingTrainer:
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

    def create_model_card(self, path: str, model_name: str | None = "TRL Model") -> None:
        """Write `path/README.md`; offline, where the author is unknown, warn and write nothing."""
        try:
            user = whoami()["name"]
        except Exception as error:  # offline, logged out, a proxy: all mean "author unknown"
            reason = f"{type(error).__name__}: offline, or not logged in"
            warnings.warn(
                f"no model card: the hub did not say who you are ({reason})", stacklevel=2
            )
            return
        config = getattr(self.accelerator.unwrap_model(self.model), "config", None)
        text = _MODEL_CARD.format(
            model_name=model_name,
            base=getattr(config, "_name_or_path", "") or "a local model",
            model_id=f"{user}/{Path(path).name}",
        )
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "README.md").write_text(text, encoding="utf-8")

    def _save_pretrained(self, save_directory: str | Path) -> None:
        self.accelerator.unwrap_model(self.model).save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)
        self.create_model_card(str(save_directory))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_kwargs: Any,
    ) -> str | None:
        """Write model, value head, tokenizer and model card to a folder; optionally push it.

        Returns the commit's address if pushed. `push_kwargs` are those of `push_to_hub`.

        Raises:
            TypeError: for an argument that `push_to_hub` does not take, before anything is written.
        """
        self._check_push_arguments(push_kwargs)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self._save_pretrained(save_directory)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or Path(save_directory).name, **push_kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push model using fastrl.",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        allow_patterns: list[str] | str | None = None,
        ignore_patterns: list[str] | str | None = None,
        delete_patterns: list[str] | str | None = None,
    ) -> str:
        """Upload model, value head, tokenizer and card to a hub repository, made if absent.

        Returns the commit's address. The arguments are those of `huggingface_hub.upload_folder`;
        `branch` is its revision.
        """
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self._save_pretrained(folder)
            return str(
                upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=commit_message,
                    token=token,
                    revision=branch,
                    create_pr=create_pr,
                    allow_patterns=allow_patterns,
                    ignore_patterns=ignore_patterns,
                    delete_patterns=delete_patterns,
                )
            )

    def _check_push_arguments(self, names: Iterable[str]) -> None:
        """Refuse what `push_to_hub` would refuse later."""
        known = inspect.signature(self.push_to_hub).parameters
        if any(p.kind is p.VAR_KEYWORD for p in known.values()):
            return
        for name in names:
            if name not in known:
                raise TypeError(f"push_to_hub has no argument {name!r}{closest(name, known)}")

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
