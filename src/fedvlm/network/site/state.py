"""A site's private tensors on disk: one file for each method and seed, replaced as a whole.

The file holds the tensors after the last visit and those before it, what was received, and the reply that was given.
A server that asks again, because the reply was lost or because it died, gets the same reply without another training.
One that asks for the same round with other tensors is answered from the tensors before that round.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError

from fedvlm import durable
from fedvlm.config import Section
from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named, equal

BEFORE, AFTER, REPLY = "before.", "after.", "reply"
RECEIVED, MEASURED, TAUGHT = "received.", "measured.", "taught."


class _Head(Section):
    version: Literal[1] = 1
    round: Annotated[int, Field(ge=0)]
    trained: list[Annotated[int, Field(ge=0)]]
    request: str
    same: list[str] = Field(default=[])
    """Parts that are equal to what was received."""
    had_before: bool
    had_after: bool


@dataclass(frozen=True)
class Stored:
    """What is stored after a visit."""

    round: int
    """The visit's round."""
    trained: list[int]
    """The rounds, from 0, in which the client has trained."""
    request: str
    """Digest of the message that was answered."""
    before: Named | None
    """The client's tensors before this visit; None before its first training."""
    after: Named | None
    received: Named
    """What was received in this visit."""
    measured: Named
    """What was received in the last visit that is not the one after the last round: with it, a client is measured after
    training."""
    taught: Named
    """What was received for the last training that began with tensors of the server (not of a later local round)."""
    reply: bytes


class StateFolder:
    """The site's folder of private state."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        """Make the folder, for its owner only."""
        durable.make_folder(self.path)
        try:
            self.path.chmod(0o700)
        except OSError as error:
            raise FedvlmError(f"{self.path} cannot be kept for its owner only: {error.strerror}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for one process. Raises `FedvlmError` if the site runs already."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FedvlmError(
                    f"this site runs already (its state {self.path} is in use): stop the other process, or give this "
                    "one a state folder of its own"
                ) from None
            for old in self.path.glob("*/.*.safetensors.*"):  # private tensors that a killed process was writing
                old.unlink(missing_ok=True)
            yield

    def file(self, experiment: str, method: str, seed: int) -> Path:
        """The file of a method with a seed."""
        word = re.sub(r"[^\w.-]+", "_", method)[:60]
        mark = hashlib.sha256(method.encode()).hexdigest()[:8]
        return self.path / experiment[:16] / f"{word}-{mark}-seed-{seed}.safetensors"

    def visits(self, experiment: str, method: str, seed: int) -> int:
        """Number of visits that were begun. Raises `FedvlmError` for a damaged file."""
        path = self.file(experiment, method, seed).with_suffix(".visits")
        try:
            return int(path.read_text())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise FedvlmError(f"{path} is damaged ({error}): write the number of visits into it") from None

    def count_visit(self, experiment: str, method: str, seed: int, number: int) -> None:
        """Store the number of visits that were begun."""
        durable.write_text(self.file(experiment, method, seed).with_suffix(".visits"), f"{number}\n", private=True)

    def forget(self, experiment: str) -> list[Path]:
        """Put the state of experiments whose digest begins so aside, so that they begin anew; returns its folders.

        Nothing is deleted. Raises `FedvlmError`.
        """
        found = [path for path in sorted(self.path.glob("*")) if re.fullmatch(r"[0-9a-f]{16}", path.name)
                 and path.name.startswith(experiment[:16])]  # fmt: skip
        if not found or not experiment:
            raise FedvlmError(f"{self.path} holds no state of an experiment whose digest begins with '{experiment}'")
        moved = [path.with_name(f"{path.name}.forgotten-{time.strftime('%Y%m%dT%H%M%S')}") for path in found]
        for path, there in zip(found, moved, strict=True):
            path.rename(there)
        return moved

    def load(self, experiment: str, method: str, seed: int) -> Stored | None:
        """What was stored, or None. Raises `FedvlmError` for a damaged file."""
        path = self.file(experiment, method, seed)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, "pt") as file:
                head = _Head.model_validate(json.loads((file.metadata() or {})["site"]))
                # Copies: tensors of a file may be unaligned, and products of unaligned matrices round differently.
                held = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                order = json.loads(file.metadata()["order"])
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, ValidationError) as error:
            raise FedvlmError(f"{path} is damaged ({error}): put it back from a backup, or delete it to begin anew"
                              ) from None  # fmt: skip
        reply = held.pop(REPLY).numpy().tobytes()
        parts = {
            part: {name.removeprefix(part): held[name] for name in order if name.startswith(part)}
            for part in (BEFORE, AFTER, RECEIVED, MEASURED, TAUGHT)
        }
        parts |= dict.fromkeys(head.same, parts[RECEIVED])
        before, after = parts[BEFORE] if head.had_before else None, parts[AFTER] if head.had_after else None
        received = parts[RECEIVED], parts[MEASURED], parts[TAUGHT]
        return Stored(head.round, head.trained, head.request, before, after, *received, reply)

    def save(self, experiment: str, method: str, seed: int, stored: Stored) -> None:
        """Replace what is stored."""
        held = {BEFORE + name: tensor for name, tensor in (stored.before or {}).items()}
        held |= {AFTER + name: tensor for name, tensor in (stored.after or {}).items()}
        received = {RECEIVED: stored.received, MEASURED: stored.measured, TAUGHT: stored.taught}
        same = [part for part in (MEASURED, TAUGHT) if equal(received[part], stored.received)]
        for part in received.keys() - set(same):
            held |= {part + name: tensor for name, tensor in received[part].items()}
        order = list(held)
        held[REPLY] = torch.frombuffer(bytearray(stored.reply), dtype=torch.uint8)
        head = _Head(
            round=stored.round, trained=stored.trained, request=stored.request, same=same,
            had_before=stored.before is not None, had_after=stored.after is not None,
        )  # fmt: skip
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in held.items()}
        data = safetensors.torch.save(plain, {"site": head.model_dump_json(), "order": json.dumps(order)})
        path = self.file(experiment, method, seed)
        durable.make_folder(path.parent)
        durable.write_bytes(path, data, private=True)
