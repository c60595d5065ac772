"""What crosses the network: named tensors, checked against what the method declares, and counted."""

from __future__ import annotations

import re

from fedvlm import tensors
from fedvlm.errors import DivergenceError, FedvlmError, listed, nearest
from fedvlm.methods.base import Method
from fedvlm.streams import stream
from fedvlm.tensors import Named


def shared(method: Method, trained: Named) -> Named:
    """The trained tensors whose names the method shares. A message may hold fewer (`message`)."""
    return tensors.select(trained, method.shared)


def message(method: Method, initial: Named) -> Named:
    """An uplink as it would be of untrained tensors: its names, shapes and dtypes are those of every uplink."""
    return method.uplink(initial | method.keep(initial, {}, stream(0, "message"))) if initial else {}


def check_share(method: Method, initial: Named) -> None:
    """Refuse a pattern of the setting `share` that matches no trained tensor."""
    asked = (method.config.share or []) if method.trains else []
    kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in initial))
    for pattern in asked:
        if not tensors.select(initial, [pattern]):
            wrong = f"'{pattern}' matches no trained tensor{nearest(pattern, kinds)}"
            raise FedvlmError(f"{method.name}: share = {asked}, but {wrong}; there are: {listed(kinds, 40)}")


def private(method: Method, trained: Named) -> Named:
    """Every trained tensor that is not shared. These are in no message."""
    return {name: tensor for name, tensor in trained.items() if not tensors.matches(name, method.shared)}


def check_uplink(method: Method, initial: Named, sent: Named, client: str, round_: int) -> None:
    """Refuse an uplink that is not exactly the declared shared tensors, finite and of the declared shapes."""
    expected = message(method, initial)
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


def sizes(message: Named) -> dict[str, int]:
    """Bytes by tensor name."""
    return {name: tensor.numel() * tensor.element_size() for name, tensor in message.items()}
