"""What tests of examples share."""

from __future__ import annotations

import datasets
import pytest

from tests.examples import local_hub


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    return local_hub.make(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def local_hub_directory(hub_folder, tmp_path, monkeypatch):
    """The working directory is a hub of tiny models and reviews; see tests/examples/local_hub."""
    folder = local_hub.linked(hub_folder, tmp_path / "work")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(folder)
    return folder
