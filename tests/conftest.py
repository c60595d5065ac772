"""Fixtures of all rooms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test reads or fills the user's cache; processes that tests start inherit the setting."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["FEDVLM_CACHE"] = str(path)
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photographs and reference outputs that stands beside the repository."""
    path = Path(__file__).resolve().parents[1].parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (photographs and reference outputs)")
    return path
