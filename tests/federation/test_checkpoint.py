from __future__ import annotations

import json
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvlm import durable, tensors
from fedvlm.errors import FedvlmError
from fedvlm.federation import checkpoint, simulation
from fedvlm.federation.checkpoint import Checkpoint, ClientTensors
from fedvlm.federation.simulation import FederationState
from fedvlm.testing import tiny


def state(round_: int, *names: str, value: float | None = None) -> FederationState:
    number = float(round_) if value is None else value
    return FederationState(
        round_,
        {"prompt": torch.full((2, 3), number)},
        {
            name: {"prompt": torch.full((2, 3), number + n), "gating.q.bias": torch.full((4,), -number - n)}
            for n, name in enumerate(names)
        },
    )


def same(a: FederationState, b: FederationState) -> bool:
    return tiny.fingerprint(a) == tiny.fingerprint(b)


def test_before_the_first_round_there_is_nothing(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "deep" / "er").load() is None


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = state(3, "a", "b", "klinik ä", "x.y")
    Checkpoint(tmp_path / "run").save(saved, 1234)
    loaded = Checkpoint(tmp_path / "run").load()
    assert loaded is not None
    assert same(loaded[0], saved)
    assert loaded[1] == 1234


def stored(folder: Path, *rounds: FederationState) -> FederationState:
    """The rounds as an engine makes them: each with a copy of the clients before and its own trained ones."""
    checkpoint = Checkpoint(folder)
    now = FederationState(0, {}, checkpoint.empty_clients())
    for round_ in rounds:
        personal = copy(now.personal)
        personal.update(round_.personal)
        now = FederationState(round_.round, round_.server, personal)
        checkpoint.save(now, round_.round)
    return now


def test_clients_that_did_not_take_part_keep_their_file(tmp_path: Path) -> None:
    second = FederationState(2, {"prompt": torch.zeros(1)}, {"b": {"prompt": torch.ones(1)}})
    now = stored(tmp_path, state(1, "a", "b", "c"), second)
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint.json", "server-0001.safetensors", "server-0002.safetensors", "clients-0001.safetensors",
        "clients-0002.safetensors",
    }  # fmt: skip
    loaded = Checkpoint(tmp_path).load()
    assert loaded is not None
    assert same(loaded[0], now)
    assert same(now, FederationState(2, second.server, {**state(1, "a", "b", "c").personal, **second.personal}))


def test_files_that_nobody_needs_are_swept(tmp_path: Path) -> None:
    for last in range(1, 12):
        rounds = [state(round_, *(["a", "b"] if round_ % 2 else ["a"])) for round_ in range(1, last + 1)]
        stored(tmp_path / f"{last}", *rounds)
        needed = {"checkpoint.json", f"server-{last:04d}.safetensors", f"clients-{last:04d}.safetensors"}
        needed |= {f"clients-{last - 1:04d}.safetensors"} if last % 2 == 0 else set()
        needed |= {f"server-{last - 1:04d}.safetensors"} if last > 1 else set()
        assert {file.name for file in (tmp_path / f"{last}").iterdir()} == needed


@pytest.mark.parametrize("limit", [0, 100, 2**20])
def test_clients_beyond_the_limit_are_on_disk_only(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in parts while a round goes on; the round before stays what it was."""
    monkeypatch.setattr(checkpoint, "PART_BYTES", 100)  # each client has 40 bytes
    folder = Checkpoint(tmp_path, limit)
    first, names = folder.empty_clients(), [f"client {i}" for i in range(7)]
    first.update(state(1, *names).personal)
    assert len(list(tmp_path.iterdir())) == 2
    folder.save(FederationState(1, {}, first), 0)
    assert sum(tensors.nbytes(own) for own in first.memory.values()) <= limit
    assert len(first.memory) == 7 or limit < 2**20
    second = copy(first)
    second.update(state(9, *names[:4]).personal)
    assert len(second) == 7
    assert same(FederationState(1, {}, first), state(1, *names)) is False  # the server differs
    assert same(FederationState(1, {}, first), FederationState(1, {}, state(1, *names).personal))
    assert same(
        FederationState(1, {}, second),
        FederationState(1, {}, state(1, *names).personal | state(9, *names[:4]).personal),
    )
    loaded = folder.load()
    assert loaded is not None
    assert same(loaded[0], FederationState(1, {}, first)), "what is not in the manifest has not happened"
    folder.save(FederationState(2, {}, second), 0)
    loaded = folder.load()
    assert loaded is not None
    assert same(loaded[0], FederationState(2, {}, second))
    held = loaded[0].personal
    assert isinstance(held, ClientTensors)
    assert sum(tensors.nbytes(own) for own in held.memory.values()) <= limit
    older, newer = copy(held), copy(held)
    for which in (older, newer):
        which["client 5"] = {"prompt": torch.ones(3)}
        which.write()
    assert older.stored["client 5"].file != newer.stored["client 5"].file, "copies share the numbers of files"
    del held["client 3"]
    assert "client 3" not in held
    assert len(held) == 6


def test_clients_that_just_fit_are_all_in_memory(tmp_path: Path) -> None:
    names = [f"client {i}" for i in range(7)]
    Checkpoint(tmp_path, 2**20).save(state(1, *names), 0)
    for limit, kept in ((7 * 40, 7), (7 * 40 - 1, 6), (0, 0)):  # 40 bytes each
        loaded = Checkpoint(tmp_path, limit).load()
        assert loaded is not None
        assert isinstance(loaded[0].personal, ClientTensors)
        assert len(loaded[0].personal.memory) == kept


def test_a_file_is_read_once_for_all_clients_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"client {i}" for i in range(7)]
    Checkpoint(tmp_path, 0).save(state(1, *names), 0)
    loaded = Checkpoint(tmp_path, 0).load()
    assert loaded is not None
    read, load = list[Path](), tensors.load
    monkeypatch.setattr(tensors, "load", lambda file: (read.append(file), load(file))[1])
    loaded[0].personal.page = "", {}  # type: ignore[attr-defined]
    assert [float(loaded[0].personal[name]["prompt"][0, 0]) for name in names] == [1.0 + n for n in range(7)]
    assert len(read) == 1


def test_a_client_is_there_from_when_it_is_added_until_it_is_deleted(tmp_path: Path) -> None:
    clients = Checkpoint(tmp_path, 0).empty_clients()
    assert "client 0" not in clients
    clients.update(state(1, "client 0").personal)
    assert "client 0" in clients  # not written yet
    clients.write()
    assert "client 0" in clients  # in a file
    del clients["client 0"]
    assert "client 0" not in clients


def test_another_folder_gets_everything(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "a").save(state(1, "x", "y"), 0)
    loaded = Checkpoint(tmp_path / "a").load()
    assert loaded is not None
    Checkpoint(tmp_path / "b").save(loaded[0], 0)
    fork = Checkpoint(tmp_path / "b").load()
    assert fork is not None
    assert same(fork[0], loaded[0])


def test_a_client_whose_name_begins_like_another(tmp_path: Path) -> None:
    saved = state(1, "a", "a/b", "ab", "a/prompt", "a%2Fb", "klinik_ä")
    folder = Checkpoint(tmp_path, 0)
    folder.save(saved, 0)
    loaded = folder.load()
    assert loaded is not None
    assert same(loaded[0], saved)


def test_methods_without_state_can_be_saved(tmp_path: Path) -> None:
    Checkpoint(tmp_path).save(FederationState(5, {}, {}), 7)
    assert Checkpoint(tmp_path).load() == (FederationState(5, {}, {}), 7)
    local = FederationState(1, {}, {"a": {"prompt": torch.ones(2)}})
    Checkpoint(tmp_path / "b").save(local, 7)
    loaded = Checkpoint(tmp_path / "b").load()
    assert loaded is not None
    assert same(loaded[0], local)


def test_a_round_number_of_five_digits(tmp_path: Path) -> None:
    for round_ in (9_999, 10_000, 123_456):
        Checkpoint(tmp_path).save(state(round_, "a"), 0)
        loaded = Checkpoint(tmp_path).load()
        assert loaded is not None
        assert loaded[0].round == round_
        assert len(list(tmp_path.iterdir())) == (4 if round_ == 10_000 else 3)  # one more with the round before


class Crash(BaseException):
    """The process dies: no handler of the code under test may see it as an error to explain."""


def dying(monkeypatch: pytest.MonkeyPatch, at: int, where: str) -> list[int]:
    """Let the `at`-th write of a file end in a crash, before anything of it is visible or just after it all is."""
    real, calls = durable.write_bytes, [0]

    def write(path: Path, data: bytes, *, private: bool = False) -> None:
        calls[0] += 1
        if calls[0] == at:
            if where == "after":
                real(path, data, private=private)
            elif where == "litter":
                path.parent.mkdir(parents=True, exist_ok=True)
                (path.parent / f".{path.name}.abc").write_bytes(data[: len(data) // 2])
            raise Crash
        real(path, data, private=private)

    monkeypatch.setattr(durable, "write_bytes", write)
    return calls


def play(task: Any, folder: Path, limit: int = 1 << 30) -> FederationState:
    """A run as it is made durable: each round's checkpoint, taken up where it stands."""
    loaded = Checkpoint(folder, limit).load()
    now = begun = loaded[0] if loaded else simulation.start(task, Checkpoint(folder, limit).empty_clients())
    for now, record in simulation.run_rounds(task, begun):
        Checkpoint(folder, limit).save(now, record.round)
        held = now.personal
        assert isinstance(held, ClientTensors)
        assert sum(tensors.nbytes(own) for own in held.memory.values()) <= limit
    return now


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("where", ["before", "after", "litter"])
def test_a_crash_at_any_write_loses_at_most_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, on_disk: bool
) -> None:
    """For every n: die at the n-th write, start again, and end with the same bytes as a run that never died.

    With clients in memory a round writes clients, server and manifest; with clients on disk each of its two for itself.
    """
    limit, each = (0, 4) if on_disk else (1 << 30, 3)
    part = 1 if on_disk else checkpoint.PART_BYTES
    monkeypatch.setattr(checkpoint, "PART_BYTES", part)
    clip, fed = tiny.clip(), tiny.federation(sizes=(5, 3, 2))

    def task() -> Any:
        return tiny.simulation(tiny.method("pfedmoap", epochs=1), clip, fed, rounds=3, participation=0.67, every=100)

    in_memory = tiny.run(task())[0]
    whole = play(task(), tmp_path / "whole", limit)
    assert same(whole, in_memory)
    left = {f.name for f in (tmp_path / "whole").glob("*.safetensors")}
    calls = dying(monkeypatch, 0, where)
    play(task(), tmp_path / "count", limit)
    monkeypatch.undo()
    assert calls[0] == 3 * each
    for at in range(1, calls[0] + 1):
        folder = tmp_path / f"{at}"
        monkeypatch.setattr(checkpoint, "PART_BYTES", part)
        dying(monkeypatch, at, where)
        with pytest.raises(Crash):
            play(task(), folder, limit)
        monkeypatch.undo()
        monkeypatch.setattr(checkpoint, "PART_BYTES", part)
        loaded = Checkpoint(folder).load()
        manifests = (at - 1) // each + (1 if where == "after" and at % each == 0 else 0)
        assert (loaded[0].round if loaded else 0) == manifests
        assert same(play(task(), folder, limit), whole)
        if manifests < 3:  # who dies after the last manifest leaves the sweeping to nobody
            assert {f.name for f in folder.glob("*.safetensors")} == left


def test_a_crash_while_sweeping_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Checkpoint(tmp_path)
    folder.save(state(1, "a"), 1)

    def die(*_: Any, **__: Any) -> None:
        raise Crash

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(Crash):
        folder.save(state(2, "a"), 2)
    monkeypatch.undo()
    loaded = Checkpoint(tmp_path).load()
    assert loaded is not None
    assert same(loaded[0], state(2, "a"))
    folder.save(state(3, "a"), 3)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_servers_state_before_the_last_round_is_kept(tmp_path: Path) -> None:
    folder = Checkpoint(tmp_path)
    assert folder.before() is None
    servers = [{"prompt": torch.full((1,), float(round_))} for round_ in range(5)]
    for round_ in (1, 2, 2, 3):
        folder.save(FederationState(round_, servers[round_], state(round_, "a").personal), round_)
        found = Checkpoint(tmp_path).before()
        assert (None if found is None else (found.round, found.server)) == (
            None if round_ == 1 else (round_ - 1, servers[round_ - 1])
        )
    folder.save(FederationState(9, servers[4], {}), 9)
    assert folder.before() is None, "round 8 is not here"
    folder.save(FederationState(10, servers[4], {}), 10)
    (file,) = (path for path in tmp_path.glob("server-0009*"))
    tensors.save(file, {"prompt": torch.zeros(1)})
    with pytest.raises(FedvlmError, match="is damaged"):
        folder.before()


def test_saving_a_round_again_is_atomic_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a run of fewer rounds is continued, or a method that does not train is measured again."""
    folder = Checkpoint(tmp_path)
    folder.save(state(1, "a"), 1)
    dying(monkeypatch, 2, "before")
    with pytest.raises(Crash):
        folder.save(state(1, "a", value=9.0), 1)
    monkeypatch.undo()
    assert Checkpoint(tmp_path).load() is not None


def test_saving_does_not_touch_the_state(tmp_path: Path) -> None:
    now = state(1, "a", "b")
    before = tiny.fingerprint(now)
    Checkpoint(tmp_path).save(now, 0)
    assert tiny.fingerprint(now) == before


def test_loaded_tensors_are_the_loaders_own(tmp_path: Path) -> None:
    """Writing into a loaded state changes neither the file nor what another load gives."""
    saved = state(1, "a")
    Checkpoint(tmp_path).save(saved, 0)
    loaded = Checkpoint(tmp_path).load()
    assert loaded is not None
    loaded[0].personal["a"]["prompt"].add_(1)
    again = Checkpoint(tmp_path).load()
    assert again is not None
    assert same(again[0], saved)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Checkpoint(tmp_path).save(state(1, "a", "b"), 1)
    return tmp_path


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(FedvlmError) as error:
        Checkpoint(folder).load()
    for word in words:
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize("name", ["server-0001.safetensors", "clients-0001.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "other"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "flip":
        data[-2] ^= 1
        file.write_bytes(data)
    else:
        tensors.save(file, {"a/prompt": torch.zeros(2, 3), "prompt": torch.zeros(2, 3)})
    refused(folder, str(file))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"round": 1}', '{"round": 1, "server": {}, "clients": {}}']
)
def test_a_damaged_manifest_is_named(folder: Path, text: str) -> None:
    (folder / "checkpoint.json").write_text(text)
    refused(folder, "checkpoint.json", "--overwrite")


@pytest.mark.parametrize(
    ("key", "value"), [("server", {}), ("clients", []), ("clients", {"a": {}}), ("server", "x"), ("round", "7")]
)
def test_a_manifest_damaged_further_in_is_named(folder: Path, key: str, value: Any) -> None:
    manifest = folder / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {key: value}))
    refused(folder, "checkpoint.json")


def test_a_manifest_names_files_of_its_own_folder_only(folder: Path) -> None:
    (folder / "server-0001.safetensors").rename(folder.parent / "elsewhere.safetensors")
    manifest = folder / "checkpoint.json"
    manifest.write_text(manifest.read_text().replace("server-0001", "../elsewhere"))
    refused(folder, "checkpoint.json")
