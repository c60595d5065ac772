"""Newcomers: clients, or all clients of a domain, that join after the last round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedvlm.data.federation import Client
from fedvlm.errors import FedvlmError, listed, nearest
from fedvlm.streams import stream


def mark_newcomers(clients: tuple[Client, ...], newcomers: int | Sequence[str], seed: int) -> tuple[Client, ...]:
    """The same clients in the same order, newcomers marked: a number drawn with the seed, or by client or domain name.

    Raises FedvlmError for an unknown name, and if no client would be left to train.
    """
    names = _draw_names(clients, newcomers, seed) if isinstance(newcomers, int) else _match_names(clients, newcomers)
    if len(names) == len(clients):
        raise FedvlmError(
            f"partition.newcomers = {newcomers} makes all {len(clients)} clients newcomers: no client is left to train"
        )
    return tuple(replace(client, is_newcomer=client.name in names) for client in clients)


def _draw_names(clients: Sequence[Client], count: int, seed: int) -> set[str]:
    if count > len(clients):
        raise FedvlmError(f"partition.newcomers = {count}, but there are {len(clients)} clients")
    # The draw depends on the sorted names, as in a round.
    names = sorted(client.name for client in clients)
    return {names[place] for place in stream(seed, "late").choice(len(names), count, replace=False).tolist()}


def _match_names(clients: Sequence[Client], words: Sequence[str]) -> set[str]:
    names, domains = {client.name for client in clients}, {client.domain for client in clients if client.domain}
    for word in words:
        if word not in names | domains:
            known = [*sorted(domains), *sorted(names)]
            wrong = f"'{word}' is no client or domain here{nearest(word, known)}"
            raise FedvlmError(f"partition.newcomers: {wrong}; there are: {listed(known)}")
    return {client.name for client in clients if {client.name, client.domain} & set(words)}
