"""`fedvlm site approve`: the one line of `site.toml` that a program changes, when its owner says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.network.site import settings

_LINE = re.compile(r"(?m)^experiments = \[[^\]]*\](?=[^\n]*$)")
"""The list in `[policy]`. (The folder of the same name above it is a string.)"""


def approve(experiment: Experiment, site: Path) -> tuple[str, Path]:
    """Add an experiment's digest to the policy, and its settings to the site's files; returns digest and file.

    All else in `site.toml` stays as it is, comments included. The experiment is the one that was shown: its file is not
    read again. Raises `FedvlmError`.
    """
    own, digest = settings.read(site), experiment.digest()
    text = site.read_text(encoding="utf-8")
    approved = [*own.policy.experiments, *({digest} - set(own.policy.experiments))]
    line = f"experiments = [{', '.join(map(json.dumps, approved))}]"
    changed, count = _LINE.subn(lambda _: line, text)
    if count != 1:
        raise FedvlmError(f"{site} has no line that begins with 'experiments = [': add to [policy]  {line}")
    file = Path(own.experiments) / f"{digest[:16]}.json"
    durable.write_json(file, experiment.resolved())
    durable.write_text(site, changed, private=True)
    if digest not in settings.read(site).policy.experiments:
        durable.write_text(site, text, private=True)
        raise FedvlmError(f"{site}: the line 'experiments = [' is not in [policy]: add there  {line}")
    return digest, file
