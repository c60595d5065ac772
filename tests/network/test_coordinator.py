"""Rounds of a coordinator: the simulation's numbers by any carrier, whatever dies, and what a bad answer costs."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import SEED, STYLES

from fedvlm import tensors
from fedvlm.errors import FedvlmError
from fedvlm.federation import messages
from fedvlm.federation.messages import Header, Message
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.visits import Progress
from fedvlm.network.carriers import mailbox
from fedvlm.network.carriers.folder import FolderCarrier
from fedvlm.network.carriers.local import LocalCarrier
from fedvlm.network.coordinator import checkpoint
from fedvlm.network.coordinator.run import Coordinator
from fedvlm.network.coordinator.settings import FederationSettings
from fedvlm.network.site import export, serve
from fedvlm.personal import export as personal
from fedvlm.personal import folder
from fedvlm.runs.result import PointResult
from fedvlm.testing import tiny

SMALL = {"all": {"epochs": 1, "batch": 4, "first_block": 5, "last_block": 6}}


class Notes:
    """A watcher that writes down what it is told; `at` is called when a record is complete."""

    def __init__(self) -> None:
        self.refusals: list[tuple[str, str]] = []
        self.rounds: list[int] = []

    def round(self, label: str, seed: int, round_: int, last: int, asked: Mapping[str, Any]) -> None:
        self.rounds.append(round_)

    def replied(self, site: str, reply: Any, bytes_: int) -> None: ...

    def refused(self, site: str, word: str, why: str) -> None:
        self.refusals.append((site, word))

    def waiting(self, seconds: float, missing: list[str], roster: list[str]) -> None: ...

    def finished(self, record: RoundRecord) -> None: ...


def coordinator(field: Any, folder: Path | None = None, **settings: Any) -> Coordinator:
    chosen = FederationSettings(sites=STYLES, **settings)
    return Coordinator.load(field.agreed, chosen, folder or field.folder / "run")


def services(field: Any, **policy: Any) -> dict[str, Any]:
    return {name: field.service(name, **policy) for name in STYLES}


def same(field: Any, method: str, found: PointResult, sites: Mapping[str, Any]) -> None:
    """The result, the server's and the clients' tensors are those of one process."""
    state, records = tiny.run(field.simulation(method))
    assert found.tensors.server == tensors.digest(state.server)
    assert found.final == records[-1].means
    assert found.clients == records[-1].clients
    assert found.tradeoff == records[-1].curves
    for name, service in sites.items():
        stored = service.state.load(field.digest, method, SEED)
        assert tensors.digest(stored.after or {}) == tensors.digest(state.personal.get(name, {}))


@pytest.mark.parametrize("method", ["pfedmma", "pfedmoap"])
def test_sites_in_one_process(method: str, field_of: Any) -> None:
    field = field_of(method, method=SMALL)
    sites = services(field)
    carrier = LocalCarrier({name: site.answer for name, site in sites.items()})
    found = coordinator(field).run(carrier, Notes())
    same(field, method, found[method][SEED], sites)
    told = found[method][SEED]
    for name, site in sites.items():
        origin = export.origin(site.settings)
        model = personal.calibrate(personal.make(origin), origin, 2)
        assert model.facts.metrics == {
            key: one for key, one in told.clients[told.state][name].items() if key != "weight"
        }
        assert model.facts.trainings == 3
        assert model.facts.calibrated.images == 12
        if method == "pfedmoap":
            assert sum(key.startswith("experts.") for key in model.received) == 2, "the other two sites' prompts"
        folder.save(model, field.folder / f"model-{name}")
        images = sorted(field.images[name].glob("test/*/*.png"))
        known = [image for image in images if image.parent.name in model.facts.classes]
        found_ = folder.load(field.folder / f"model-{name}").predict(known)
        right = sum(one.labels[0] == image.parent.name for one, image in zip(found_, known, strict=True))
        assert right / len(known) == pytest.approx(model.facts.metrics["base"])


def test_sites_behind_sockets_and_a_folder(field_of: Any) -> None:
    """Each site serves its socket, and a mailbox's watcher carries between the folder and it."""
    field = field_of("pfedmoap", method=SMALL)
    sites = services(field)
    for name, site in sites.items():
        ready = threading.Event()
        threading.Thread(target=serve.serve, args=(site, ready.set), daemon=True).start()
        assert ready.wait(10)
        box = field.folder / "exchange" / name
        box.mkdir(parents=True)
        threading.Thread(target=mailbox.watch, args=(box, Path(site.settings.socket)), daemon=True).start()
    carrier = FolderCarrier(field.folder / "exchange", STYLES)
    assert carrier.roster() == STYLES
    begun = time.monotonic()
    found = coordinator(field).run(carrier, Notes())
    took = time.monotonic() - begun
    same(field, "pfedmoap", found["pfedmoap"][SEED], sites)
    assert not list((field.folder / "exchange").glob("*/*/*.msg"))
    assert took < 60


class KilledError(Exception):
    """Stands for `kill -9` of the coordinator."""


@pytest.mark.parametrize("moment", ["after sending", "before the checkpoint", "after the ledger"])
@pytest.mark.parametrize("method", ["pfedmoap", "promptfl_ft"])
def test_a_coordinator_that_dies_continues_at_the_unfinished_round(
    method: str, moment: str, field_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = field_of(method, method=SMALL)
    sites = services(field)
    calls = {"answers": 0, "saves": 0}

    def answering(name: str) -> Any:
        def answer(data: bytes) -> bytes:
            calls["answers"] += 1
            found = sites[name].answer(data)
            if moment == "after sending" and calls["answers"] == 5:
                raise KilledError
            return bytes(found)

        return answer

    save = checkpoint.save

    def saving(*arguments: Any) -> None:
        calls["saves"] += 1
        if calls["saves"] == 2:
            if moment == "before the checkpoint":
                raise KilledError
            save(*arguments)
            raise KilledError
        save(*arguments)

    carrier = LocalCarrier({name: answering(name) for name in sites})
    if moment != "after sending":
        monkeypatch.setattr(checkpoint, "save", saving)
    with pytest.raises(KilledError):
        coordinator(field).run(carrier, Notes())
    monkeypatch.undo()
    found = coordinator(field).run(
        LocalCarrier({n: s.answer for n, s in services(field).items()}), Notes(), resume=True
    )
    same(field, method, found[method][SEED], sites)
    told = tiny.run(field.simulation(method))[1]
    records = coordinator(field).folder.point(SEED, method).records()
    assert [one.round for one in records] == [one.round for one in told]
    assert [one.means for one in records] == [one.means for one in told]


def test_a_site_that_refuses_or_talks_nonsense_costs_its_reply_and_no_more(field_of: Any) -> None:
    field = field_of("promptfl")
    sites, notes = services(field), Notes()
    answers = {name: site.answer for name, site in sites.items()}
    answers["neon"] = lambda data: b"no message"
    answers["sketch"] = lambda data: messages.to_bytes(
        Message(Header(kind="refused", reason="policy", answers=hashlib.sha256(data).hexdigest()))
    )
    found = coordinator(field).run(LocalCarrier(answers), notes)
    assert set(notes.refusals) == {("neon", "broken"), ("sketch", "policy")}
    result = found["promptfl"][SEED]
    assert result.clients["after_aggregation"].keys() == {"fog"}
    records = coordinator(field).folder.point(SEED, "promptfl").records()
    assert records[0].absent == {"neon": "broken", "sketch": "policy"}
    assert [one.client for one in records[0].visits] == ["fog"]


def test_fewer_replies_than_a_round_needs_end_the_run_and_lose_nothing(field_of: Any) -> None:
    field = field_of("promptfl")
    sites = services(field)
    answers = {name: site.answer for name, site in sites.items()}
    broken = answers | {"neon": lambda data: b""}
    with pytest.raises(FedvlmError, match=r"round 1: 2 of the 3 replies.*neon \(broken\).*--resume"):
        coordinator(field, least=3).run(LocalCarrier(broken), Notes())
    found = coordinator(field, least=3).run(LocalCarrier(answers), Notes(), resume=True)
    same(field, "promptfl", found["promptfl"][SEED], sites)


class Sleepy(LocalCarrier):
    """One site never answers in its first two rounds."""

    def __init__(self, sites: Any, silent: str) -> None:
        super().__init__(sites)
        self.silent, self.rounds = silent, 0

    def send(self, messages: Mapping[str, bytes]) -> None:
        self.rounds += 1
        super().send({n: d for n, d in messages.items() if n != self.silent or self.rounds > 2})


def test_a_site_that_is_away_for_two_rounds_comes_back_with_its_own_tensors(field_of: Any) -> None:
    field = field_of("pfedmma", method=SMALL)
    sites = services(field)
    carrier = Sleepy({name: site.answer for name, site in sites.items()}, "neon")
    coordinator(field, deadline=6.0).run(carrier, Notes())
    records = coordinator(field).folder.point(SEED, "pfedmma").records()
    assert [sorted(v.client for v in one.visits) for one in records] == [["fog", "sketch"], ["fog", "sketch"], STYLES_]
    assert [one.absent for one in records[:2]] == [{"neon": "absent"}, {"neon": "absent"}]
    stored = sites["neon"].state.load(field.digest, "pfedmma", SEED)
    assert stored is not None
    assert len(stored.trained) == 1


STYLES_ = sorted(STYLES)


def test_a_late_reply_of_an_earlier_round_is_overlooked(field_of: Any) -> None:
    field = field_of("promptfl")
    sites = services(field)

    class Late(LocalCarrier):
        """Gives neon's reply to the first round once more in the second."""

        def __init__(self) -> None:
            super().__init__({name: site.answer for name, site in sites.items()})
            self.first: bytes | None = None

        def receive(self, seconds: float) -> list[tuple[str, bytes]]:
            found = super().receive(seconds)
            for name, data in found:
                if name == "neon" and self.first is None:
                    self.first = data
                elif name == "neon":
                    return [("neon", self.first or b""), (name, data)]
            return found

    notes = Notes()
    found = coordinator(field).run(Late(), notes)
    assert notes.refusals == []
    same(field, "promptfl", found["promptfl"][SEED], sites)


def test_late_answers_of_another_method_are_overlooked(field_of: Any) -> None:
    """A visit that was asked twice is answered twice, the second time when another method is played."""
    field = field_of("zero_shot", "promptfl")
    sites = services(field)
    kept: list[bytes] = []

    class Twice(LocalCarrier):
        """Every answer of fog comes again with the next one of any site."""

        def receive(self, seconds: float) -> list[tuple[str, bytes]]:
            late = [("fog", data) for data in kept]
            kept.clear()
            found = super().receive(seconds)
            kept.extend(data for name, data in found if name == "fog")
            return late + found

    notes = Notes()
    found = coordinator(field, least=3).run(Twice({n: s.answer for n, s in sites.items()}), notes)
    assert notes.refusals == []
    same(field, "promptfl", found["promptfl"][SEED], sites)


def test_a_metric_that_is_missing_in_an_early_round_does_not_end_the_run(field_of: Any) -> None:
    """One site tells no metric, and the others are away when it is measured."""
    field = field_of("promptfl", evaluation={"every": 1, "general": "own_domain"})
    sites = services(field)
    sites["fog"] = field.service("fog", metrics="none")

    class Away(LocalCarrier):
        def __init__(self) -> None:
            super().__init__({name: site.answer for name, site in sites.items()})
            self.rounds = 0

        def send(self, messages: Mapping[str, bytes]) -> None:
            self.rounds += 1
            super().send({n: d for n, d in messages.items() if n == "fog" or self.rounds != 2})

    found = coordinator(field, deadline=3.0).run(Away(), Notes())["promptfl"][SEED]
    assert [round_ for round_, _ in found.curve["local"]] == [2, 3]
    assert found.final["after_aggregation"].keys() >= {"local", "base"}


def test_the_checkpoint_comes_back_whole_and_a_damaged_one_is_named(field_of: Any, tmp_path: Path) -> None:
    run = tiny.simulation(tiny.method("pfedmoap"), tiny.clip(), tiny.federation())
    state, records = tiny.run(run)
    kept = Progress(2, dict(reversed(state.server.items())), records[-1], False)
    checkpoint.save(tmp_path, kept, 77)
    back = checkpoint.load(tmp_path)
    assert back is not None
    assert back[1] == 77
    assert list(back[0].server) == list(kept.server)
    assert tensors.equal(back[0].server, kept.server)
    assert back[0].open == records[-1]
    (tmp_path / checkpoint.FILE).write_bytes(b"x" * 50)
    with pytest.raises(FedvlmError, match=r"server\.safetensors is damaged"):
        checkpoint.load(tmp_path)
