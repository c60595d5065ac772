"""NVFlare: the carrier's job, submitted to a server with the administrator's kit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path

from fedvlm.errors import FedvlmError
from fedvlm.network.carriers.pump import PumpCarrier
from fedvlm.network.carriers.submitted import SubmittedCarrier

PATIENCE = 60.0
"""Seconds after which a job ends for the sake of sites that came too late for it; twice as long the next time."""


def start(
    folder: Path, pump: PumpCarrier, kit: Path, user: str, least: int, tell: Callable[[str], None]
) -> SubmittedCarrier:
    """A carrier over the server of this kit; its job starts with `least` sites. Raises `FedvlmError`."""
    submit = folder / "nvflare" / "submit.py"
    if not submit.is_file():
        raise FedvlmError(f"{submit} is missing: fedvlm federation init DIR EXPERIMENT --carrier nvflare")
    if util.find_spec("nvflare") is None:
        raise FedvlmError("NVFlare is not installed beside fedvlm: pip install 'fedvlm[nvflare]'")
    if not kit.is_dir():
        raise FedvlmError(f"{kit} is no folder: kit in federation.toml names the administrator's startup kit")
    pump.patience = PATIENCE
    command = [sys.executable, str(submit), str(kit), user, str(pump.path), str(least)]
    return SubmittedCarrier(pump, "NVFlare", command, os.environ, tell)
