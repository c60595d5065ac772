"""What a server does in a round. It is pure: no disk, no network, no image, no private tensor.

A server knows clients by name. In every round it samples some of them, sends each its downlink, checks what comes back
(`messages.check_uplink`) and aggregates it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedvlm.federation.spec import RunSpec
from fedvlm.methods.base import Uplink
from fedvlm.streams import stream
from fedvlm.tensors import Named, clone


@dataclass
class ServerState:
    """What the server holds after `round` rounds."""

    round: int
    server: Named


def start(spec: RunSpec) -> ServerState:
    """The state before the first round."""
    return ServerState(0, spec.method.server(spec.initial))


def sample_clients(spec: RunSpec, names: Iterable[str], participation: float, round_: int) -> list[str]:
    """Names of the clients of round `round_` (from 0), in alphabetical order: `round_size` without replacement.

    After the federated rounds it is all of them. Names and not positions decide, so that the order in which clients
    are listed changes nothing.
    """
    ordered = sorted(names)
    if round_ >= spec.rounds:
        return ordered
    count = round_size(participation, len(ordered))
    picked = stream(spec.seed, "clients", round_).choice(len(ordered), count, replace=False)
    return [ordered[position] for position in sorted(picked.tolist())]


def round_size(participation: float, clients: int) -> int:
    """Clients in a round: max(1, floor(share x N))."""
    # The small term keeps a share such as 0.29 x 100 from becoming 28 in binary floating point.
    return max(1, int(participation * clients + 1e-9))


def downlink(spec: RunSpec, state: ServerState, client: str) -> Named:
    """What a client receives from this server state: copies, so that nothing it does reaches the server's own.

    Clients that tune for themselves receive the tensors they train once; later only what is fixed, such as experts.
    """
    draw = stream(spec.seed, "downlink", state.round, client)
    received = spec.method.downlink(state.server, client, draw)
    if state.round > spec.rounds:
        # What clients send, under the names of an uplink, is what they train.
        trained = spec.initial.keys() | spec.uplink_template.keys()
        received = {name: tensor for name, tensor in received.items() if name not in trained}
    return clone(received)


def aggregate(spec: RunSpec, state: ServerState, uplinks: Sequence[Uplink]) -> ServerState:
    """The state after this round; in a local round, which has no uplinks, the server's tensors stay."""
    server = spec.method.aggregate(state.server, uplinks) if state.round < spec.rounds else state.server
    return ServerState(state.round + 1, server)
