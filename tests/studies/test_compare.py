"""Comparing methods: what is played, what is not played again, and that the tables say what the results say."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import queue
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_results import point
from rich.console import Console

import fedvlm
from fedvlm import experiment, overrides, presets
from fedvlm.errors import DivergenceError, FedvlmError, StorageError
from fedvlm.reports.comparison import Comparison, Target, compare
from fedvlm.reports.text import as_csv, as_latex, as_markdown
from fedvlm.runs import result, workers
from fedvlm.runs.failure import Failure, attempt
from fedvlm.runs.progress import Reporter, Shown
from fedvlm.runs.result import PointResult
from fedvlm.runs.runner import run
from fedvlm.studies import compare as comparing
from fedvlm.studies.study import Options

SMALL = ["data.shots=2", "data.val_per_class=2", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=2", "evaluation.every=1"]  # fmt: skip
METHODS = ["zero_shot", "coop", "pfedmoap", "zero_shot_prior"]


def settings(*words: str, methods: list[str] | None = None, seeds: str = "0,1,2") -> experiment.Experiment:
    chosen = [*SMALL, f"methods={','.join(methods or METHODS)}", f"seeds={seeds}", *words]
    return experiment.parse(overrides.apply_words(presets.settings("quickstart"), chosen))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare") / "c"


@pytest.fixture(scope="module")
def found(folder: Path) -> Comparison:
    return comparing.compare(settings(), folder, target=Target("local", 0.5), options=Options(processes=2))


def results(folder: Path) -> dict[str, dict[int, PointResult]]:
    return {m: {s: result.read(folder / f"seed-{s}/{m}/result.json") for s in (0, 1, 2)} for m in METHODS}


def test_two_processes_give_the_same_points_as_one(found: Comparison, folder: Path, tmp_path: Path) -> None:
    run(settings(seeds="1"), tmp_path / "one")
    for method in METHODS:
        one, other = (
            json.loads((f / f"seed-1/{method}/result.json").read_text())["digest"] for f in (tmp_path / "one", folder)
        )
        assert one == other


def test_the_point_is_the_reported_state_and_the_curve_ends_at_zero_shot(found: Comparison, folder: Path) -> None:
    points = results(folder)
    zero = next(row for row in found.rows if row.method == "zero_shot")
    for row in found.rows:
        for place, seed in enumerate(found.seeds):
            point = points[row.method][seed]
            final = point.reported
            assert row.values["local"][place] == final["local"]
            curve = {one["weight"]: one for one in point.tradeoff["test"]}
            assert curve[0.0]["local"] == final["local"]
            assert curve[0.0]["novel"] == final["novel"]
            assert curve[1.0]["base"] == pytest.approx(zero.values["base"][place])
            assert curve[1.0]["hm"] == pytest.approx(zero.values["hm"][place])


def test_the_weight_is_chosen_on_validation_images_alone(found: Comparison, folder: Path) -> None:
    for row in found.rows:
        for place, seed in enumerate(found.seeds):
            curves = results(folder)[row.method][seed].tradeoff
            best = max(one["hm"] for one in curves["val"])
            chosen = next(one for one in curves["val"] if one["weight"] == row.values["weight"][place])
            assert chosen["hm"] == best
            test = next(one for one in curves["test"] if one["weight"] == row.values["weight"][place])
            assert row.values["tuned"][place] == pytest.approx(test["hm"])


def test_validation_and_test_images_differ_but_clients_do_not(folder: Path) -> None:
    from fedvlm.data import federate, federate_validation, load_source

    chosen = settings()
    source = load_source(chosen.data, 0)
    test, val = federate(source, chosen, 0), federate_validation(source, chosen, 0)
    assert val is not None
    assert [(c.name, c.train, c.classes) for c in test.clients] == [(c.name, c.train, c.classes) for c in val.clients]
    seen, other = ({i for one in fed.tests.values() for i in one} for fed in (test, val))
    assert not seen & other
    assert all(source.records[i].split == "val" for i in other)
    assert not other & {i for c in test.clients for i in c.train}


def test_differences_are_paired_within_seeds(found: Comparison) -> None:
    rows = {row.method: row for row in found.rows}
    pairs = [a - b for a, b in zip(rows["pfedmoap"].values["hm"], rows["zero_shot"].values["hm"], strict=True)]
    one = rows["pfedmoap"].differences["hm"]
    assert one.estimate.mean == pytest.approx(statistics.fmean(pairs))
    assert one.p is not None
    assert one.corrected is not None
    assert 0.25 <= one.p <= one.corrected <= 1  # three seeds: 2 of 8 sign patterns at best
    assert rows["zero_shot"].differences == {}


def test_rounds_and_bytes_until_an_accuracy(found: Comparison, folder: Path) -> None:
    points = results(folder)
    for row in found.rows:
        for place, seed in enumerate(found.seeds):
            curve = points[row.method][seed].curve["local"]
            first = next((r for r, value in curve if value >= 0.5), None)
            assert row.rounds[place] == first
            if first is not None:
                lines = (folder / f"seed-{seed}/{row.method}/ledger.jsonl").read_text().splitlines()
                visits = [one for one in map(json.loads, lines) if one["kind"] == "visit" and one["round"] <= first]
                sent = sum(sum(one["up_bytes"].values()) + sum(one["down_bytes"].values()) for one in visits)
                assert row.total_bytes[place] == sent


def test_every_format_tells_the_same(found: Comparison, folder: Path) -> None:
    rows = list(csv.DictReader(as_csv(found).splitlines()))
    assert len(rows) == len(METHODS) * 3
    coop = next(row for row in found.rows if row.method == "coop")
    assert [float(row["local"]) for row in rows if row["method"] == "coop"] == pytest.approx(
        [value * 100 for value in coop.values["local"]], abs=1e-4
    )
    estimate = coop.estimate("local")
    assert estimate is not None
    text = as_markdown(found)
    assert f"{estimate.mean * 100:.1f} ± {estimate.half * 100:.1f}" in text  # type: ignore[operator]
    assert "cannot be below 0.25" in text
    assert "Differences from `zero_shot`" in text
    latex = as_latex(found)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    cells = [cell for line in latex.splitlines() if line.endswith(r"\\") for cell in line[:-2].split(" & ")]
    assert cells
    assert not [cell for cell in cells if re.search(r"(?<!\\)[_%#&]", cell)]
    assert all((folder / f"compare.{ending}").exists() for ending in ("md", "csv", "tex", "json"))
    assert (folder / "tradeoff.png").stat().st_size > 5_000


def test_methods_and_seeds_may_be_added_and_nothing_is_played_twice(found: Comparison, folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.glob("seed-*/*/*.json*")}
    more = comparing.compare(
        settings(methods=[*METHODS, "promptfl"], seeds="0,1,2,3"), folder, target=Target("local", 0.5)
    )
    assert {row.method for row in more.rows} == {*METHODS, "promptfl"}
    assert more.seeds == [0, 1, 2, 3]
    assert {file: file.read_bytes() for file in before} == before
    less = comparing.compare(settings(methods=["coop", "zero_shot"], seeds="1"), folder)
    assert [row.method for row in less.rows] == ["coop", "zero_shot"]
    assert less.rows[0].differences["hm"].p is None


def test_other_settings_are_refused_and_nothing_is_lost(found: Comparison, folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.glob("seed-*/*/result.json")}
    with pytest.raises(FedvlmError, match=r"rounds: 2 then, 3 now"):
        comparing.compare(settings("rounds=3"), folder)
    about = (folder / "experiment.json").read_bytes()
    with pytest.raises(FedvlmError, match=r"settings\.lr: 0\.1 then, 0\.5 now.*a name of its own"):
        comparing.compare(settings("method.coop.lr=0.5", methods=["promptfl_prox", "coop"]), folder)
    assert not (folder / "seed-0/promptfl_prox/result.json").exists()
    assert (folder / "experiment.json").read_bytes() == about
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(("words", "told"), [(["methods=coop,coop"], "coop twice"), (["seeds=1,2,1"], "1 twice")])
def test_what_is_named_twice_is_refused_at_once(words: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match=told):
        comparing.compare(
            experiment.parse(overrides.apply_words(presets.settings("quickstart"), words)), tmp_path / "c"
        )


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
def diverged(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Comparison, Path]:
    """CoOp leaves the numbers with every seed; its rate is another one than that of `promptfl`."""
    broken = settings("method.coop.lr=1e30", methods=["coop", "zero_shot", "promptfl"], seeds="0,1")
    return comparing.compare(broken, tmp_path / "c", options=Options(processes=request.param)), tmp_path / "c"


def test_a_method_that_diverges_costs_no_other_its_row(diverged: tuple[Comparison, Path]) -> None:
    """The review's case: no table for anybody, and with one process nobody after it was played."""
    found, folder = diverged
    assert [row.method for row in found.rows] == ["zero_shot", "promptfl"]
    assert found.failed == {"coop": "diverged (2 of 2 seeds)"}
    assert "| coop | diverged (2 of 2 seeds) | -" in (folder / "compare.md").read_text()
    assert "no mean over the other seeds" in (folder / "compare.md").read_text()
    assert json.loads((folder / "compare.json").read_text())["failed"] == found.failed
    assert "| coop | diverged (2 of 2 seeds) | -" in (folder / "table.md").read_text()
    assert {"method": "coop", "failed": "diverged (2 of 2 seeds)"} in json.loads((folder / "table.json").read_text())
    rows = list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))
    assert [row["state"] for row in rows if row["method"] == "coop"] == ["diverged (2 of 2 seeds)"]
    assert sum("coop" in line for line in as_latex(found).splitlines()) == 1
    for seed in (0, 1):
        assert (folder / f"seed-{seed}/promptfl/result.json").exists()
        assert not (folder / f"seed-{seed}/coop/result.json").exists()


def test_no_mean_is_taken_over_the_seeds_that_did_not_diverge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedvlm.runs import runner

    played = runner._run_point

    def unlucky(run: Any, scene: Any, name: str, point: Any) -> dict[str, Any]:
        if (name, scene.seed) == ("coop", 1):
            raise DivergenceError("round 2, client 0: coop: its loss is no longer finite")
        return played(run, scene, name, point)

    monkeypatch.setattr(runner, "_run_point", unlucky)
    found = comparing.compare(settings(methods=["coop", "zero_shot"]), tmp_path / "c")
    assert found.failed == {"coop": "diverged (1 of 3 seeds)"}
    assert [row.method for row in found.rows] == ["zero_shot"]
    monkeypatch.undo()
    again = comparing.compare(settings(methods=["coop", "zero_shot"]), tmp_path / "c")
    assert again.failed == {}
    assert [row.method for row in again.rows] == ["coop", "zero_shot"]


def test_where_the_reference_diverged_there_are_no_differences(tmp_path: Path) -> None:
    broken = settings("method.coop.lr=1e30", methods=["coop", "zero_shot", "promptfl"], seeds="0,1")
    found = comparing.compare(broken, tmp_path / "c", against="coop")
    assert all(not row.differences for row in found.rows)
    text = as_markdown(found)
    assert "No differences: coop has no result with every seed" in text
    assert "Differences from" not in text


def test_where_every_method_fails_it_is_an_error(tmp_path: Path) -> None:
    broken = settings("method.coop.lr=1e30", methods=["coop"], seeds="0,1")
    with pytest.raises(FedvlmError, match=r"no method has a result.*\n.*lower the learning rate"):
        comparing.compare(broken, tmp_path / "c")


@pytest.mark.parametrize("words", ["local", "local=", "local=0", "local=101", "worst=50", "local=x"])
def test_a_target_that_is_none(words: str) -> None:
    with pytest.raises(FedvlmError, match="local=80"):
        comparing.parse_target(words)


def test_targets() -> None:
    assert comparing.parse_target("hm=75") == Target("hm", 0.75)
    assert comparing.parse_target("") is None


def test_a_reference_that_is_not_compared(tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match=r"'cop' is not compared \(did you mean 'coop'\?\)"):
        comparing.compare(settings(), tmp_path / "c", against="cop")
    assert not (tmp_path / "c").exists()


def test_chunks_are_whole_seeds_while_all_processes_are_busy() -> None:
    left = {0: ["a", "b"], 1: [], 2: ["a", "b"], 3: ["a", "b", "c"], 4: ["b"]}
    assert workers.chunks(left, 1) == [(0, ["a", "b"]), (2, ["a", "b"]), (3, ["a", "b", "c"]), (4, ["b"])]
    assert workers.chunks(left, 3) == [(0, ["a", "b"]), (2, ["a", "b"]), (3, ["a", "b", "c"]), (4, ["b"])]
    assert workers.chunks({0: ["a", "b", "c"], 1: ["d"], 2: ["e"]}, 2)[2:] == [(2, ["e"])]
    assert workers.chunks({0: ["a", "b", "c"]}, 2) == [(0, ["a", "c"]), (0, ["b"])]


def test_a_method_without_novel_classes_has_a_score(tmp_path: Path) -> None:
    chosen = settings("data.novel_classes=0", methods=["zero_shot", "coop"], seeds="0,1")
    done = comparing.compare(chosen, tmp_path / "c")
    assert "novel" not in done.rows[0].values
    local, base = done.rows[0].values["local"][0], done.rows[0].values["base"][0]
    assert done.rows[0].values["hm"][0] == pytest.approx(2 / (1 / local + 1 / base))


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedvlm", "compare", "quickstart", *SMALL, "rounds=3", "seeds=0,1",
               "methods=coop,zero_shot,pfedmoap", "--processes", "2", "--out", str(folder)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finished(folder: Path) -> dict[Path, bytes]:
    files = [*folder.glob("seed-*/*/result.json")]
    return {file: file.read_bytes() for file in files}


def children(process: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and ") Z" not in state.read_text()


@pytest.mark.parametrize("moment", [1, pytest.param(3, marks=pytest.mark.long)])
def test_killed_and_started_again_loses_no_point_and_repeats_none(tmp_path: Path, moment: int) -> None:
    """SIGKILL of the command while its workers play; the workers end with it."""
    folder = tmp_path / "c"
    process = start(folder)
    while process.poll() is None and len(finished(folder)) < moment:
        time.sleep(0.005)
    team = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, team)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, team))
    before = finished(folder)
    assert moment <= len(before) < 6
    assert len(team) >= 2
    ledgers = {file.parent: (file.parent / "ledger.jsonl").read_bytes() for file in before}
    assert start(folder).wait() == 0
    assert {file: file.read_bytes() for file in before} == before
    assert {place: (place / "ledger.jsonl").read_bytes() for place in ledgers} == ledgers
    assert len(finished(folder)) == 6
    for file in folder.glob("seed-*/*/ledger.jsonl"):
        rounds = [line["round"] for line in map(json.loads, file.read_text().splitlines()) if line["kind"] == "round"]
        assert rounds in ([0], [1, 2, 3])


def test_the_comparison_of_results_by_hand() -> None:
    """Two methods, two seeds, values small enough to work out."""

    def made(local: float, base: float, weights: dict[float, tuple[float, float]]) -> PointResult:
        curve = [{"weight": w, "local": a, "base": b} for w, (a, b) in weights.items()]
        rounds = {"local": [(1, 0.5), (2, local)], "base": [(1, base), (2, base)]}
        return point({"local": local, "base": base}, curve=rounds, bytes_by_round=[(1, 10), (2, 10)],
                     tradeoff={"test": curve, "val": curve[::-1]})  # fmt: skip

    better = made(1.0, 0.5, {0.0: (1.0, 0.5), 0.5: (0.8, 0.8), 1.0: (0.5, 0.9)})
    plain = made(0.5, 0.9, {0.0: (0.5, 0.9), 1.0: (0.5, 0.9)})
    done = compare("x", {"m": {0: better, 1: better}, "z": {0: plain, 1: plain}}, "z", Target("local", 0.9))
    row = done.rows[0]
    assert row.values["weight"] == [0.5, 0.5]
    assert row.values["tuned"] == pytest.approx([0.8, 0.8])
    assert row.values["hm"] == pytest.approx([2 / 3, 2 / 3])
    assert row.values["area"] == pytest.approx([0.9 * 0.5 + 0.8 * 0.3 + 0.5 * 0.2] * 2)
    assert row.rounds == [2, 2]
    assert row.total_bytes == [20.0, 20.0]
    assert done.rows[1].rounds == [None, None]
    assert row.differences["local"].estimate.mean == pytest.approx(0.5)
    assert row.differences["local"].p == 0.5
    assert "area" in row.differences
    against = compare("x", {"m": {0: better}, "zero_shot": {0: plain}}, "zero_shot", Target("hm", 0.8))
    assert "area" not in against.rows[0].differences  # it cannot be smaller
    assert against.rows[0].rounds == [None]
    # hm is 1/2 after the first round and 2 / (1 + 1 / 0.5) = 2/3 after the second; z's is 9/14 from the first on.
    harmonic = compare("x", {"m": {0: better}, "z": {0: plain}}, "z", Target("hm", 0.6))
    assert [row.rounds for row in harmonic.rows] == [[2], [1]]
    assert compare("x", {"m": {0: dataclasses.replace(better, curve={})}}, "m", Target("hm", 0.6)).rows[0].rounds == [
        None
    ]


class Ended:
    """A worker that is not there any more."""

    def is_alive(self) -> bool:
        return False


def test_a_worker_that_cannot_begin_leaves_its_points_to_the_others() -> None:
    news: queue.Queue[workers.News] = queue.Queue()
    lost = (None, Failure("FedvlmError: no memory", False))
    broken = Failure("KeyError: 'x'", False)
    for each in (lost, ((0, "a"), None), ((0, "b"), broken)):
        news.put(each)
    assert workers._await([Ended()], news, Reporter(quiet=True), 2) == {"b": {0: broken}}
    news.put(lost)
    with pytest.raises(FedvlmError, match=r"all workers ended.*run again to continue\nFedvlmError: no memory"):
        workers._await([Ended()], news, Reporter(quiet=True), 2)


def test_a_terminal_shows_the_rounds_of_points_in_other_processes_and_a_file_one_line_for_each_point() -> None:
    def told(terminal: bool) -> str:
        news: queue.Queue[workers.News] = queue.Queue()
        relays = {name: workers._Relay(news).point(name, 0, 2, 0) for name in "ab"}
        for round_ in (1, 2):
            for name, relay in relays.items():
                relay.show(Shown(round_, 2, f"loss {name}{round_}", True))
        for name in "ab":
            news.put(((0, name), None))
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        reporter = Reporter(console)
        seen = []
        move = reporter.bar.update

        def update(*args: Any, **more: Any) -> None:
            seen.append((more["completed"], more["news"]))
            move(*args, **more)

        reporter.bar.update = update  # type: ignore[method-assign]
        assert workers._await([], news, reporter, 2) == {}
        assert not reporter.bar.tasks
        assert seen == ([(1, "loss a1"), (1, "loss b1"), (2, "loss a2"), (2, "loss b2")] if terminal else [])
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    for terminal in (False, True):
        lines = told(terminal).splitlines()
        assert [line.split("(")[0] for line in lines] == ["seed 0 a done ", "seed 0 b done "]
        assert [line.split(")")[1] for line in lines] == ["  loss a2", "  loss b2"]


def test_what_a_point_fails_with_is_told_but_a_full_disk_ends_all() -> None:
    def failing(error: Exception) -> Any:
        def point() -> None:
            raise error

        return point

    assert attempt(lambda: 3) == 3
    assert attempt(failing(DivergenceError("d"))) == Failure("d", True)
    assert attempt(failing(FedvlmError("f"))) == Failure("f", False)
    assert attempt(failing(KeyError("x"))) == Failure("KeyError: 'x'", False)
    with pytest.raises(StorageError):
        attempt(failing(StorageError("full")))


def test_what_cannot_be_dealt_with_a_later_seed_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedvlm.federation import setup

    federate = setup.federate

    def dealt(source: Any, chosen: Any, seed: int) -> Any:
        if seed == 2:
            raise FedvlmError("seed 2 has no images")
        return federate(source, chosen, seed)

    monkeypatch.setattr(setup, "federate", dealt)
    with pytest.raises(FedvlmError, match="seed 2 has no images"):
        comparing.compare(settings(methods=["zero_shot"]), tmp_path / "c")
    assert not list(tmp_path.rglob("seed-*"))


def test_the_tables_say_what_the_data_could_not_satisfy(tmp_path: Path) -> None:
    chosen = [settings("rounds=1", methods=["zero_shot"], seeds=seeds) for seeds in ("0", "0,1")]
    assert comparing.compare(chosen[0], tmp_path / "c").notes == (
        "seed 0: 7 domains have no client: chalk, fog, glitch and 4 more",
    )
    saved = tmp_path / "c" / "seed-0" / "partition.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"notes": ["too few"]}))
    again = comparing.compare(chosen[1], tmp_path / "c")
    assert again.notes == (
        "Seeds differ in images, partition, first tensors and the order of training.",
        "seed 0: too few",
        "seed 1: 7 domains have no client: chalk, fog, glitch and 4 more",
    )
    for text, mark in ((as_markdown(again), "- "), (as_latex(again), "% ")):
        assert all(f"{mark}{note}\n" in text for note in again.notes)


def test_what_differs_between_seeds_is_read_off_their_partitions() -> None:
    one = {"images": "a", "clients": [{"name": "x", "train": [1, 2], "local": [3]}], "tests": {"base": [3, 4]}}
    other = one | {"clients": [{"name": "x", "train": [1, 5], "local": [3]}]}
    assert comparing.seed_differences([one], 1.0) == []
    ending = "first tensors and the order of training; they have the same images,"
    assert comparing.seed_differences([one, one], 0.5) == [
        f"Seeds differ in who takes part in a round, {ending} clients' training images, test images."
    ]
    assert comparing.seed_differences([one, other], 1.0) == [
        f"Seeds differ in clients' training images, {ending} test images."
    ]


def test_unequal_training_is_told() -> None:
    assert comparing.budget_notes(settings()) == []
    assert comparing.budget_notes(settings("method.coop.epochs=3"))[0].endswith(
        " 3 epochs x 16: coop; 2 epochs x 16: pfedmoap."
    )
    assert "coop" in comparing.budget_notes(settings("method.coop.fine_tune=2"))[0]


def test_the_validation_curve_is_of_validation_images(folder: Path, found: Comparison) -> None:
    """Zero-shot on the validation images, computed apart from the engine."""
    from fedvlm import clip as clips
    from fedvlm.data import federate_validation, load_source
    from fedvlm.methods import build
    from fedvlm.training.activations import Activations
    from fedvlm.training.device import Device
    from fedvlm.training.evaluation import compute_outputs
    from fedvlm.training.metrics import measure_all
    from fedvlm.training.site import Site

    chosen = settings()
    source, clip = load_source(chosen.data, 0), clips.load("embedded")
    fed = federate_validation(source, chosen, 0)
    assert fed is not None
    zero = build("zero_shot")
    tuners = [zero.tuner(clip, names, "a photo of a {}.") for names in (fed.base_names, fed.novel_names)]
    bench = Site(
        tuners[0], tuners[1], fed, Activations(clip, source.records, Device(torch.device("cpu")), 1 << 30), 256
    )
    each = [measure_all(compute_outputs(bench, client, {}, {})) for client in fed.clients]
    curves = json.loads((folder / "seed-0/zero_shot/result.json").read_text())["tradeoff"]
    for metric in ("local", "base", "novel"):
        expected = statistics.fmean(one[metric].value for one in each)
        assert all(point[metric] == pytest.approx(expected) for point in curves["val"])


def test_a_script_that_runs_itself_again_in_its_workers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker reads the script again; without the guard of `__name__` it would begin the same run once more."""
    monkeypatch.setattr("multiprocessing.parent_process", object)
    with pytest.raises(FedvlmError, match="__main__"):
        fedvlm.run("quickstart", processes=2)
