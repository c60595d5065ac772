"""Writers for other programs: read back with the programs' own readers, and compared with the ledger's own lines."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from called import call, hear_interrupts

import fedvlm
from fedvlm.errors import FedvlmError
from fedvlm.reports import track
from fedvlm.reports.track import follow, series
from fedvlm.runs.folder import RunFolder

DATA = {"styles": ["neon"], "base_classes": 2, "novel_classes": 2, "shots": 2, "val_per_class": 0, "test_per_class": 2}
WORDS = ["data.base_classes=2", "data.novel_classes=2", "data.shots=2", "data.val_per_class=0", "data.test_per_class=2",
         'data.styles=["neon"]', "partition.clients=2", "method.all.epochs=1", "evaluation.every=1"]  # fmt: skip
Read = tuple[dict[str, list[tuple[int, float]]], dict[str, Any]]
"""Numbers by name, as pairs of step and value; settings."""


def read_tensorboard(folder: Path) -> dict[str, Read]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    found: dict[str, Read] = {}
    for place in sorted(file.parent for file in folder.rglob("events.out.tfevents.*")):
        read = EventAccumulator(str(place), size_guidance={"scalars": 0})
        read.Reload()
        numbers = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
        content = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        kinds = {name: value.WhichOneof("kind") for name, value in start.hparams.items()}
        settings = {name: getattr(value, str(kinds[name])) for name, value in start.hparams.items()}
        key = place.relative_to(folder).as_posix()
        assert key not in found, "two event files of one series"
        found[key] = numbers, settings
    return found


def read_mlflow(folder: Path) -> dict[str, Read]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    found: dict[str, Read] = {}
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
        key = run.data.tags["fedvlm.series"]
        assert key not in found, "two runs of one series"
        numbers = {
            name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        found[key] = numbers, dict(run.data.params) | {"status": run.info.status}
    return found


def blocks(data: bytes) -> Iterator[bytes]:
    """Records of a `.wandb` file: LevelDB's log format (blocks of 32 KiB; checksum, length, kind), after 7 bytes."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


def read_wandb(folder: Path) -> dict[str, Read]:
    from wandb.proto import wandb_internal_pb2 as messages

    found: dict[str, Read] = {}
    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        numbers: dict[str, list[tuple[int, float]]] = {}
        settings: dict[str, Any] = {}
        for record in map(messages.Record.FromString, blocks(file.read_bytes())):
            if record.WhichOneof("record_type") == "run":
                settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    numbers.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
            for item in record.summary.update:
                name = item.key or "/".join(item.nested_key)
                if name.startswith(("final/", "mean_of_last_five/")):
                    numbers[name] = [(-1, json.loads(item.value_json))]
        key = f"seed-{settings['seed']}/{settings['method']}"
        assert key not in found, "two folders of one series"
        found[key] = numbers, settings
    return found


READERS: dict[str, Callable[[Path], dict[str, Read]]] = {
    "tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb,
}  # fmt: skip


def installed(name: str) -> bool:
    try:
        for package in track.NEEDS[name]:
            metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


HERE = [name for name in READERS if installed(name)]
each = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in HERE else pytest.mark.skip(f"needs the extra {name}")) for name in READERS],
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedvlm.run(
        "quickstart", rounds=3, methods=["zero_shot", "promptfl"], seeds=[0, 1], data=DATA, partition={"clients": 2},
        method={"all": {"epochs": 1}}, evaluation={"every": 1}, out=tmp_path_factory.mktemp("run") / "one",
    ).folder  # fmt: skip


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def ledger(point: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (point / "ledger.jsonl").read_text().splitlines()]


def expected(point: Path) -> dict[str, list[tuple[int, float]]]:
    """The numbers that a point's ledger holds, counted here from its lines."""
    found: dict[str, list[tuple[int, float]]] = {}
    total, visits = 0, []
    for line in ledger(point):
        if line["kind"] == "visit":
            visits.append(line)
            continue
        (state, means), *_ = line["means"].items()
        assert state == json.loads((point / "result.json").read_text())["state"]
        up, down = (sum(sum(visit[key].values()) for visit in visits) for key in ("up_bytes", "down_bytes"))
        total += up + down
        own = {f"reported/{name}": value for name, value in means.items()}
        own |= {"bytes/up_bytes": up, "bytes/down_bytes": down, "bytes/total_bytes": total}
        own |= {"seconds/train_s": line["train_s"], "seconds/evaluate_s": line["evaluate_s"]}
        for name, value in own.items():
            found.setdefault(name, []).append((line["round"], value))
        visits = []
    return found


def check(found: dict[str, Read], folder: Path) -> None:
    """Whether a writer holds exactly what the run folder does: every series, every step once, every value."""
    points = [file.parent for file in folder.glob("seed-*/*/point.json")]
    assert found.keys() == {point.relative_to(folder).as_posix() for point in points}
    for point in points:
        numbers, settings = found[point.relative_to(folder).as_posix()]
        for name, pairs in expected(point).items():
            assert sorted(step for step, _ in numbers[name]) == [step for step, _ in pairs], name
            for (_, there), (_, wanted) in zip(sorted(numbers[name]), pairs, strict=True):
                assert there == pytest.approx(wanted, rel=1e-6), name
        assert settings["method"] == point.name
        assert float(settings["rounds"]) == json.loads((folder / "experiment.json").read_text())["experiment"]["rounds"]
        result = json.loads((point / "result.json").read_text())
        for name, wanted in result["final"][result["state"]].items():
            ((_, there),) = numbers[f"final/{name}"]
            assert there == pytest.approx(wanted, rel=1e-6)


@each
def test_what_is_written_is_what_the_ledger_says(name: str, copied: Path) -> None:
    done = call("track", str(copied), "--to", name)
    assert done.returncode == 0, done.stderr
    assert "4 methods and seeds, 8 rounds written" in done.stdout
    check(READERS[name](copied / "track" / name), copied)
    files = {file: file.stat().st_mtime_ns for file in (copied / "track").rglob("*") if file.suffix != ".db-shm"}
    assert "0 methods and seeds, 0 rounds written" in call("track", str(copied), "--to", name).stdout
    assert {file: file.stat().st_mtime_ns for file in files if file.name not in (".lock", "mlflow.db")} == {
        file: when for file, when in files.items() if file.name not in (".lock", "mlflow.db")
    }


@each
def test_losses_are_means_over_the_steps_of_a_round(name: str, copied: Path) -> None:
    call("track", str(copied), "--to", name)
    numbers, _ = READERS[name](copied / "track" / name)["seed-1/promptfl"]
    visits = [line for line in ledger(copied / "seed-1" / "promptfl") if line["kind"] == "visit" and line["round"] == 2]
    losses = [loss for visit in visits for loss in visit["losses"]]
    assert dict(numbers["training/loss_nats"])[2] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert dict(numbers["training/clients"])[2] == 2


@each
def test_no_client_is_named(name: str, copied: Path) -> None:
    """Names of series, numbers and settings are the only words that a writer gets; a renamed client is in none."""
    for point in copied.glob("seed-*/*"):
        for file in point.glob("ledger.jsonl"):
            file.write_text(file.read_text().replace('"client": "', '"client": "Agatha-'))
    call("track", str(copied), "--to", name)
    assert not [file for file in (copied / "track").rglob("*") if file.is_file() and b"Agatha" in file.read_bytes()]


@each
def test_an_unfinished_series_is_written_anew(name: str, copied: Path) -> None:
    """What a run that died and was continued leaves: first two of three rounds, then other rounds from the second on."""
    point = copied / "seed-1" / "promptfl"
    result, lines = (point / "result.json").read_text(), (point / "ledger.jsonl").read_text().splitlines(keepends=True)
    ends = [place + 1 for place, line in enumerate(lines) if '"kind": "round"' in line]
    (point / "result.json").unlink()
    (point / "ledger.jsonl").write_text("".join(lines[: ends[1]]))
    run = RunFolder(copied)
    with follow.opened(run, name) as follower:
        follower.look()
        # A checkpoint of round 1; round 2 is played again and takes another time.
        again = [line.replace('"train_s": ', '"train_s": 1') for line in lines[ends[0] : ends[1]]]
        (point / "ledger.jsonl").write_text("".join(lines[: ends[0]] + again))
        follower.look()
        (point / "ledger.jsonl").write_text("".join(lines[: ends[0]] + again + lines[ends[1] :])[:-30])
        follower.look()
    if name == "mlflow":
        assert read_mlflow(copied / "track" / name)["seed-1/promptfl"][1]["status"] == "KILLED"
    (point / "ledger.jsonl").write_text("".join(lines[: ends[0]] + again + lines[ends[1] :]))
    (point / "result.json").write_text(result)
    follow.write(run, name)
    check(READERS[name](copied / "track" / name), copied)


@each
def test_two_processes_do_not_write_the_same_series(name: str, copied: Path) -> None:
    with follow.opened(RunFolder(copied), name), pytest.raises(FedvlmError, match="another process is writing"):
        follow.write(RunFolder(copied), name)


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch, copied: Path) -> None:
    def absent(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)
    for name in READERS:
        done = call("track", str(copied), "--to", name)
        assert done.returncode == 2
        assert f"pip install 'fedvlm[{name}]'" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_an_unknown_writer_and_none(copied: Path) -> None:
    assert "did you mean 'tensorboard'?" in call("track", str(copied), "--to", "tensorbord").stderr
    done = call("run", "quickstart", "--track", "mlflows", "--out", str(copied.parent / "new"))
    assert (done.returncode, "did you mean 'mlflow'?" in done.stderr) == (2, True)
    assert not (copied.parent / "new").exists()
    assert "--to names the writer" in call("track", str(copied)).stderr
    assert "is no run folder" in call("track", str(copied.parent / "none"), "--to", "tensorboard").stderr or not HERE


class Failing:
    """A writer that works for one round."""

    def begin(self, one: Any, time_s: float) -> Failing:
        return self

    def round(self, step: int, time_s: float, values: Any) -> None:
        raise OSError("the writer's disk\nis full")

    def end(self, final: Any) -> None:
        raise RuntimeError("nor can it end")


def test_a_writer_that_fails_does_not_cost_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "_installed", lambda package: True)
    monkeypatch.setattr(track, "open_tracker", lambda name, folder: Failing())
    monkeypatch.setattr(track, "hint", lambda name, folder: "-")
    done = call(
        "run", "quickstart", *WORDS, "rounds=2", "methods=promptfl", "--track", "mlflow", "--out", str(tmp_path / "r")
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("warning: mlflow ")
    assert f"the run goes on without it (afterwards: fedvlm track {tmp_path / 'r'} --to mlflow)" in line
    assert (tmp_path / "r" / "table.json").exists()


@each
def test_overwriting_takes_the_written_series_away(name: str, tmp_path: Path) -> None:
    words = ["run", "quickstart", *WORDS, "rounds=1", "methods=zero_shot", "--out", str(tmp_path / "r")]
    assert call(*words, "--track", name).returncode == 0
    check(READERS[name](tmp_path / "r" / "track" / name), tmp_path / "r")
    assert call(*words, "--overwrite").returncode == 0
    assert not [file for file in (tmp_path / "r" / "track").rglob("*") if file.is_file()]


def test_runs_of_a_sweep_are_found(copied: Path, tmp_path: Path) -> None:
    for value in ("a=1", "a=2"):
        shutil.copytree(copied, tmp_path / "sweep" / value)
    assert [one.path.name for one in series.runs_in(tmp_path / "sweep")] == ["a=1", "a=2"]
    assert [one.path for one in series.runs_in(copied)] == [copied]


def test_long_settings_are_cut(copied: Path) -> None:
    file = copied / "experiment.json"
    saved = json.loads(file.read_text())
    saved["experiment"]["data"]["styles"] = ["neon"] * 300
    (point, *_) = series.points(RunFolder(copied))
    found = series.describe(saved, point)
    assert len(str(found.settings["data.styles"])) == series.LONGEST
    assert found.settings["rounds"] == 3
    assert not [key for key in found.settings if key.startswith("method.promptfl")]


@pytest.mark.skipif(not HERE, reason="needs an extra: tensorboard, mlflow or wandb")
@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_every_step_is_there_once(tmp_path: Path, processes: int) -> None:
    """kill -9 in the middle, with all writers at work; the resumed run ends with the ledger's rounds, each once."""
    folder = tmp_path / "run"
    trackers = [word for name in HERE for word in ("--track", name)]
    command = [sys.executable, "-m", "fedvlm", "run", "quickstart", *WORDS, "rounds=12", "methods=promptfl,pfedmoap",
               "method.all.epochs=3", "--processes", str(processes), "--out", str(folder), *trackers]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, start_new_session=True)

    def begun() -> bool:
        written = all(any((folder / "track" / name).rglob("*")) for name in HERE)
        return written and sum(file.read_bytes().count(b"\n") for file in folder.rglob("ledger.jsonl")) >= 14

    while first.poll() is None and not begun():
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert len(list(folder.rglob("result.json"))) < 2
    second = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment)
    assert second.returncode == 0, second.stderr
    assert "warning" not in second.stderr
    for name in HERE:
        found = READERS[name](folder / "track" / name)
        check(found, folder)
        for numbers, _ in found.values():
            assert len(numbers["reported/local"]) == 12


@pytest.mark.skipif(not HERE, reason="needs an extra: tensorboard, mlflow or wandb")
@pytest.mark.long
def test_interrupted_with_writers_at_work_the_last_line_is_ours(tmp_path: Path) -> None:
    """Programs of others like to say goodbye."""
    trackers = [word for name in HERE for word in ("--track", name)]
    command = [sys.executable, "-m", "fedvlm", "run", "quickstart", *WORDS, "rounds=500", "methods=promptfl", "--out", "r",
               *trackers]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=environment, start_new_session=True, preexec_fn=hear_interrupts)  # fmt: skip
    ledger_file, begun = tmp_path / "r" / "seed-0" / "promptfl" / "ledger.jsonl", time.monotonic()
    files = ("tensorboard/seed-0/promptfl/events.*", "mlflow/mlflow.db", "wandb/offline-run-*/run-*.wandb")
    wanted = [file for file in files if file.partition("/")[0] in HERE]
    while not (ledger_file.exists() and all(any((tmp_path / "r" / "track").glob(file)) for file in wanted)):
        assert time.monotonic() - begun < 240
        time.sleep(0.05)
    time.sleep(2)
    os.killpg(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=240)
    assert running.returncode == 130
    assert told.splitlines() == ["fedvlm: interrupted", "to continue:", shlex.join([*command, "--resume"])]
