"""The server's state on disk after every round: one file, replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
from pydantic import Field, ValidationError

from fedvlm import durable
from fedvlm.config import Section
from fedvlm.errors import FedvlmError
from fedvlm.federation.records import from_json
from fedvlm.federation.visits import Progress

FILE = "server.safetensors"


class _Head(Section):
    version: Literal[1] = 1
    round: Annotated[int, Field(ge=0)]
    ended: bool
    ledger_bytes: Annotated[int, Field(ge=0)]
    open: dict[str, Any] | None
    """The record of the last round, if it lacks metrics."""
    order: list[str]


def save(folder: Path, state: Progress, ledger_bytes: int) -> None:
    """Replace the checkpoint."""
    head = _Head(
        round=state.round, ended=state.ended, ledger_bytes=ledger_bytes,
        open=None if state.open is None else state.open.as_json(), order=list(state.server),
    )  # fmt: skip
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.server.items()}
    data = safetensors.torch.save(plain, {"fedvlm": json.dumps(head.model_dump(), allow_nan=False)})
    durable.write_bytes(folder / FILE, data, private=True)


def load(folder: Path) -> tuple[Progress, int] | None:
    """The last state and the length of the ledger; None before the first round. Raises `FedvlmError`."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            head = _Head.model_validate(json.loads((file.metadata() or {})["fedvlm"]))
            server = {name: file.get_tensor(name).clone() for name in head.order}
        record = None if head.open is None else from_json(head.open)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, ValidationError) as error:
        raise FedvlmError(
            f"{path} is damaged ({error}): put it back from a backup; or delete {folder} and let "
            "every site forget the experiment (fedvlm site forget) to begin this point anew"
        ) from None
    return Progress(head.round, server, record, head.ended), head.ledger_bytes
