"""Images with their labels, and how they are split and dealt to clients.

`load_source` reads a data set, `federate` makes a `Federation` of it: what each client trains on and is tested on.
"""

from __future__ import annotations

from fedvlm.data import remember
from fedvlm.data.assembly import federate, validated
from fedvlm.data.cifar import cifar_source
from fedvlm.data.coop import coop_source
from fedvlm.data.federation import Client, Federation
from fedvlm.data.folder import folder_source
from fedvlm.data.hub import hub_source
from fedvlm.data.manifest import manifest_source
from fedvlm.data.record import Image, Record, Source
from fedvlm.data.remember import Remembered
from fedvlm.experiment import AnyData, CifarData, CoopData, FolderData, HubData, ManifestData, ScenesData

__all__ = ["Client", "Federation", "Image", "Record", "Source", "federate", "load_source", "validated"]


def load_source(config: AnyData, seed: int, *, is_kept: bool = True) -> Source:
    """All records of the configured data, every image checked. The seed matters to drawn scenes only.

    Image files that were found sound are remembered in the user's cache by their digests, unless `is_kept` is false.
    Raises FedvlmError, naming the file and what to do, for data that cannot be used.
    """
    remembered = remember.opened() if is_kept and not isinstance(config, ScenesData) else Remembered()
    match config:
        case FolderData():
            return folder_source(config, remembered)
        case ManifestData():
            return manifest_source(config, remembered)
        case CoopData():
            return coop_source(config, remembered)
        case CifarData():
            return cifar_source(config)
        case HubData():
            return hub_source(config, remembered)
    from fedvlm.data.scenes import scenes_source  # it imports `record` from here

    return scenes_source(config, seed)
