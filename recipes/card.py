"""Sections of the model card that are made anew when styles or presets change."""

from __future__ import annotations

import re
from pathlib import Path

from fedvlm import durable

BY_STYLE = "### By style"
CALIBRATION = "## What it shows of CLIP"


def replace_section(path: Path, heading: str, body: str) -> None:
    """Put `body` in the place of what stands in a card between this heading and the next; SystemExit without it."""
    before, found, after = path.read_text().partition(f"\n{heading}\n")
    if not found:
        raise SystemExit(f"{path} has no heading {heading!r}")
    rest = re.search(r"(?m)^#", after)
    following = f"\n{after[rest.start() :]}" if rest else ""
    durable.write_text(path, f"{before}\n{heading}\n{body}\n{following}")
