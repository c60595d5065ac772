"""`fedvlm site init`: look at photographs and write a commented `site.toml`, with services for both users."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fedvlm import durable
from fedvlm.data.build import parse_split
from fedvlm.data.files import SUFFIXES
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment
from fedvlm.network import seal
from fedvlm.network.site.place import check_federated
from fedvlm.network.site.settings import FILE, SITE_NAME

KEY = "site.key"
"""Name of the file of the key in the site's folder."""


@dataclass(frozen=True)
class Looked:
    """What lies in a folder, or in a CSV."""

    source: str
    """The lines of `[data]`."""
    labels: list[str]
    images: int
    splits: list[str]


def look(path: Path) -> Looked:
    """The layout of a folder of class folders (with or without train, val, test above), or of a CSV's columns."""
    if path.is_file():
        return _look_at_manifest(path)
    if not path.is_dir():
        raise FedvlmError(f"{path} is no folder and no CSV file: give the folder that holds the class folders")
    images = [each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file()]
    if not images:
        raise FedvlmError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
    parts = [each.relative_to(path).parts for each in images]
    splits = sorted({each[0] for each in parts if len(each) == 3 and parse_split(each[0])})
    depth = 3 if splits else 2
    fitting = [each for each in parts if len(each) == depth]
    if len(fitting) < len(parts) / 2:
        raise FedvlmError(
            f"{path}: most images do not lie in class folders (class/image, or train/class/image), but for example at "
            f"{'/'.join(parts[0])}: move them, or write a CSV with the columns image and label"
        )
    labels = sorted({each[-2] for each in fitting})
    if len(labels) == 1 and (tables := sorted(path.glob("*.csv"))):
        raise FedvlmError(f"{path} has one folder of images and a table: name the table, {listed(map(str, tables))}")
    source = f'source = "folder"\npath = {json.dumps(str(path.resolve()))}\nlayout = "class"\n'
    return Looked(source, labels, len(fitting), splits)


def _look_at_manifest(path: Path) -> Looked:
    import csv

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FedvlmError(f"{path} is not a readable CSV file: {error}") from None
    columns = list(rows[0]) if rows else []
    usual = {"image": ("image", "path", "file", "filename"), "label": ("label", "class", "category"),
             "split": ("split", "set")}  # fmt: skip
    found = {key: next((c for c in columns if c.strip().lower() in names), None) for key, names in usual.items()}
    if found["image"] is None or found["label"] is None:
        raise FedvlmError(f"{path} needs a column 'image' and a column 'label'; its columns are {listed(columns)}")
    lines = [f'source = "manifest"\npath = {json.dumps(str(path.resolve().parent))}\nmanifest = "{path.name}"\n']
    lines += [f"{key} = {json.dumps(column)}\n" for key, column in found.items() if column is not None]
    labels = Counter(row[found["label"]].strip() for row in rows if row[found["label"]])
    splits = sorted({row[found["split"]] for row in rows}) if found["split"] else []
    return Looked("".join(lines), sorted(labels), sum(labels.values()), splits)


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
    rename, left, missing = mapping(looked.labels, classes) if chosen else ({}, [], [])
    lines = [
        f"# {looked.images:,} images in {len(looked.labels)} classes"
        + (f", split into {listed(looked.splits)}" if looked.splits else "") + ".",
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
        looked.source.rstrip(),
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
