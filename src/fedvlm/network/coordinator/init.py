"""`fedvlm federation init`: everything that a coordinator hands out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from fedvlm import durable, experiment, overrides, presets
from fedvlm.data import federate
from fedvlm.data.sources.scenes import ScenesData
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.network import example, frames, seal
from fedvlm.network.coordinator import certificates
from fedvlm.network.coordinator.run import check_playable
from fedvlm.network.coordinator.settings import FILE, SIMULATED
from fedvlm.network.site.settings import SITE_NAME

APPS = Path(__file__).parents[1] / "carriers"


def prepare(
    what: str, words: Sequence[str], folder: Path, carrier: str, *, drawn: bool
) -> tuple[Experiment, dict[str, Path]]:
    """The experiment, and with `drawn` the folders of drawn images, by site. Raises `FedvlmError`."""
    settings = overrides.apply_words(presets.settings(what), list(words))
    if not drawn or carrier == SIMULATED:
        chosen = experiment.parse(settings)
        check_playable(chosen, carrier)
        return chosen, {}
    given = experiment.parse(settings)
    if not isinstance(given.data, ScenesData):
        raise FedvlmError("--example draws the sites' images: it takes an experiment on drawn scenes")
    seed = given.seeds[0]
    chosen = experiment.parse(example.as_sites(settings, given.data, seed))
    return chosen, example.draw_sites(given.data, seed, folder / "example")


def write(
    folder: Path, chosen: Experiment, sites: Sequence[str], carrier: str, images: dict[str, Path] | None = None
) -> list[Path]:
    """Write the folder of a federation; returns its files. Raises `FedvlmError` where one is already."""
    if (folder / FILE).exists():
        raise FedvlmError(f"{folder / FILE} is there already: change it, or name another folder")
    if carrier == SIMULATED:
        seed = chosen.seeds[0]
        sites = [client.name for client in federate(chosen.load_source(seed), chosen, seed).clients]
    for name in sites:
        if not re.fullmatch(SITE_NAME, name):
            raise FedvlmError(f"--sites: '{name}' is no name of a site: letters, digits, '_', '.' and '-' only")
    if not sites:
        raise FedvlmError("no site is named: --sites north,south (each site's own name for itself)")
    durable.make_folder(folder)
    durable.write_json(folder / "experiment.json", chosen.resolved())
    durable.write_text(folder / FILE, federation_toml(sites, carrier))
    files = [folder / "experiment.json", folder / FILE]
    if carrier == "folder":
        for name in sites:
            for part in ("to", "from"):
                durable.make_folder(folder / "exchange" / name / part)
    if carrier != "folder":
        app = folder / carrier
        parts = ["flower_app", "flower_simulation_app"] if carrier == SIMULATED else [f"{carrier}_app"]
        for part in parts:  # a simulation has Flower's server app and a client app of its own
            shutil.copytree(APPS / part, app, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        # The app is whole by itself: nodes get it from the server, and need nothing of fedvlm for it.
        shutil.copyfile(str(frames.__file__), app / "fedvlm_carrier" / "frames.py")
        files.append(app)
    if carrier != SIMULATED:
        for name in sites:
            durable.write_text(folder / "keys" / f"{name}.key", seal.new_key() + "\n", private=True)
        files.append(folder / "keys")
    if carrier == "flower":
        files += certificates.write(folder / "certificates", sites)
    text = (
        simulation_readme(folder, chosen, len(sites))
        if carrier == SIMULATED
        else readme(folder, chosen, sites, carrier, images or {})
    )
    durable.write_text(folder / "README.md", text)
    return [*files, folder / "README.md"]


def federation_toml(sites: Sequence[str], carrier: str) -> str:
    """The text of a `federation.toml`."""
    lines = {
        "folder": 'exchange = "exchange"            # a folder that all sites can reach, with a mailbox for each\n',
        "flower": 'superlink = "127.0.0.1:9093"     # address of the SuperLink\n'
        'certificate = "certificates/ca.crt"   # of the authority that signed its certificate\n',
        "nvflare": 'kit = "kit"                      # folder of the administrator\'s startup kit\n'
        'user = "admin@nvidia.com"        # its name\n',
        SIMULATED: "client_cpus = 1                  # processors of a worker\nclient_gpus = 0\n",
    }
    return f"""# fedvlm federation run DIR
experiment = "experiment.json"   # the same file at every site; its digest is what sites approve
sites = {json.dumps(list(sites))}
carrier = "{carrier}"
{lines.get(carrier, "")}least = {len(sites)}                        # a round needs as many replies ..
deadline = 600.0                 # .. and goes on after so many seconds without the others
max_norm = 1e4                   # of the tensors of one reply together
max_bytes = 64_000_000           # of one reply
"""


def readme(folder: Path, chosen: Experiment, sites: Sequence[str], carrier: str, images: dict[str, Path]) -> str:
    """What the coordinator sends to the sites, with the exact commands."""
    first = sites[0]
    own = images.get(first)
    data = str(own) if own else "PHOTOGRAPHS"
    carries = {
        "folder": f"$ fedvlm site carry EXCHANGE/{first} --socket {first}/carrier/site.sock    # as another user",
        "flower": (
            "$ flower-supernode --superlink HOST:9093 --root-certificates ca.crt \\\n"
            f"    --auth-supernode-private-key {first}.key --node-config 'socket=\"/srv/{first}/carrier/site.sock\"'"
            "    # as another user"
        ),
        "nvflare": "$ ./start.sh    # of the site's NVFlare kit, as another user, with FEDVLM_SITE_SOCKET set",
    }[carrier]
    return f"""# {chosen.name}: a federation between {len(sites)} sites

Methods {", ".join(chosen.methods)}; {chosen.rounds} rounds; seeds {", ".join(map(str, chosen.seeds))}.
Experiment {chosen.digest()}

## At each site

Each site gets `experiment.json` and its own key, `keys/{first}.key` for {first}, by a way that others cannot read.
Install fedvlm, and read `experiment.json`. Nothing is sent before the last two commands.

```console
$ fedvlm site init {data} --out {first} --name {first} --key {first}.key --experiment experiment.json
$ fedvlm site check experiment.json --site {first}/site.toml
$ fedvlm site approve experiment.json --site {first}/site.toml
```

`check` prints exactly what would leave; `approve` prints it too, asks, and adds the experiment to the policy. Then, as
the user who owns the photographs, and as another user who owns nothing:

```console
$ fedvlm site serve --site {first}/site.toml
{carries}
```

## At the coordinator

```console
$ fedvlm federation run {folder}
```

Killed at any moment, it continues with `--resume`.
"""


def simulation_readme(folder: Path, chosen: Experiment, clients: int) -> str:
    """What to do with the folder of a simulation."""
    return f"""# {chosen.name}: a simulation with {clients} clients

```console
$ fedvlm federation run {folder}
```

Workers start on this machine, as many as it has room for; with RAY_ADDRESS set, on that Ray cluster, whose machines
have fedvlm installed, see the folder `{folder / "state"}` and read the same images.
"""
