"""Durable state of a run: after every round the server's and the trained clients' tensors, or nothing of that round.

A round's tensors go into two files of their own (`server-0007`, `clients-0007`), then `checkpoint.json` is replaced:
it names the round, the file that holds each client's newest tensors, their digests, and the ledger's length. A crash
before that last step leaves the previous round's checkpoint whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fedvlm import durable, tensors
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Section
from fedvlm.federation.engine import State
from fedvlm.tensors import Named

FileName = Annotated[str, Field(pattern=r"^[\w-]+\.safetensors$")]
"""Of this folder: no path."""


class _Entry(Section):
    file: FileName
    digest: str


class _Manifest(Section):
    round: int
    server: _Entry
    clients: dict[str, _Entry]
    ledger_bytes: int


@dataclass
class Checkpoint:
    """The checkpoint folder of one method and seed."""

    folder: Path

    @property
    def manifest(self) -> Path:
        """The file whose replacement makes a round durable."""
        return self.folder / "checkpoint.json"

    def save(self, state: State, trained: Iterable[str], ledger_bytes: int) -> None:
        """Make `state` durable; `trained` names the clients whose tensors changed in this round."""
        last: dict[str, Any] = self._read() if self.manifest.exists() else {"server": {"file": ""}, "clients": {}}
        held = last["clients"]
        mark = f"{state.round:04d}"
        if last["server"]["file"] == f"server-{mark}.safetensors":
            mark += "b"  # this round is stored already: never overwrite files that the manifest names
        server, clients = f"server-{mark}.safetensors", f"clients-{mark}.safetensors"
        changed = {name: state.personal[name] for name in trained if name in state.personal}
        tensors.save(self.folder / server, state.server)
        if changed:
            tensors.save(self.folder / clients, _joined(changed))
        held |= {name: {"file": clients, "digest": tensors.digest(own)} for name, own in changed.items()}
        durable.write_json(
            self.manifest,
            {"round": state.round, "server": {"file": server, "digest": tensors.digest(state.server)},
             "clients": held, "ledger_bytes": ledger_bytes},
        )  # fmt: skip
        self._sweep({server, *(entry["file"] for entry in held.values())})

    def load(self) -> tuple[State, int] | None:
        """The last durable state and the ledger's length then; None before the first round."""
        if not self.manifest.exists():
            return None
        table = self._read()
        server = self._checked(table["server"], tensors.load(self.folder / table["server"]["file"]))
        files = {
            entry["file"]: _split(tensors.load(self.folder / entry["file"])) for entry in table["clients"].values()
        }
        personal = {
            name: self._checked(entry, files[entry["file"]].get(name, {})) for name, entry in table["clients"].items()
        }
        return State(table["round"], server, personal), table["ledger_bytes"]

    def _read(self) -> dict[str, Any]:
        table = durable.read_json(self.manifest)
        try:
            return _Manifest.model_validate(table).model_dump()
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise FedvlmError(f"{self.manifest} is damaged at '{where}': start again with --overwrite") from None

    def _checked(self, entry: dict[str, str], found: Named) -> Named:
        if tensors.digest(found) != entry["digest"]:
            raise FedvlmError(f"{self.folder / entry['file']} is damaged: start the run again with --overwrite")
        return found

    def _sweep(self, needed: set[str]) -> None:
        for file in self.folder.iterdir():
            # Temporary files of a killed process go too.
            if file.name not in needed and file != self.manifest:
                file.unlink(missing_ok=True)


def _joined(clients: dict[str, Named]) -> Named:
    return {f"{name}/{tensor}": value for name, own in clients.items() for tensor, value in own.items()}


def _split(joined: Named) -> dict[str, Named]:
    result: dict[str, Named] = {}
    for name, value in joined.items():
        client, _, tensor = name.partition("/")
        result.setdefault(client, {})[tensor] = value
    return result
