"""`site.toml`: what the holder of the data decides. No message can change it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedvlm import overrides
from fedvlm.config import Count, Section, problems
from fedvlm.errors import FedvlmError
from fedvlm.training.device import ComputeSection

FILE = "site.toml"
SITE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}"
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PolicySection(Section):
    """What may leave the site. Whatever breaks it is not sent."""

    experiments: list[Digest] = Field(default=[])
    """Digests of the experiments that the site takes part in (`fedvlm site check` prints them)."""
    may_leave: list[str] = Field(default=["*"])
    """Name patterns of tensors that may leave; methods send only what they declare, and this narrows it."""
    max_bytes: Count = 64_000_000
    """Most bytes of the tensors in one message."""
    max_norm: Annotated[float, Field(gt=0)] = 1e4
    """Largest Euclidean norm of the tensors of one message together."""
    metrics: list[str] | Literal["all", "none"] = "all"
    """Metrics that may leave."""
    decimals: Annotated[int, Field(ge=0, le=17)] | None = None
    """Decimals to which metrics and losses are rounded; by default they are not."""
    losses: bool = True
    """Whether the losses of the training may leave."""
    count_images: bool = True
    """Whether numbers of images may leave; if not, the site counts as one image, in training and in every metric."""
    seconds: bool = True
    """Whether the time of a training may leave."""
    visits: Count | None = None
    """Most visits of one method with one seed that are carried out, whether the site trains in them or measures, and
    whether their reply may leave or not. By default two for each round of the experiment: a visit that was interrupted
    can be asked again."""
    carrier_user: str | None = None
    """The only operating-system user whose processes may use the socket; by default every user who can open it."""


class SiteSettings(Section):
    """All settings of a site. Relative paths begin at the folder of `site.toml`."""

    name: Annotated[str, Field(pattern=f"^{SITE_NAME}$")]
    """The name under which the site is known to the others: a pseudonym if it should be."""
    state: str = "state"
    """Folder of private tensors and of the record of all that left; for the site's user only."""
    socket: str = "carrier/site.sock"
    """Unix socket on which the site answers its carrier."""
    key: str | None = None
    """File of the key that the coordinator has given to this site; messages without its seal are refused."""
    experiments: str = "experiments"
    """Folder with the files of experiments (TOML or JSON); those whose digest the policy names are played."""
    model: str | None = None
    """A local directory of the CLIP, in the place of the experiment's name of it; its digest must be the same."""
    data: dict[str, Any]
    """Where the photographs lie: `source`, `path` and what the source needs (`docs/bring-your-images.md`)."""
    compute: ComputeSection = ComputeSection()
    policy: PolicySection = PolicySection()


def read(path: Path) -> SiteSettings:
    """The settings of a `site.toml`, with absolute paths. Raises `FedvlmError` with every problem."""
    table, here = overrides.read_toml(path), path.resolve().parent
    try:
        found = SiteSettings.model_validate(table)
    except ValidationError as error:
        raise FedvlmError("\n".join(f"{path}: {each}" for each in problems(error, SiteSettings))) from None
    data = dict(found.data)
    if isinstance(data.get("path"), str):
        data["path"] = str(here / Path(data["path"]).expanduser())
    places = {key: str(here / Path(getattr(found, key)).expanduser()) for key in ("state", "socket", "experiments")}
    for name in ("model", "key"):
        if (value := getattr(found, name)) is not None:
            places[name] = str(here / Path(value).expanduser())
    return found.model_copy(update={**places, "data": data})
