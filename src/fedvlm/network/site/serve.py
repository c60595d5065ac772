"""The local socket of a site: a thread for each connection, one frame in, one frame out, as often as wanted."""

from __future__ import annotations

import os
import pwd
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedvlm.errors import FedvlmError
from fedvlm.network import frames, seal
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
        warn_of_open_doors(service)
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


def listening(path: Path, mode: int = 0o666) -> socket.socket:
    """A Unix socket that listens. Who may come to it is decided by the folder above. Raises `FedvlmError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _answers(path):
            raise FedvlmError(f"another process answers at the socket {path}: stop it, or name another socket")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(CONNECTIONS)
    except OSError as error:
        raise FedvlmError(f"the socket {path} cannot be made: {error.strerror or error}") from None
    return listener


def _answers(path: Path) -> bool:
    """Whether a process listens there."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(1)
        probe.connect(str(path))
        return True
    return False


def warn_of_open_doors(service: Service) -> None:
    """Tell the owner what the folder of the socket and the settings leave open."""
    folder, own = Path(service.settings.socket).parent, service.settings
    if service.key is None:
        service.tell("warning: no key: who can open the socket can ask as if it were the coordinator (site.toml: key)")
    if own.policy.carrier_user is None and folder.stat().st_mode & 0o001:
        service.tell(f"warning: every user of this machine may enter {folder} (chmod 710), or set policy.carrier_user")


def _connection(service: Service, connection: socket.socket, slots: threading.Semaphore) -> None:
    with connection:
        try:
            connection.settimeout(PATIENCE)
            while True:
                data = frames.receive(connection, service.limits.total_bytes + seal.SIZE)
                if data is None:
                    return
                answer = service.answer(data)
                frames.send(connection, answer)
        except frames.LargeFrameError as error:
            with suppress(OSError):
                frames.send(connection, service.refuse_size(error.size))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 20):  # the other side reads the answer when it has sent everything
                    pass
        except (OSError, frames.BrokenFrameError) as error:
            service.tell(f"a connection ended: {error}")
        finally:
            slots.release()
