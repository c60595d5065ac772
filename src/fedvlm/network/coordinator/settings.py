"""`federation.toml`: who takes part, how long a round may take, which carrier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError

from fedvlm import overrides
from fedvlm.config import Count, Section, problems
from fedvlm.errors import FedvlmError, listed
from fedvlm.network import seal
from fedvlm.network.site.settings import SITE_NAME

FILE = "federation.toml"
SiteName = Annotated[str, Field(pattern=f"^{SITE_NAME}$")]


Carriers = Literal["folder", "flower", "nvflare", "flower_simulation"]
"""What lies between a coordinator and sites."""
CARRIERS: tuple[str, ...] = get_args(Carriers)
SIMULATED: Carriers = "flower_simulation"
"""Plays any experiment with simulated clients; the others play an experiment between sites."""


class FederationSettings(Section):
    """All settings of a federation. Relative paths begin at its folder."""

    experiment: str = "experiment.json"
    """File of the experiment, the same that every site has."""
    sites: Annotated[list[SiteName], Field(min_length=1)]
    """Names of all sites. Which of them train in a round is drawn from this list."""
    carrier: Carriers = "folder"
    exchange: str = "exchange"
    """Folder with a mailbox for each site (`carrier = "folder"`)."""
    keys: str = "keys"
    """Folder with a key for each site, `SITE.key`; the messages of a site without one have no seal."""
    superlink: str = "127.0.0.1:9093"
    """Address of Flower's SuperLink (`carrier = "flower"`)."""
    certificate: str | None = "certificates/ca.crt"
    """Certificate of the authority that signed the SuperLink's; none: the line is not encrypted, for trying only."""
    client_cpus: Count = 1
    """Processors of a worker (`carrier = "flower_simulation"`): as many workers start as there is room for."""
    client_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a worker, or a part of one."""
    kit: str = "kit"
    """Folder of the administrator's startup kit (`carrier = "nvflare"`)."""
    user: str = "admin@nvidia.com"
    """The administrator's name in the kit."""
    least: Count = 1
    """Least number of replies with which a round goes on."""
    deadline: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which a round goes on without the sites that have not replied; it waits longer for `least`."""
    max_norm: Annotated[float, Field(gt=0)] = 1e4
    """Largest Euclidean norm of the tensors of one reply together."""
    max_bytes: Count = 64_000_000
    """Most bytes of one reply."""


def read_keys(settings: FederationSettings) -> dict[str, bytes]:
    """The sites' keys. Raises `FedvlmError` for a file that holds none."""
    files = {name: Path(settings.keys) / f"{name}.key" for name in settings.sites}
    found = {}
    for name, file in files.items():
        if file.exists():
            try:
                found[name] = seal.read_key(file)
            except (OSError, ValueError) as error:
                raise FedvlmError(f"{file} holds no key of a site: {error}") from None
    return {name: key for name, key in found.items() if key is not None}


def read(path: Path) -> FederationSettings:
    """The settings of a `federation.toml`, with absolute paths. Raises `FedvlmError` with every problem."""
    here = path.resolve().parent
    try:
        found = FederationSettings.model_validate(overrides.read_toml(path))
    except ValidationError as error:
        raise FedvlmError("\n".join(f"{path}: {each}" for each in problems(error, FederationSettings))) from None
    if len({name.casefold() for name in found.sites}) < len(found.sites):
        raise FedvlmError(f"{path}: sites = {listed(found.sites)} names one twice")
    if found.least > len(found.sites):
        raise FedvlmError(f"{path}: least = {found.least}, but there are {len(found.sites)} sites")
    places = {
        key: str(here / Path(getattr(found, key)).expanduser()) for key in ("experiment", "exchange", "keys", "kit")
    }
    if found.certificate is not None:
        places["certificate"] = str(here / Path(found.certificate).expanduser())
    return found.model_copy(update=places)
