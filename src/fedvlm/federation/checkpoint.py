"""Durable state of a run: after every round the server's and the trained clients' tensors, or nothing of that round.

Tensors go into files of their own (`server-0007`, `clients-0012`), then `checkpoint.json` is replaced: it names the
round, the file that holds each client's newest tensors, their digests, and the ledger's length. A crash before that
last step leaves the previous round's checkpoint whole. The same files are where a run of many clients keeps what has
no room in memory.
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
from fedvlm.federation.simulation import FederationState
from fedvlm.tensors import Named

PART_BYTES = 2**25
"""Bytes of clients' tensors from which on a file is written: bounds the copies that writing makes."""


class _StoredTensors(Section):
    """Tensors in a file of this folder (no path), and their digest."""

    file: Annotated[str, Field(pattern=r"^(server|clients)-\w+\.safetensors$")]
    digest: str


class _Manifest(Section):
    round: int
    server: _StoredTensors
    clients: dict[str, _StoredTensors]
    ledger_bytes: int


class ClientTensors(MutableMapping[str, Named]):
    """Clients' tensors by name: the newest in memory up to `limit_bytes`, the others only in the folder's files.

    Files are numbered, through all copies, and never changed: a copy (the round before) stays what it is while tensors
    are added, until `Checkpoint.save` sweeps what only it needs. A file is needed until all of its clients have newer
    tensors. Memory besides: what is not written yet, and the file that was read last (about PART bytes each).
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.stored: dict[str, _StoredTensors] = {}
        self.memory: dict[str, Named] = {}
        self.unwritten: dict[str, int] = {}
        """Bytes of what no file holds yet."""
        self.numbers = count(1)
        """Of the files to come."""
        self.page: tuple[str, dict[str, Named]] = "", {}
        """The file read last: clients are asked for in the order in which they were written."""

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
        """Bring what no file holds yet into one."""
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
    """The checkpoint folder of one method and seed; of clients' tensors so many bytes stay in memory besides."""

    folder: Path
    limit_bytes: int = 2**30

    @property
    def manifest(self) -> Path:
        """The file whose replacement makes a round durable."""
        return self.folder / "checkpoint.json"

    def empty_clients(self) -> ClientTensors:
        """Nobody yet, to be filled by a run that is made durable here; it writes over no file in use."""
        return self._clients(self._read() if self.manifest.exists() else None)

    def save(self, state: FederationState, ledger_bytes: int) -> None:
        """Make `state` durable. Of `ClientTensors` of this folder only new tensors are written, of others all."""
        held = state.personal
        if not isinstance(held, ClientTensors) or held.folder != self.folder:
            held = self.empty_clients()
            held.update(state.personal)
        held.write()
        server = f"server-{state.round:04d}.safetensors"
        if self.manifest.exists() and self._read().server.file == server:
            # This round is stored already: a file that the manifest names is never written over.
            server = f"server-{state.round:04d}b.safetensors"
        tensors.save(self.folder / server, state.server, private=True)
        entry = _StoredTensors(file=server, digest=tensors.digest(state.server))
        manifest = _Manifest(round=state.round, server=entry, clients=held.stored, ledger_bytes=ledger_bytes)
        durable.write_json(self.manifest, manifest.model_dump(), private=True)
        self._sweep({server, *(entry.file for entry in held.stored.values())})

    def load(self) -> tuple[FederationState, int] | None:
        """The last durable state, all of it checked, and the ledger's length then; None before the first round."""
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
            # Temporary files of a killed process go too.
            if file.name not in used and file != self.manifest:
                file.unlink(missing_ok=True)


def _check_digest(folder: Path, entry: _StoredTensors, loaded: Named) -> Named:
    if tensors.digest(loaded) != entry.digest:
        raise FedvlmError(f"{folder / entry.file} is damaged: start the run again with --overwrite")
    return loaded


def _join(clients: dict[str, Named]) -> Named:
    """One dictionary, by `client/tensor`; a slash in a client's name is written as %2F."""
    named = {name.replace("%", "%25").replace("/", "%2F"): own for name, own in clients.items()}
    return {f"{name}/{key}": tensor for name, own in named.items() for key, tensor in own.items()}


def _split(joined: Named) -> dict[str, Named]:
    result: dict[str, Named] = {}
    for name, tensor in joined.items():
        client, _, key = name.partition("/")
        result.setdefault(client.replace("%2F", "/").replace("%25", "%"), {})[key] = tensor
    return result


def _last_number(manifest: _Manifest) -> int:
    """The highest number of a file of clients that is in use."""
    numbers = [Path(entry.file).stem.removeprefix("clients-") for entry in manifest.clients.values()]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)
