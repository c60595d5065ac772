"""Two operating-system users: code that a network brings runs as the carrier, and gets the socket's answers only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Field

from fedvlm.federation import messages
from fedvlm.federation.exchange import PACKAGE
from fedvlm.federation.messages import Header, Message
from fedvlm.network import frames
from fedvlm.network.site import serve
from fedvlm.network.site.service import Service

OWNER, CARRIER = 65531, 65532
"""Users of the site and of the carrier; they need no entry in the list of users."""

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may start processes of two other users")


def become(user: int, group: int) -> None:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)


def as_user(user: int, work: Callable[[], Any]) -> Any:
    """What a function returns that runs in a process of another user."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become(user, CARRIER)
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told)


@pytest.fixture
def site(drawn: dict[str, Path], field_of: Any) -> Iterator[tuple[Field, int, Path]]:
    """A site that its owner serves in a process of its own: experiment, process, folder."""
    field = field_of("pfedmma")
    folder = Path(tempfile.mkdtemp(prefix="fedvlm-two-users-"))
    folder.chmod(0o755)
    shutil.copytree(drawn["neon"], folder / "photographs")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "one.json").write_text(json.dumps(field.plain))
    own = field.site("neon", carrier_user=str(CARRIER)).model_copy(
        update={
            "state": str(folder / "state"), "socket": str(folder / "carrier" / "site.sock"),
            "experiments": str(folder / "experiments"),
            "data": {"source": "folder", "path": str(folder / "photographs")},
        }
    )  # fmt: skip
    (folder / "site.toml").write_text("name = 'neon'\n")
    (folder / "state").mkdir()
    (folder / "carrier").mkdir()
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, OWNER, OWNER)
    for private in ("photographs", "state"):
        (folder / private).chmod(0o700)
    (folder / "site.toml").chmod(0o600)
    (folder / "carrier").chmod(0o710)
    os.chown(folder / "carrier", OWNER, CARRIER)
    process = os.fork()
    if process == 0:
        try:
            become(OWNER, OWNER)
            service = Service(own, lambda line: (folder / "state" / "told").open("a").write(line + "\n"))
            service.read_experiments()
            serve.serve(service)
        finally:
            os._exit(1)
    end = time.monotonic() + 30
    while not (folder / "carrier" / "site.sock").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    yield field, process, folder
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    shutil.rmtree(folder)


def ask(folder: Path, field: Field, kind: str = "hello", **more: Any) -> dict[str, Any]:
    header = Header(kind=kind, package=PACKAGE, **({"experiment": field.digest} | more))
    answer = frames.ask(folder / "carrier" / "site.sock", messages.to_bytes(Message(header)), 120)
    head = messages.from_bytes(answer).header
    return {"kind": head.kind, "reason": head.reason, "client": head.client}


def test_the_carrier_gets_answers_and_nothing_else(site: tuple[Field, int, Path]) -> None:
    field, process, folder = site
    assert as_user(CARRIER, lambda: ask(folder, field))["kind"] == "welcome"

    def hostile() -> dict[str, str]:
        found = {}
        tries: dict[str, Callable[[], Any]] = {
            "list photographs": lambda: list((folder / "photographs").iterdir()),
            "read a photograph": lambda: next((folder / "photographs").rglob("*.png")).read_bytes(),
            "list state": lambda: list((folder / "state").iterdir()),
            "read the record": lambda: (folder / "state" / "sent.jsonl").read_bytes(),
            "read the policy": lambda: (folder / "site.toml").read_text(),
            "change the policy": lambda: (folder / "site.toml").write_text("x"),
            "replace the policy": lambda: os.replace(tempfile.mkstemp()[1], folder / "site.toml"),
            "put another socket there": lambda: (folder / "carrier" / "site.sock").unlink(),
            "list the socket's folder": lambda: list((folder / "carrier").iterdir()),
            "read the site's memory": lambda: os.open(f"/proc/{process}/mem", os.O_RDONLY),
            "see the site's open files": lambda: list(Path(f"/proc/{process}/fd").iterdir()),
            "stop the site": lambda: os.kill(process, signal.SIGTERM),
        }  # fmt: skip
        for what, attempt in tries.items():
            try:
                found[what] = f"got {attempt()!r:.80}"
            except (PermissionError, StopIteration, OSError) as error:
                found[what] = type(error).__name__
        return found

    def owner() -> list[bool]:
        photographs, own = list((folder / "photographs").rglob("*.png")), folder / "site.toml"
        return [bool(photographs and photographs[0].read_bytes()), bool(own.read_text()),
                bool(list((folder / "state").iterdir()))]  # fmt: skip

    assert as_user(OWNER, owner) == [True, True, True], "there is something to be had"
    got = as_user(CARRIER, hostile)
    assert {what: word for what, word in got.items() if word.startswith("got")} == {}


@pytest.mark.parametrize(
    ("word", "asked"),
    [("kind", {"kind": "give_private"}), ("experiment", {"experiment": "ef" * 32}), ("kind", {"kind": "read_file"})],
)
def test_a_hostile_server_is_refused_and_told(word: str, asked: Any, site: tuple[Field, int, Path]) -> None:
    field, _, folder = site
    answer = as_user(CARRIER, lambda: ask(folder, field, **asked))
    assert (answer["kind"], answer["reason"]) == ("refused", word)
    assert f"refused ({word})" in (folder / "state" / "told").read_text()


def test_another_user_than_the_policys_is_not_answered(site: tuple[Field, int, Path]) -> None:
    field, _, folder = site
    os.chmod(folder / "carrier", 0o755)
    answer = as_user(CARRIER + 1, lambda: ask(folder, field))
    assert "Error" in answer
    assert "carrier_user" in (folder / "state" / "told").read_text()


def test_the_site_says_that_its_carrier_is_its_own_user(field_of: Any) -> None:
    field, told = field_of("coop"), list[str]()
    service = field.service("neon", told)
    import threading

    ready = threading.Event()
    threading.Thread(target=serve.serve, args=(service, ready.set), daemon=True).start()
    assert ready.wait(10)
    answer = frames.ask(service.settings.socket, messages.to_bytes(
        Message(Header(kind="hello", package=PACKAGE, experiment=field.digest))), 60)  # fmt: skip
    assert messages.from_bytes(answer).header.kind == "welcome"
    assert any("own user" in line for line in told)
