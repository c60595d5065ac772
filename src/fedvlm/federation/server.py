"""A server's work in a round, as pure functions: no disk, no network, no image, no private tensor.

A server knows clients by name. In every round it samples some of them, sends each its downlink, checks the uplinks
(`messages.check_uplink`) and aggregates them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedvlm.federation.spec import RunSpec
from fedvlm.methods.base import ROUND, Uplink
from fedvlm.streams import stream
from fedvlm.tensors import Named, clone


@dataclass
class ServerState:
    """The server's tensors after `round` rounds."""

    round: int
    server: Named


def start(spec: RunSpec) -> ServerState:
    """The state before the first round."""
    return ServerState(0, spec.method.server(spec.initial))


def sample_clients(spec: RunSpec, names: Iterable[str], participation: float, round_: int) -> list[str]:
    """Names of the clients of round `round_` (from 0), in alphabetical order: `round_size` without replacement.

    All clients take part in local rounds, after the federated ones, and where statistics are gathered. The draw depends
    on the sorted names, so the order in which clients are listed has no effect.
    """
    ordered = sorted(names)
    if round_ >= spec.rounds or spec.method.gathers:
        return ordered
    count = round_size(participation, len(ordered))
    picked = stream(spec.seed, "clients", round_).choice(len(ordered), count, replace=False)
    return [ordered[position] for position in sorted(picked.tolist())]


def round_size(participation: float, clients: int) -> int:
    """Number of clients in a round: max(1, floor(share x N))."""
    # The small term keeps a share such as 0.29 x 100 from becoming 28 in binary floating point.
    return max(1, int(participation * clients + 1e-9))


def downlink(spec: RunSpec, state: ServerState, client: str) -> Named:
    """The tensors that a client receives from this server state, as copies: changes of them do not reach the server.

    In local rounds clients receive the tensors that they train only once; later only fixed ones, such as experts.
    """
    received = spec.method.downlink(state.server, client, _downlink_draw(spec, state, client))
    if state.round > spec.rounds:
        # The trained tensors are the initial ones, and those of an uplink.
        trained = spec.initial.keys() | spec.may_cross.keys()
        received = {name: tensor for name, tensor in received.items() if name not in trained}
    return clone(received)


def experts(spec: RunSpec, state: ServerState, client: str) -> list[str]:
    """Names of the other clients whose own tensors are in this `downlink`."""
    return spec.method.experts(state.server, client, _downlink_draw(spec, state, client))


def _downlink_draw(spec: RunSpec, state: ServerState, client: str) -> np.random.Generator:
    return stream(spec.seed, "downlink", state.round, client)


def aggregate(spec: RunSpec, state: ServerState, uplinks: Sequence[Uplink]) -> ServerState:
    """The state after this round; in a local round, without uplinks, the server's tensors do not change."""
    server = spec.method.aggregate(state.server, uplinks) if state.round < spec.rounds else state.server
    if ROUND in server:
        server = server | {ROUND: torch.tensor(state.round + 1)}
    return ServerState(state.round + 1, server)
