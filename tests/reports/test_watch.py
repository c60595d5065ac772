"""How far a run is: finished, interrupted, under way."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedvlm
from fedvlm.cli import app
from fedvlm.errors import FedvlmError
from fedvlm.reports import watch
from fedvlm.runs.folder import RunFolder

DATA = {"styles": ["neon"], "base_classes": 2, "novel_classes": 2, "shots": 2, "val_per_class": 0, "test_per_class": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedvlm.run(
        "quickstart", rounds=2, methods=["zero_shot", "promptfl"], seeds=[0, 1], data=DATA, partition={"clients": 2},
        method={"all": {"epochs": 1}}, out=tmp_path_factory.mktemp("run") / "one",
    ).folder  # fmt: skip


@pytest.fixture
def half(run: Path, tmp_path: Path) -> Path:
    """The same run before its last point: one of two rounds is over."""
    place = tmp_path / "half"
    shutil.copytree(run, place)
    last = place / "seed-1" / "promptfl"
    (last / "result.json").unlink()
    lines = (last / "ledger.jsonl").read_text().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "round")
    (last / "ledger.jsonl").write_text("".join(lines[: first + 1]))
    return place


def test_a_finished_run(run: Path) -> None:
    found = watch.snapshot(run)
    assert [(one.method, one.seed, one.state, one.round, one.rounds) for one in found.points] == [
        ("zero_shot", 0, "done", 0, 0), ("promptfl", 0, "done", 2, 2), ("zero_shot", 1, "done", 0, 0),
        ("promptfl", 1, "done", 2, 2),
    ]  # fmt: skip
    assert found.finished
    assert not found.running
    assert watch.said(found) == "finished, 4 of 4"
    (record,) = (one for one in RunFolder(run).point(1, "promptfl").records() if one.round == 2)
    last = found.points[-1]
    assert last.metrics["local"] == next(iter(record.means.values()))["local"]
    assert last.loss == pytest.approx(
        sum(loss for visit in record.visits for loss in visit.losses)
        / sum(len(visit.losses) for visit in record.visits)
    )


def test_an_interrupted_run_says_how_to_go_on(half: Path) -> None:
    found = watch.snapshot(half)
    assert (found.points[-1].state, found.points[-1].round) == ("begun", 1)
    assert watch.said(found) == "3 of 4 done; nobody is at it: --resume continues"
    told = CliRunner().invoke(app, ["watch", str(half)]).output
    assert "--resume continues" in told
    assert "1/2" in told


def test_a_run_under_way_is_watched_to_its_end(half: Path, run: Path) -> None:
    with (half / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert watch.snapshot(half).running
        assert "min of computing left" in watch.said(watch.snapshot(half))

        def finish() -> None:
            shutil.copytree(run / "seed-1", half / "seed-1", dirs_exist_ok=True)

        timer = threading.Timer(0.7, finish)
        timer.start()
        done = CliRunner().invoke(app, ["watch", str(half), "--every", "0.2"])
        timer.join()
    assert done.exit_code == 0, done.exception
    assert "finished, 4 of 4" in done.output
    told = json.loads(CliRunner().invoke(app, ["watch", str(half), "--json"]).output)
    assert [one["state"] for one in told["points"]] == ["done"] * 4


def test_a_line_that_is_being_written_is_waited_for(half: Path) -> None:
    ledger = half / "seed-1" / "promptfl" / "ledger.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole[:-20])

    def write_the_rest() -> None:
        with ledger.open("a") as file:
            file.write(whole[-20:])

    timer = threading.Timer(0.2, write_the_rest)
    timer.start()
    assert watch.snapshot(half).points[-1].round == 1
    timer.join()


def test_a_damaged_ledger_is_named(half: Path) -> None:
    ledger = half / "seed-1" / "promptfl" / "ledger.jsonl"
    ledger.write_text(ledger.read_text()[:-20])
    with pytest.raises(FedvlmError, match=r"promptfl/ledger.jsonl has a line that is no record"):
        watch.snapshot(half)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match="is no run folder"):
        watch.snapshot(tmp_path)
