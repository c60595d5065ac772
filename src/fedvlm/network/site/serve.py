"""The local socket of a site: a thread for each connection, one frame in, one frame out, as often as wanted."""

from __future__ import annotations

import os
import pwd
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from fedvlm.errors import FedvlmError
from fedvlm.network import frames
from fedvlm.network.site.service import Service

CONNECTIONS = 16
"""Most connections at a time."""
PATIENCE = 60.0
"""Seconds in which a frame that has begun must be complete."""


def serve(service: Service, ready: Callable[[], None] = lambda: None) -> None:
    """Answer until the process ends. Raises `FedvlmError` if the socket cannot be made, or the site runs already."""
    path = Path(service.settings.socket)
    with service.state.locked(), listening(path) as listener:
        slots = threading.Semaphore(CONNECTIONS)
        warned: set[int] = set()
        ready()
        while True:
            slots.acquire()
            connection, _ = listener.accept()
            user = frames.peer_user(connection)
            if not _allowed(service, user):
                connection.close()
                slots.release()
                continue
            if user == os.getuid() and user not in warned:
                warned.add(user)
                service.tell(
                    "warning: the carrier runs as the site's own user: whatever code it is given could read the "
                    "photographs and the private tensors. Let it run as a user of its own (docs/federation.md)"
                )
            threading.Thread(target=_connection, args=(service, connection, slots), daemon=True).start()


def _allowed(service: Service, user: int) -> bool:
    """Whether the policy lets this user's processes use the socket."""
    wanted = service.settings.policy.carrier_user
    if wanted is None:
        return True
    try:
        expected = int(wanted) if wanted.isdecimal() else pwd.getpwnam(wanted).pw_uid
    except KeyError:
        service.tell(f"refused: policy.carrier_user = '{wanted}' is no user of this machine")
        return False
    if user != expected:
        service.tell(f"refused: a process of user {user}; policy.carrier_user is '{wanted}'")
    return user == expected


def listening(path: Path) -> socket.socket:
    """A Unix socket that listens; the folder's permissions say who may open it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o666)  # who may come here is decided by the folder above
        listener.listen(CONNECTIONS)
    except OSError as error:
        raise FedvlmError(f"the socket {path} cannot be made: {error.strerror or error}") from None
    return listener


def _connection(service: Service, connection: socket.socket, slots: threading.Semaphore) -> None:
    with connection:
        try:
            connection.settimeout(PATIENCE)
            while True:
                data = frames.receive(connection, service.limits.total_bytes)
                if data is None:
                    return
                connection.settimeout(None)
                frames.send(connection, service.answer(data))
                connection.settimeout(PATIENCE)
        except (OSError, frames.BrokenFrameError) as error:
            service.tell(f"a connection ended: {error}")
        finally:
            slots.release()
