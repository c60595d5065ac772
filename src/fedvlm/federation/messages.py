"""Messages between server and clients: named tensors, checked against the declared ones, as bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
from pydantic import AfterValidator, Field, ValidationError

from fedvlm import tensors
from fedvlm.config import Section, problems
from fedvlm.errors import DivergenceError, FedvlmError, listed, nearest
from fedvlm.methods.base import EvalPoint, Method
from fedvlm.streams import stream
from fedvlm.tensors import Named


def shared_tensors(method: Method, trained: Named) -> Named:
    """The trained tensors whose names the method shares. A message may hold fewer (`uplink_template`)."""
    return tensors.select(trained, method.shared)


def uplink_template(method: Method, initial: Named, received: Named | None = None) -> Named:
    """An uplink of untrained tensors from a client that received these: every such uplink has its names and shapes."""
    received = received or {}
    return method.uplink(initial | method.keep(initial, received, stream(0, "message")), received) if initial else {}


def may_cross(method: Method, initial: Named) -> Named:
    """Every tensor that leaves a client in some round: with `Method.trainable` not all of them in each."""
    first = uplink_template(method, initial)
    varies = type(method).trainable is not Method.trainable
    return shared_tensors(method, initial) | first if varies else first


def check_share(method: Method, initial: Named) -> None:
    """Raise `FedvlmError` if a pattern of the setting `share` matches no trained tensor."""
    asked = (method.config.share or []) if method.trains else []
    kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in initial))
    for pattern in asked:
        if not tensors.select(initial, [pattern]):
            wrong = f"'{pattern}' matches no trained tensor{nearest(pattern, kinds)}"
            raise FedvlmError(f"{method.name}: share = {asked}, but {wrong}; there are: {listed(kinds, 40)}")


def private_tensors(method: Method, trained: Named) -> Named:
    """The trained tensors that are not shared. No message holds them."""
    return {name: tensor for name, tensor in trained.items() if not tensors.matches(name, method.shared)}


def check_uplink(expected: Named, sent: Named, client: str, round_: int) -> None:
    """Raise `FedvlmError` if an uplink is not finite, or differs from `expected` in names, shapes or dtypes."""
    where = f"round {round_}, client {client}"
    if sent.keys() != expected.keys():
        raise FedvlmError(
            f"{where}: the uplink's tensors differ from those shared: {listed(sent.keys() ^ expected.keys())}"
        )
    for name, tensor in sent.items():
        if tensor.shape != expected[name].shape:
            raise FedvlmError(f"{where}: '{name}' has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
        if tensor.dtype != expected[name].dtype:
            raise FedvlmError(f"{where}: '{name}' is {tensor.dtype}, not {expected[name].dtype}")
        if not bool(tensor.isfinite().all()):
            raise DivergenceError(f"{where}: '{name}' holds values that are not finite; lower the learning rate")


def tensor_bytes(message: Named) -> dict[str, int]:
    """Bytes by tensor name."""
    return {name: tensor.numel() * tensor.element_size() for name, tensor in message.items()}


VERSION: Literal[2] = 2
"""Version of the byte format."""
_HEADER = "fedvlm"
"""The key of the header in the metadata of a safetensors file."""
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""Element types that a message may have."""


def _printable(text: str) -> str:
    """The text, if it can be shown on a terminal as it is. Raises `ValueError`."""
    if not text.isprintable():
        raise ValueError("holds characters that are not printable")
    return text


class Header(Section):
    """The header of a message: everything but its tensors."""

    version: Literal[2] = VERSION
    kind: Annotated[str, Field(pattern="^[a-z_]{1,40}$")]
    """Kind of the message, such as `downlink` or `uplink`."""
    experiment: Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")] = ""
    """Digest of the experiment that both sides run."""
    model: Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")] = ""
    """Digest of the CLIP that both sides have."""
    package: Annotated[str, Field(pattern=r"^[\w.+-]{0,40}$")] = ""
    """Version of fedvlm at the sender."""
    method: Annotated[str, Field(max_length=200), AfterValidator(_printable)] = ""
    seed: int = 0
    round: Annotated[int, Field(ge=0)] = 0
    """Number of finished rounds."""
    client: Annotated[str, Field(max_length=200), AfterValidator(_printable)] = ""
    """The client that sends or receives the message."""
    trains: bool = False
    """Whether the client is to train in a visit."""
    images: Annotated[float, Field(ge=0)] = 0.0
    """An uplink's weight: the client's training images."""
    losses: list[float] = Field(default=[])
    """Loss before each step of the training, in nats."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """Time of the training."""
    reason: Annotated[str, Field(pattern="^[a-z_]{0,40}$")] = ""
    """Why a message was refused, in a word."""
    answers: Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")] = ""
    """SHA-256 of the message that this one answers."""
    point: EvalPoint | None = None
    """The state that is to be evaluated."""
    metrics: dict[str, Any] | None = None
    """`ClientMetrics`, as JSON."""


@dataclass(frozen=True)
class Message:
    """A header and named tensors."""

    header: Header
    tensors: Named = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Upper bounds on a message that is read."""

    total_bytes: int = 1 << 30
    header_bytes: int = 1 << 22
    tensors: int = 10_000
    name: int = 200
    """Characters of a tensor's name."""
    dimensions: int = 8


def to_bytes(message: Message) -> bytes:
    """The message as a safetensors file with the header in its metadata; `from_bytes` is the exact inverse."""
    # The format sorts tensors, but sums and stacks depend on their order, so the order is stored.
    header, order = message.header.model_dump(mode="json"), list(message.tensors)
    head = {"header": header, "order": order, "sha256": _checksum(header, order, message.tensors)}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in message.tensors.items()}
    return safetensors.torch.save(plain, {_HEADER: json.dumps(head, allow_nan=False)})


def from_bytes(data: bytes, limits: Limits = Limits()) -> Message:
    """Read a message. Raises `FedvlmError` if it is damaged, or exceeds the limits, before memory is allocated.

    The checksum tells damage on the way; it says nothing about who has sent the message.
    """
    table = _table(data, limits)
    metadata = table.pop("__metadata__", None)
    try:
        head = json.loads(metadata[_HEADER], parse_constant=_no_constant)
        header, order, checksum = Header.model_validate(head["header"]), head["order"], head["sha256"]
    except ValidationError as error:
        raise FedvlmError(f"a message's header: {'; '.join(problems(error, Header))}") from None
    except (TypeError, KeyError, ValueError, RecursionError):
        raise FedvlmError("these bytes are not a message of fedvlm: there is no header") from None
    _check_table(table, len(data), limits)
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(table):
        raise FedvlmError("a message's header names other tensors than the message holds")
    try:
        read = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise FedvlmError(f"a message's tensors cannot be read: {error}") from None
    # Copies: tensors of a buffer may lie at odd addresses, and products of unaligned matrices round differently.
    named = {name: read[name].clone() for name in order}
    if checksum != _checksum(head["header"], order, named):
        raise FedvlmError("a message was changed on its way: its checksum does not fit")
    return Message(header, named)


def _checksum(header: Mapping[str, Any], order: list[str], named: Named) -> str:
    """SHA-256 over the header as it is written, the order of the tensors, and their names, shapes and bytes."""
    text = json.dumps([header, order, tensors.digest(named)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _table(data: bytes, limits: Limits) -> dict[str, Any]:
    """The header table of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    if len(data) > limits.total_bytes or size > limits.header_bytes:
        raise FedvlmError(
            f"a message of {len(data):,} bytes with a header of {size:,} is larger than the {limits.total_bytes:,} and "
            f"{limits.header_bytes:,} that are read"
        )
    try:
        table = json.loads(data[8 : 8 + size], parse_constant=_no_constant)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict) or len(data) < 8 + size:
        raise FedvlmError("these bytes are not a message of fedvlm")
    return table


def _check_table(table: Mapping[str, Any], size: int, limits: Limits) -> None:
    if len(table) > limits.tensors:
        raise FedvlmError(f"a message holds {len(table):,} tensors, more than the {limits.tensors:,} that are read")
    for name, entry in table.items():
        if not (0 < len(name) <= limits.name and name.isprintable()):
            raise FedvlmError(f"a message's tensor has a name of {len(name)} characters, or an unreadable one")
        shape, dtype = (entry.get(key) if isinstance(entry, dict) else None for key in ("shape", "dtype"))
        lengths = shape if isinstance(shape, list) and len(shape) <= limits.dimensions else [None]
        if dtype not in _DTYPES or not all(type(length) is int and 0 <= length <= size for length in lengths):
            raise FedvlmError(f"a message's tensor '{name}' has no readable shape or element type")


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")
