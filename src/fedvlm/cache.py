"""The user's cache folder. It may be deleted at any time, and only its owner can read it."""

from __future__ import annotations

import os
from pathlib import Path


def folder(kind: str) -> Path:
    """The folder `kind` in `$FEDVLM_CACHE`, or in `fedvlm` below `$XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("FEDVLM_CACHE") or f"{home}/fedvlm").expanduser() / kind


def make(path: Path) -> None:
    """Create a folder and missing parents, for the owner only. Raises OSError."""
    for place in (*reversed(path.parents), path):
        if not place.is_dir():
            place.mkdir(mode=0o700, exist_ok=True)
