"""Durable state of a run: after every round the server's and the trained clients' tensors, or nothing of that round.

A round's tensors go into two files of their own (`server-0007`, `clients-0007`), then `checkpoint.json` is replaced:
it names the round, the file that holds each client's newest tensors, their digests, and the ledger's length. A crash
before that last step leaves the previous round's checkpoint whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedvlm import durable, tensors
from fedvlm.errors import FedvlmError
from fedvlm.federation.engine import State
from fedvlm.tensors import Named


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
        held = self._read()["clients"] if self.manifest.exists() else {}
        server, clients = f"server-{state.round:04d}.safetensors", f"clients-{state.round:04d}.safetensors"
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

    def _read(self) -> dict:  # type: ignore[type-arg]
        table = durable.read_json(self.manifest)
        if not isinstance(table, dict) or not {"round", "server", "clients", "ledger_bytes"} <= table.keys():
            raise FedvlmError(f"{self.manifest} is damaged: start the run again with --overwrite")
        return table

    def _checked(self, entry: dict[str, str], found: Named) -> Named:
        if tensors.digest(found) != entry["digest"]:
            raise FedvlmError(f"{self.folder / entry['file']} is damaged: start the run again with --overwrite")
        return found

    def _sweep(self, needed: set[str]) -> None:
        for file in self.folder.glob("*.safetensors"):
            if file.name not in needed:
                file.unlink(missing_ok=True)


def _joined(clients: dict[str, Named]) -> Named:
    return {f"{name}/{tensor}": value for name, own in clients.items() for tensor, value in own.items()}


def _split(joined: Named) -> dict[str, Named]:
    result: dict[str, Named] = {}
    for name, value in joined.items():
        client, _, tensor = name.partition("/")
        result.setdefault(client, {})[tensor] = value
    return result
