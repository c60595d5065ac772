"""`fedvlm site approve`: the one line of `site.toml` that a program changes, when its owner says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.network.site import settings
from fedvlm.network.site.place import read_experiment

_LINE = re.compile(r"(?m)^experiments = \[[^\]]*\](?=[^\n]*$)")
"""The list in `[policy]`. (The folder of the same name above it is a string.)"""


def approve(experiment: Path, site: Path) -> tuple[str, Path]:
    """Add an experiment's digest to the policy, and its file to the site's; returns both. Raises `FedvlmError`.

    All else in `site.toml` stays as it is, comments included.
    """
    own, digest = settings.read(site), read_experiment(experiment).digest()
    text = site.read_text(encoding="utf-8")
    approved = [*own.policy.experiments, *({digest} - set(own.policy.experiments))]
    line = f"experiments = [{', '.join(map(json.dumps, approved))}]"
    changed, count = _LINE.subn(lambda _: line, text)
    if count != 1:
        raise FedvlmError(f"{site} has no line that begins with 'experiments = [': add to [policy]  {line}")
    file = Path(own.experiments) / f"{digest[:16]}{experiment.suffix}"
    durable.write_bytes(file, experiment.read_bytes())
    durable.write_text(site, changed, private=True)
    if digest not in settings.read(site).policy.experiments:
        durable.write_text(site, text, private=True)
        raise FedvlmError(f"{site}: the line 'experiments = [' is not in [policy]: add there  {line}")
    return digest, file
