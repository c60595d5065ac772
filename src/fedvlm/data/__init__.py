"""Images with their labels, and how they are split and dealt to clients.

`load_source` reads a data set, `federate` makes a `Federation` of it: what each client trains on and is tested on.
"""

from __future__ import annotations

from fedvlm.data import remember
from fedvlm.data.assembly import federate, validated
from fedvlm.data.federation import Client, Federation
from fedvlm.data.record import Image, Record, Source
from fedvlm.data.remember import Remembered
from fedvlm.data.settings import DataSource

__all__ = ["Client", "DataSource", "Federation", "Image", "Record", "Source", "federate", "load_source", "validated"]


def load_source(config: DataSource, seed: int, *, is_kept: bool = True) -> Source:
    """All records of the configured data, every image checked. The seed matters to sources that are `seeded` only.

    Image files that were found sound are remembered in the user's cache by their digests, unless `is_kept` is false.
    Raises FedvlmError, naming the file and what to do, for data that cannot be used.
    """
    return config.load(seed, remember.opened() if is_kept and config.on_disk else Remembered())
