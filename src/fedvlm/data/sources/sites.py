"""Photographs that are elsewhere: every client's at a site of its own (`fedvlm site`), none in this process."""

from __future__ import annotations

from typing import Annotated, Literal, NoReturn

from pydantic import Field

from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.settings import PhotographData
from fedvlm.errors import FedvlmError


class SitesData(PhotographData):
    """What all sites of a federation agree on. Where a site's images lie is in its own `site.toml`."""

    source: Literal["sites"]
    classes: Annotated[list[str], Field(min_length=1)]
    """Class names in the order of their label ids, the same at all sites."""

    def load(self, seed: int, decode_cache: DecodeCache) -> NoReturn:
        """Raise `FedvlmError`: there is nothing to load here."""
        raise FedvlmError(
            'data.source = "sites": the images are at sites. Begin the federation (fedvlm federation init), or give '
            "data.source and data.path to play it with images that lie here"
        )
