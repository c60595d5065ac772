"""`fedvlm site init`: look at photographs and write a commented `site.toml`, with services for both users."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from fedvlm import durable
from fedvlm.data.look import Looked, look
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment
from fedvlm.network import seal
from fedvlm.network.site.place import check_federated
from fedvlm.network.site.settings import FILE, SITE_NAME

KEY = "site.key"
"""Name of the file of the key in the site's folder."""


def mapping(labels: list[str], classes: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Labels by the experiment's class names that are the same but for spelling; labels and classes without one."""

    def plain(name: str) -> str:
        return "".join(letter for letter in name.casefold() if letter.isalnum())

    by_plain = {plain(name): name for name in classes}
    found = {label: by_plain[plain(label)] for label in labels if plain(label) in by_plain}
    rename = {label: name for label, name in found.items() if label != name}
    return rename, [label for label in labels if label not in found], sorted(set(classes) - set(found.values()))


def write(
    folder: Path, images: Path, name: str, chosen: Experiment | None, user: str, carrier: str, key: Path | None = None
) -> list[Path]:
    """Write `site.toml`, the services, and a copy of the key; returns the files.

    Raises `FedvlmError` where a `site.toml` is already, and for a name or key that is none.
    """
    if (folder / FILE).exists():
        raise FedvlmError(f"{folder / FILE} is there already: change it, or name another folder")
    if not re.fullmatch(SITE_NAME, name):
        raise FedvlmError(f"--name '{name}' is no name of a site: letters, digits, '_', '.' and '-' only")
    try:
        held = seal.read_key(key)
    except (OSError, ValueError) as error:
        raise FedvlmError(f"--key {key} holds no key of a site: {error}") from None
    text = site_toml(look(images), name, chosen, carrier, held is not None)
    durable.make_folder(folder)
    for part in ("experiments", "state", "carrier"):
        durable.make_folder(folder / part)
    # Another user's carrier is let in by its group: chgrp GROUP carrier; chmod 710 carrier (the services do so).
    for part in ("state", "carrier"):
        (folder / part).chmod(0o700)
    durable.write_text(folder / FILE, text, private=True)
    files = [folder / FILE]
    if held is not None:
        durable.write_text(folder / KEY, held.hex() + "\n", private=True)
        files.append(folder / KEY)
    for file, content in services(folder.resolve(), user, carrier).items():
        durable.write_text(folder / "systemd" / file, content)
        files.append(folder / "systemd" / file)
    return files


def site_toml(looked: Looked, name: str, chosen: Experiment | None, carrier: str, has_key: bool = False) -> str:
    """The text of a `site.toml`."""
    classes = check_federated(chosen).classes if chosen else []
    rename, left, missing = mapping(sorted(looked.labels), classes) if chosen else ({}, [], [])
    lines = [
        f"# {looked.said}.",
        *(f"# look: {one}" for one in looked.oddities),
        "# Next: fedvlm site check EXPERIMENT. It sends nothing; it prints what would leave and the digest to approve.",
        "",
        f"name = {json.dumps(name)}        # how the others know this site; a pseudonym if it should be",
        'state = "state"                  # private tensors, and the record of all that left; for this user only',
        'socket = "carrier/site.sock"     # where a carrier asks; it can open nothing else',
        f"{'' if has_key else '# '}key = {json.dumps(KEY)}               # the coordinator's key for this site: other "
        "messages are refused",
        'experiments = "experiments"      # files of experiments; only those approved below are played',
        "# model = \"models/clip-vit-base-patch16\"   # a directory of the CLIP, if it is not to be fetched",
        "",
        "[data]",
        looked.toml.rstrip(),
    ]  # fmt: skip
    if rename:
        pairs = ", ".join(f"{json.dumps(label)} = {json.dumps(other)}" for label, other in rename.items())
        lines.append(f"rename = {{ {pairs} }}        # labels here by the experiment's class names")
    elif chosen is None or left:
        lines.append('# rename = { "label here" = "class of the experiment" }')
    lines += [f"# left out, because the experiment has no such class: {listed(left, 20)}"] if left else []
    lines += [f"# no image here of: {listed(missing, 20)}"] if missing else []
    lines += [
        "",
        "[compute]",
        '# device = "cuda"',
        "",
        "[policy]                         # what breaks it is not sent",
        "experiments = []                 # digests of approved experiments: fedvlm site approve EXPERIMENT",
        'may_leave = ["*"]                # name patterns of tensors; narrows what a method declares',
        "max_bytes = 64_000_000           # of the tensors in one message",
        "max_norm = 1e4                   # of the tensors in one message together",
        'metrics = "all"                  # "none", or a list such as ["local", "base"]',
        "# decimals = 3                   # metrics and losses are rounded to so many",
        "losses = true                    # whether losses of the training may leave",
        "count_images = true              # whether numbers of images may leave",
        "seconds = true                   # whether the time of a training may leave",
        "# visits = 40                    # most visits of one method with one seed; by default two for each round",
        f"{'' if carrier else '# '}carrier_user = {json.dumps(carrier or 'fedvlm-carrier')}"
        "   # the only user whose processes may use the socket",
        "",
    ]
    return "\n".join(lines)


SITE_SERVICE = """# The site: it alone reads the photographs. systemctl enable --now fedvlm-site
[Unit]
Description=fedvlm site
After=network.target

[Service]
User={user}
Group={carrier}
UMask=0077
# The folder of the socket belongs to the site, and its group may enter it.
ExecStartPre=+/usr/bin/install -d -o {user} -g {carrier} -m 0710 {folder}/carrier
ExecStart={python} -m fedvlm site serve --site {folder}/site.toml
Restart=always
RestartSec=2
NoNewPrivileges=true
ProtectSystem=strict
ReadWritePaths={folder}
PrivateTmp=true
# The site needs no network: its socket is a file. Let model name a directory, or take this away for the first start.
PrivateNetwork=true

[Install]
WantedBy=multi-user.target
"""
CARRIER_SERVICE = """# The carrier: whatever code the network brings runs here, and can open the socket only.
[Unit]
Description=fedvlm carrier
After=network-online.target fedvlm-site.service
Wants=network-online.target

[Service]
User={carrier}
Group={carrier}
Environment=FEDVLM_SITE_SOCKET={folder}/carrier/site.sock
# Put the line of your network here. Flower:
#   flower-supernode --superlink HOST:9093 --root-certificates ca.crt --auth-supernode-private-key node.key
# a folder:
#   {python} -m fedvlm site carry /mnt/exchange/NAME --socket {folder}/carrier/site.sock
ExecStart=/bin/false
Restart=always
RestartSec=5
NoNewPrivileges=true
ProtectSystem=strict
# A carrier may write here, and nowhere else: its own folder, and a mailbox if it has one.
StateDirectory=fedvlm-carrier
Environment=FLWR_HOME=/var/lib/fedvlm-carrier
# ReadWritePaths=/mnt/exchange/NAME
# Take this away if python or the site's folder lie in a home.
ProtectHome=true
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""


def services(folder: Path, user: str, carrier: str) -> dict[str, str]:
    """systemd services: the site for its user, the carrier for another one that can open nothing but the socket."""
    values = {
        "user": user or os.environ.get("USER", "fedvlm-site"), "carrier": carrier or "fedvlm-carrier", "folder": folder,
        "python": sys.executable,
    }  # fmt: skip
    return {
        "fedvlm-site.service": SITE_SERVICE.format(**values),
        "fedvlm-carrier.service": CARRIER_SERVICE.format(**values),
    }
