"""No weights of the user's own: what a test finds does not depend on the machine's hub cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedvlm.studies.published import inventory


@pytest.fixture(autouse=True)
def empty_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    inventory.load_weights.cache_clear()
    yield folder
    inventory.load_weights.cache_clear()
