"""Images with their labels, and how they are split and dealt to clients.

`load_source` reads a data set, `federate` makes a `Federation` of it: what each client trains on and is tested on.
"""

from __future__ import annotations

from fedvlm.data import decode_cache
from fedvlm.data.assembly import federate, federate_validation
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.federation import Client, Federation
from fedvlm.data.record import Image, Record, Source
from fedvlm.data.settings import DataSource

__all__ = [
    "Client",
    "DataSource",
    "Federation",
    "Image",
    "Record",
    "Source",
    "federate",
    "federate_validation",
    "load_source",
]


def load_source(config: DataSource, seed: int, *, use_cache: bool = True) -> Source:
    """All records of the configured data, every image checked. The seed matters to sources that are `seeded` only.

    Digests of image files that were decoded without error are stored in the user's cache, unless `use_cache` is false.
    Raises FedvlmError, naming the file and what to do, for data that cannot be used.
    """
    return config.load(seed, decode_cache.open_cache() if use_cache and config.on_disk else DecodeCache())
