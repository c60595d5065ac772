"""A full disk, a wrong clock, other weights, other classes, a slow site: a sentence on both sides, and nothing is lost."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from conftest import SEED, STYLES
from test_coordinator import SMALL, Notes, coordinator, same, services

from fedvlm import clip as clips
from fedvlm.errors import FedvlmError
from fedvlm.network.carriers.local import LocalCarrier
from fedvlm.network.site.service import Service

EMBEDDED = Path(clips.__file__).parent / "embedded"


def carrier(sites: Mapping[str, Service]) -> LocalCarrier:
    return LocalCarrier({name: site.answer for name, site in sites.items()})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of 256 KiB."""
    libc, place = ctypes.CDLL(None, use_errno=True), tmp_path / "disk"
    place.mkdir()
    if os.getuid() or libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=256k"):
        pytest.skip("only root may mount a small disk")
    yield place
    libc.umount2(bytes(place), 2)


def fill(disk: Path) -> Path:
    """Fill a disk with one file."""
    path = disk / "filling"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
    return path


def test_a_full_disk_at_a_site(field_of: Any, small_disk: Path) -> None:
    field, told = field_of("promptfl", method=SMALL), list[str]()
    sites = services(field)
    own = field.site("neon").model_copy(update={"state": str(small_disk / "state")})
    sites["neon"] = Service(own, told.append)
    sites["neon"].read_experiments()
    filling, notes = fill(small_disk), Notes()
    with pytest.raises(FedvlmError, match=r"neon \(failed\).*--resume"):
        coordinator(field, least=3).run(carrier(sites), notes)
    assert notes.refusals == [("neon", "failed")]
    assert any("the disk is full: free some space" in line for line in told)
    assert sites["neon"].state.load(field.digest, "promptfl", SEED) is None
    assert not list((small_disk / "state").glob("**/*.safetensors"))
    filling.unlink()
    found = coordinator(field, least=3).run(carrier(sites), Notes(), resume=True)
    same(field, "promptfl", found["promptfl"][SEED], sites)


def test_a_full_disk_at_the_coordinator(field_of: Any, small_disk: Path) -> None:
    field = field_of("promptfl", method=SMALL)
    sites = services(field)
    here = coordinator(field, small_disk / "run")

    class Filling(LocalCarrier):
        """Fills the disk while the second round is played."""

        def __init__(self) -> None:
            super().__init__({name: site.answer for name, site in sites.items()})
            self.rounds = 0

        def send(self, messages: Mapping[str, bytes]) -> None:
            self.rounds += 1
            if self.rounds == 2:
                fill(small_disk)
            super().send(messages)

    with pytest.raises(FedvlmError, match=r"disk|space"):
        here.run(Filling(), Notes())
    (small_disk / "filling").unlink()
    found = coordinator(field, small_disk / "run").run(carrier(sites), Notes(), resume=True)
    same(field, "promptfl", found["promptfl"][SEED], sites)


@pytest.mark.parametrize("year", [1971, 2099])
def test_a_wrong_clock_at_a_site_changes_nothing(year: int, field_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    field = field_of("promptfl", method=SMALL)
    sites = services(field)
    strftime, wrong = time.strftime, time.struct_time((year, 1, 1, 0, 0, 0, 0, 1, 0))
    monkeypatch.setattr(time, "strftime", lambda form, *given: strftime(form, *(given or (wrong,))))
    monkeypatch.setattr(time, "time", lambda: (year - 1970) * 3.15576e7)
    found = coordinator(field).run(carrier(sites), Notes())
    assert (sites["neon"].state.path / "sent.jsonl").read_text().startswith(f'{{"time": "{year}')
    monkeypatch.undo()
    same(field, "promptfl", found["promptfl"][SEED], sites)


def test_other_weights_at_a_site(field_of: Any, tmp_path: Path) -> None:
    field, told = field_of("promptfl", method=SMALL), list[str]()
    other = tmp_path / "model"
    other.mkdir()
    for file in EMBEDDED.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["logit_scale"] = weights["logit_scale"] + 0.01
    safetensors.torch.save_file(weights, other / "model.safetensors", {"format": "pt"})
    sites, notes = services(field), Notes()
    sites["neon"] = Service(field.site("neon").model_copy(update={"model": str(other)}), told.append)
    sites["neon"].read_experiments()
    found = coordinator(field).run(carrier(sites), notes)
    assert set(notes.refusals) == {("neon", "model")}
    assert "its model is '" in told[-1]
    assert found["promptfl"][SEED].clients["after_aggregation"].keys() == {"fog", "sketch"}


def test_other_classes_at_a_site(field_of: Any) -> None:
    """Their order is the order of the labels: a site with other ones approves another experiment."""
    field, told = field_of("promptfl", method=SMALL), list[str]()
    sites, notes = services(field), Notes()
    classes = field.plain["data"]["classes"]
    other = field_of("promptfl", method=SMALL, data=field.plain["data"] | {"classes": classes[::-1]})
    assert other.digest != field.digest
    sites["neon"] = other.service("neon", told)
    coordinator(field).run(carrier(sites), notes)
    assert set(notes.refusals) == {("neon", "experiment")}
    assert told[-1].endswith(f"policy.experiments does not approve {field.digest}")


def test_a_slow_site_is_not_waited_for_and_takes_part_again(field_of: Any) -> None:
    """Its first reply comes after the deadline; nothing of it is lost at the site."""
    field = field_of("pfedmma", method=SMALL)
    sites = services(field)

    class Slow(LocalCarrier):
        """Neon trains in the first round, and its reply arrives in the second."""

        def __init__(self) -> None:
            super().__init__({name: site.answer for name, site in sites.items()})
            self.late: bytes | None = None
            self.rounds = 0

        def send(self, messages: Mapping[str, bytes]) -> None:
            self.rounds += 1
            super().send(messages)
            if self.rounds == 1:
                self.late = sites["neon"].answer(self.waiting.pop("neon"))

        def receive(self, seconds: float) -> list[tuple[str, bytes]]:
            if self.rounds == 2 and self.late is not None:
                late, self.late = self.late, None
                return [("neon", late)]
            return super().receive(seconds)

    notes = Notes()
    coordinator(field, deadline=3.0).run(Slow(), notes)
    assert notes.refusals == []
    records = coordinator(field).folder.point(SEED, "pfedmma").records()
    assert [one.absent for one in records] == [{"neon": "absent"}, {}, {}]
    assert [len(one.visits) for one in records] == [2, 3, 3]
    stored = sites["neon"].state.load(field.digest, "pfedmma", SEED)
    assert stored is not None
    assert len(stored.trained) == 3


def test_names_of_the_sites_are_those_of_the_simulation(field_of: Any) -> None:
    assert [client.name for client in field_of("coop").simulation("coop").site.federation.clients] == sorted(STYLES)
