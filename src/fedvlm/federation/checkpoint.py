"""Durable state of a run: after every round the tensors of the server and of all clients that have trained.

Tensors are written to new files (`server-0007`, `clients-0012`), then `checkpoint.json` is replaced. It names the
round, the file that holds each client's newest tensors, their digests, and the ledger's length. A crash before that
last step leaves the previous round's checkpoint whole. The server's file of the round before is kept as well: clients
trained with it, and personal models are made of both. A run of many clients reads the tensors that exceed its memory
from the same files.

    round 1: A, B train   clients-0001: A B                  checkpoint.json: A -> 0001, B -> 0001
    round 2: B, C train   clients-0001: A B   -0002: B C     checkpoint.json: A -> 0001, B -> 0002, C -> 0002
    round 3: A trains     clients-0002: B C   -0003: A       checkpoint.json: A -> 0003, B -> 0002, C -> 0002
                          (0001 holds no newest tensors any more: `Checkpoint.save` deletes it)
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fedvlm import durable, tensors
from fedvlm.config import Section
from fedvlm.errors import FedvlmError
from fedvlm.federation.server import ServerState
from fedvlm.federation.simulation import FederationState
from fedvlm.tensors import Named

PART_BYTES = 2**25
"""Bytes of unwritten client tensors at which a file is written; this bounds the copies made by writing."""


class _StoredTensors(Section):
    """Name of a tensor file in the checkpoint folder (no path), and the digest of the tensors of one owner in it."""

    file: Annotated[str, Field(pattern=r"^(server|clients)-\w+\.safetensors$")]
    digest: str


class _Manifest(Section):
    round: int
    server: _StoredTensors
    clients: dict[str, _StoredTensors]
    ledger_bytes: int
    before: _StoredTensors | None = None
    """The server's state before this round, with which its clients trained."""


class ClientTensors(MutableMapping[str, Named]):
    """Clients' tensors by name: keeps up to `limit_bytes` of the newest in memory, the others only in files.

    Copies (`copy.copy`: the state before a round) share the folder and the numbering of files. A file is never changed,
    so a copy stays valid while tensors are added, until `Checkpoint.save` deletes the files that only the copy uses. A
    file is in use until all of its clients have newer tensors. Additional memory: tensors that are not written yet, and
    the file that was read last (about PART_BYTES each).
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.stored: dict[str, _StoredTensors] = {}
        self.memory: dict[str, Named] = {}
        self.unwritten: dict[str, int] = {}
        """Bytes of the tensors that are in no file yet, by client."""
        self.numbers = count(1)
        """Numbers of the next files."""
        self.page: tuple[str, dict[str, Named]] = "", {}
        """Name and content of the file read last: clients are usually read in the order in which they were written."""

    def __copy__(self) -> ClientTensors:
        new = ClientTensors(self.folder, self.limit_bytes)
        new.stored, new.memory, new.unwritten = dict(self.stored), dict(self.memory), dict(self.unwritten)
        new.numbers = self.numbers
        return new

    def __iter__(self) -> Iterator[str]:
        return iter({**self.stored, **self.unwritten})

    def __len__(self) -> int:
        return len(self.stored.keys() | self.unwritten.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.stored or name in self.unwritten

    def __getitem__(self, name: str) -> Named:
        if name in self.memory:
            return self.memory[name]
        entry = self.stored[name]
        if self.page[0] != entry.file:
            self.page = entry.file, _split(tensors.load(self.folder / entry.file))
        return _check_digest(self.folder, entry, self.page[1].get(name, {}))

    def __setitem__(self, name: str, client_tensors: Named) -> None:
        self.memory.pop(name, None)  # the newest come last
        self.memory[name] = client_tensors
        self.unwritten[name] = tensors.nbytes(client_tensors)
        if sum(self.unwritten.values()) >= PART_BYTES:
            self.write()

    def __delitem__(self, name: str) -> None:
        for table in (self.stored, self.memory, self.unwritten):
            table.pop(name, None)

    def write(self) -> None:
        """Write all unwritten tensors to a new file, then drop tensors from memory down to `limit_bytes`."""
        if self.unwritten:
            file = f"clients-{next(self.numbers):04d}.safetensors"
            new = {name: self.memory[name] for name in self.unwritten}
            tensors.save(self.folder / file, _join(new), private=True)
            self.stored |= {name: _StoredTensors(file=file, digest=tensors.digest(own)) for name, own in new.items()}
            self.unwritten = {}
        excess = sum(map(tensors.nbytes, self.memory.values())) - self.limit_bytes
        for name in list(self.memory):
            if excess <= 0:
                break
            excess -= tensors.nbytes(self.memory.pop(name))


@dataclass
class Checkpoint:
    """The checkpoint folder of one method and seed; keeps up to `limit_bytes` of client tensors in memory."""

    folder: Path
    limit_bytes: int = 2**30

    @property
    def manifest(self) -> Path:
        """The file whose replacement makes a round durable."""
        return self.folder / "checkpoint.json"

    def empty_clients(self) -> ClientTensors:
        """An empty mapping of client tensors in this folder, whose new files do not overwrite any in use."""
        return self._clients(self._read() if self.manifest.exists() else None)

    def save(self, state: FederationState, ledger_bytes: int) -> None:
        """Make `state` durable. Of `ClientTensors` of this folder only new tensors are written, of others all."""
        held = state.personal
        if not isinstance(held, ClientTensors) or held.folder != self.folder:
            held = self.empty_clients()
            held.update(state.personal)
        held.write()
        server, stored = f"server-{state.round:04d}.safetensors", self._read() if self.manifest.exists() else None
        if stored is not None and stored.server.file == server:
            # This round is stored already: a file that the manifest names is never overwritten.
            server = f"server-{state.round:04d}b.safetensors"
        tensors.save(self.folder / server, state.server, private=True)
        entry = _StoredTensors(file=server, digest=tensors.digest(state.server))
        before = None
        if stored is not None and stored.round >= state.round - 1:
            before = stored.server if stored.round == state.round - 1 else stored.before
        manifest = _Manifest(
            round=state.round, server=entry, clients=held.stored, ledger_bytes=ledger_bytes, before=before
        )
        durable.write_json(self.manifest, manifest.model_dump(exclude_none=True), private=True)
        self._sweep({server, *(entry.file for entry in held.stored.values()), *([before.file] if before else [])})

    def load(self) -> tuple[FederationState, int] | None:
        """The last durable state with all digests checked, and the ledger's length; None before the first round."""
        if not self.manifest.exists():
            return None
        table = self._read()
        server = _check_digest(self.folder, table.server, tensors.load(self.folder / table.server.file))
        clients = self._clients(table)
        clients.stored = table.clients
        held = 0
        for name in clients:
            own = clients[name]
            held += tensors.nbytes(own)
            if held <= self.limit_bytes:
                clients.memory[name] = own
        return FederationState(table.round, server, clients), table.ledger_bytes

    def before(self) -> ServerState | None:
        """The server's state before the last durable round; None if it is not stored (before the second round)."""
        table = self._read() if self.manifest.exists() else None
        if table is None or table.before is None:
            return None
        loaded = tensors.load(self.folder / table.before.file)
        return ServerState(table.round - 1, _check_digest(self.folder, table.before, loaded))

    def _clients(self, manifest: _Manifest | None) -> ClientTensors:
        clients = ClientTensors(self.folder, self.limit_bytes)
        if manifest is not None:
            clients.numbers = count(_last_number(manifest) + 1)
        return clients

    def _read(self) -> _Manifest:
        table = durable.read_json(self.manifest)
        try:
            return _Manifest.model_validate(table)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise FedvlmError(f"{self.manifest} is damaged at '{where}': start again with --overwrite") from None

    def _sweep(self, used: set[str]) -> None:
        for file in self.folder.iterdir():
            # Temporary files of a killed process are deleted too.
            if file.name not in used and file != self.manifest:
                file.unlink(missing_ok=True)


def _check_digest(folder: Path, entry: _StoredTensors, loaded: Named) -> Named:
    if tensors.digest(loaded) != entry.digest:
        raise FedvlmError(f"{folder / entry.file} is damaged: start the run again with --overwrite")
    return loaded


def _join(clients: dict[str, Named]) -> Named:
    """All tensors in one dictionary by `client/tensor`; a slash in a client's name is written as %2F."""
    named = {name.replace("%", "%25").replace("/", "%2F"): own for name, own in clients.items()}
    return {f"{name}/{key}": tensor for name, own in named.items() for key, tensor in own.items()}


def _split(joined: Named) -> dict[str, Named]:
    result: dict[str, Named] = {}
    for name, tensor in joined.items():
        client, _, key = name.partition("/")
        result.setdefault(client.replace("%2F", "/").replace("%25", "%"), {})[key] = tensor
    return result


def _last_number(manifest: _Manifest) -> int:
    """The highest number of a client file in use; 0 if there is none."""
    numbers = [Path(entry.file).stem.removeprefix("clients-") for entry in manifest.clients.values()]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)
