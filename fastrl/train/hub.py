"""Saving what a `step()`-style trainer trained to a folder, and pushing it to the hub."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import create_repo, upload_folder, whoami

from fastrl.legacy import closest


class HubTrainer:
    """`save_pretrained` and `push_to_hub`, on a subclass's `_save_pretrained` and `_card`."""

    def _save_pretrained(self, save_directory: str | Path) -> None:
        """Write everything to a folder that is there."""
        raise NotImplementedError

    def _card(self, model_name: str | None, model_id: str) -> str:
        """The text of the model card."""
        raise NotImplementedError

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
        text = self._card(model_name, f"{user}/{Path(path).name}")
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "README.md").write_text(text, encoding="utf-8")

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_kwargs: Any,
    ) -> str | None:
        """Write what was trained and a model card to a folder; optionally push it.

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
        """Upload what `save_pretrained` writes to a hub repository, made if absent.

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
