"""`--json`: on every verb that prints a table; parseable, alone on standard output, and the numbers of the table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from called import Done, call
from PIL import Image

from fedvlm import presets
from fedvlm.cli import app
from fedvlm.cli.answers import SHAPES
from fedvlm.cli.app import print_json

NO_TABLE = {
    "report": "writes a page and figures; their data are in the page",
    "copy": "writes a file and names it",
    "schema": "prints JSON as it is",
    "track": "writes files and names them",
    "export": "writes a folder and names its files",
    "random-clip": "writes a folder and names it",
    "federation init": "writes a folder and names its files",
    "site init": "writes a folder and names its files",
    "site approve": "asks a person; site check --json tells what it shows",
    "site serve": "a log, until it is stopped",
    "site export": "writes a folder and names its files",
    "site forget": "moves a folder and names it",
    "site carry": "a log",
}
"""Verbs that print no table, and what they do instead."""
SMALL = ["data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=4", "data.novel_classes=4",
         "partition.clients=2", "rounds=1", "methods=zero_shot,pfedmma", "method.all.epochs=1"]  # fmt: skip


def verbs() -> Iterator[tuple[str, Any]]:
    """Every verb with the words that call it."""

    def walk(command: Any, words: list[str]) -> Iterator[tuple[str, Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name])
        if not getattr(command, "commands", {}):
            yield " ".join(words), command

    yield from walk(typer.main.get_command(app), [])


def test_every_verb_that_prints_a_table_has_it() -> None:
    having = {name for name, verb in verbs() if any("--json" in option.opts for option in verb.params)}
    every = {name for name, _ in verbs()}
    assert having | NO_TABLE.keys() == every, every - having - NO_TABLE.keys()
    assert not having & NO_TABLE.keys()


def test_every_verb_with_it_is_called_here() -> None:
    """A new verb's answer needs a test of its own."""
    source = Path(__file__).read_text()
    for name, verb in verbs():
        if any("--json" in option.opts for option in verb.params):
            words = ", ".join(f'"{word}"' for word in name.split())
            assert f"ask({words}" in source or f"{words}, " in source, name


def test_the_help_of_every_verb_with_it_tells_its_keys() -> None:
    for name, verb in verbs():
        if any("--json" in option.opts for option in verb.params) and name != "predict":
            told = " ".join(call(*name.split(), "--help").stdout.split())
            assert "With --json:" in told, name
            assert all(re.search(rf"\b{key}\b", told.split("With --json:")[1]) for key in SHAPES[name]), name


def ask(*words: str, code: int = 0) -> Any:
    """What a verb answers with --json; nothing else is on standard output."""
    done = call(*words, "--json")
    assert done.returncode == code, done.stderr
    return answer(done, " ".join(words[: 2 if words[0] in ("site", "federation") else 1]))


def answer(done: Done, verb: str) -> Any:
    """The one document on standard output; its keys are those that the verb's help tells."""
    told = json.loads(done.stdout)
    lists = ({"faults"}, {"tables", "notes"}, {"method", "about", "settings"}, {"protocols"})
    assert told.keys() == SHAPES[verb].keys() or told.keys() in lists
    return told


def numbers(done: Done) -> str:
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def accuracies(value: Any) -> Iterator[float]:
    """Every accuracy in an answer: what stands under the name of one."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in ("local", "base", "novel", "hm", "worst_tenth") and isinstance(inner, int | float):
                yield inner
            else:
                yield from accuracies(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from accuracies(inner)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


def test_run(folder: Path) -> None:
    words = ["run", "quickstart", *SMALL, "seeds=0,1", "--out", str(folder / "run")]
    done = call(*words, "--json")
    assert "what leaves a client" in done.stderr  # the contract and progress
    told = answer(done, "run")
    assert (told["name"], told["seeds"], told["failed"]) == ("quickstart", [0, 1], {})
    assert told["rows"] == json.loads((folder / "run" / "table.json").read_text())
    shown = numbers(call(*words, "--resume", "--quiet"))
    for row in told["rows"]:
        if row["reported"]:
            line = next(line for line in shown.splitlines() if re.match(rf"{row['method']}\*? ", line))
            assert f"{percent(row['metrics']['local']['mean'])}±{percent(row['metrics']['local']['std'])}" in line
            assert f" {row['up_bytes']:,.0f} " in line
            assert 0 <= row["metrics"]["hm"]["mean"] <= 1


def finished(folder: Path) -> None:
    if not (folder / "run").exists():
        test_run(folder)


def test_run_with_a_failed_method(tmp_path: Path) -> None:
    words = ["run", "quickstart", *SMALL, "method.pfedmma.lr=1e30", "--out", str(tmp_path / "r")]
    told = ask(*words, code=1)
    assert [row["method"] for row in told["rows"]] == ["zero_shot"]
    assert "diverged" in told["failed"]["pfedmma"]["0"] or "learning rate" in told["failed"]["pfedmma"]["0"]


def test_watch(folder: Path) -> None:
    finished(folder)
    told = ask("watch", str(folder / "run"))
    shown = call("watch", str(folder / "run"), "--once").stdout
    for point in told["points"]:
        line = next(line for line in shown.splitlines() if re.match(rf"{point['method']} +{point['seed']} ", line))
        assert percent(point["metrics"]["local"]) in line
        assert point["state"] in line


def test_compare(folder: Path) -> None:
    words = ["compare", "quickstart", *SMALL, "seeds=0,1", "--out", str(folder / "compare")]
    told = ask(*words)
    assert told == json.loads((folder / "compare" / "compare.json").read_text()) | {"folder": str(folder / "compare")}
    shown = numbers(call(*words, "--quiet"))
    for row in told["rows"]:
        mean = sum(row["values"]["local"]) / 2
        assert next(line for line in shown.splitlines() if line.startswith(row["method"])).split()[1] == percent(mean)
    assert all(0 <= value <= 1 for value in accuracies(told))


def test_sweep(folder: Path) -> None:
    words = ["sweep", "quickstart", *SMALL, "--over", "method.pfedmma.lr=0.001,0.01", "--out", str(folder / "sweep")]
    told = ask(*words)
    assert told == json.loads((folder / "sweep" / "sweep.json").read_text()) | {"folder": str(folder / "sweep")}
    shown = numbers(call(*words, "--quiet"))
    place = next(n for n, line in enumerate(shown.splitlines()) if line.strip() == "Local")
    line = next(line for line in shown.splitlines()[place:] if line.startswith("pfedmma"))
    values = [one["rows"][1]["values"]["local"][0] for one in told["comparisons"]]
    assert line.split() == ["pfedmma", *map(percent, values)]


def test_audit(folder: Path) -> None:
    words = ["audit", "quickstart", *SMALL, "methods=promptfl", "--out", str(folder / "audit")]
    told = ask(*words)
    assert told == json.loads((folder / "audit" / "audit.json").read_text()) | {"folder": str(folder / "audit")}
    shown = numbers(call(*words, "--quiet"))
    right = next(row for row in told["rows"] if row["fault"] == "right")
    line = next(line for line in shown.splitlines() if line.startswith("right"))
    assert percent(right["cells"]["local"]["value"]["mean"]) in line


def test_audit_lists_faults() -> None:
    told = ask("audit")["faults"]
    shown = call("audit").stdout
    assert len(told) > 5
    assert all(one["fault"] in shown and set(one) == {"fault", "title", "methods", "code", "where"} for one in told)


def test_reproduce_lists_tables() -> None:
    told = ask("reproduce")
    shown = call("reproduce").stdout
    assert len(told["tables"]) > 3
    for one in told["tables"]:
        assert one["table"] in shown
        assert one["cells"] >= one["possible"] >= 0
        assert str(one["cells"]) in shown


def test_reproduce(tmp_path: Path) -> None:
    table = ask("reproduce")["tables"][0]["table"]
    words = ["reproduce", table, "--dry-run", "--data", str(tmp_path)]
    done = call(*words, "--json")
    told = answer(done, "reproduce")
    assert told["folder"] is None
    assert len(told["cells"]) == next(one["cells"] for one in ask("reproduce")["tables"] if one["table"] == table)
    shown = call(*words)
    assert shown.returncode == done.returncode
    assert f"of {len(told['cells'])} cells can be made here" in shown.stdout
    assert all(line.split(":")[0] in shown.stdout for line in told["missing"])


def test_partition(tmp_path: Path) -> None:
    words = ["partition", "quickstart", *SMALL, "--out", str(tmp_path / "p.png")]
    told = ask(*words)
    assert (tmp_path / "p.png").exists()
    shown = call(*words).stdout
    assert told["digest"] in shown
    for client in told["clients"]:
        cells = [client["client"], client["domain"], client["training_images"], client["local_test_images"],
                 client["classes"]]  # fmt: skip
        assert re.search(r" +".join(re.escape(str(cell)) for cell in cells), shown)
        assert sum(client["training_images_by_class"].values()) == client["training_images"]


def test_check() -> None:
    told = ask("check", "quickstart", *SMALL)
    shown = call("check", "quickstart", *SMALL).stdout
    assert told["digest"][:12] in shown
    for one in told["methods"]:
        line = next(line for line in shown.splitlines() if line.startswith(one["method"]))
        assert line.split()[1:5] == [f"{one[key]:,}" for key in ("trained", "private", "shared", "up_bytes")]


def test_init(tmp_path: Path) -> None:
    for label, count in (("cat", 5), ("dog", 3)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / label / f"{number}.png")
    told = ask("init", str(tmp_path / "photos"), "--out", str(tmp_path / "one.toml"))
    shown = call("init", str(tmp_path / "photos"), "--out", str(tmp_path / "two.toml")).stdout
    assert (told["images"], told["images_by_class"]) == (8, {"cat": 5, "dog": 3})
    assert told["file"] == str(tmp_path / "one.toml")
    assert f"found: {told['found']}" in shown
    assert all(f"look: {one}" in shown for one in told["oddities"])


def test_methods() -> None:
    told = ask("methods")["methods"]
    shown = call("methods").stdout
    assert len(told) >= 29
    assert all(re.search(rf"^{one['method']} ", shown, re.M) for one in told)
    assert next(one for one in told if one["method"] == "pfedmma")["shared"] == ["shared.*"]


def test_a_method() -> None:
    told = ask("methods", "pfedmma")
    shown = call("methods", "pfedmma").stdout
    assert told["about"] in shown
    for one in told["settings"]:
        assert re.search(rf"^{one['name']} ", shown, re.M)
    assert {one["name"]: one["default"] for one in told["settings"]}["rank"] == 32


def test_presets() -> None:
    told = ask("presets")["presets"]
    assert [one["preset"] for one in told] == presets.names()
    shown = call("presets").stdout
    assert all(line in shown for one in told for line in one["about"].splitlines())


def test_doctor(tmp_path: Path) -> None:
    told = ask("doctor", "--out", str(tmp_path))["findings"]
    shown = call("doctor", "--out", str(tmp_path)).stdout
    for one in told:
        if not one["what"].startswith("run folder"):  # the free space moves
            assert f"{one['what']:24} {one['found']}" in shown


def test_cache() -> None:
    told = ask("cache")
    shown = call("cache").stdout
    assert str(told["folder"]) in shown
    assert told["bytes"] == sum(one["bytes"] for one in told["tables"])


def test_verify() -> None:
    reference = str(Path(__file__).parent / "reference")
    told = ask("verify", reference)
    (groups,) = told["paths"].values()
    assert told["failed_groups"] == 0
    shown = call("verify", reference).stdout
    assert f"{sum(one['tensors'] for one in groups)} tensors in {len(groups)} groups, 0 groups failed" in shown
    assert all(one["result"] != "FAIL" and one["name"] in shown for one in groups)


def test_bench_lists_protocols() -> None:
    told = ask("bench", "--list")["protocols"]
    assert call("bench", "--list").stdout.splitlines() == [f"{one['protocol']:20} {one['title']}" for one in told]


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement itself is tested in its room; here it is one that was made before."""
    from fedvlm.checks.bench import report
    from fedvlm.checks.bench.side import Timings

    counts = {"rounds": 2, "steps per round": 3, "prompts per round": 1, "experts per round": 1, "clients": 1,
              "evaluations": 2}  # fmt: skip
    blank = dict.fromkeys(Timings.__annotations__, 1.0) | {"counts": counts, "round": None}
    row = report.BenchRow(
        "p", "a title", Timings(**blank), Timings(**blank), 1.0, {"logits": 0.0}, {"whole": None, "warm": 2.0}
    )  # type: ignore[arg-type]

    def measured(*words: Any) -> Iterator[report.BenchRow]:
        words[-1]("p: naive")
        yield row

    monkeypatch.setattr(report, "bench", measured)
    done = call("bench", "moap", "--out", str(tmp_path / "b.json"), "--json")
    assert answer(done, "bench") == json.loads((tmp_path / "b.json").read_text())
    assert "p: naive" in done.stderr


def test_predict(folder: Path, tmp_path: Path) -> None:
    """A line for each image, as they are predicted."""
    finished(folder)
    run = folder / "run"
    client = json.loads((run / "seed-0" / "partition.json").read_text())["clients"][0]["name"]
    model = tmp_path / "model"
    done = call(
        "export", str(run), str(model), "--client", str(client), "--method", "pfedmma", "--seed", "0", "--folds", "0"
    )
    assert done.returncode == 0, done.stderr
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    words = ["predict", str(model), str(tmp_path / "red.png"), str(tmp_path / "blue.png")]
    lines = [json.loads(line) for line in call(*words, "--json").stdout.splitlines()]
    shown = call(*words).stdout
    assert len(lines) == 2
    for line in lines:
        assert f"{line['probabilities'][0]:.0%}" in shown
        assert all(0 <= value <= 1 for value in line["probabilities"])


@pytest.fixture(scope="module")
def federation(folder: Path) -> Path:
    """Three sites' images, and the experiment that they share; no site runs."""
    words = [one for one in SMALL if not one.startswith("partition")]
    begin = ["federation", "init", str(folder / "trial"), "quickstart", "--example", *words,
             'data.styles=["sketch","neon"]']  # fmt: skip
    done = call(*begin)
    assert done.returncode == 0, done.stderr
    for site in ("sketch", "neon"):
        done = call("site", "init", str(folder / "trial" / "example" / site), "--out", str(folder / site), "--name", site,
                    "--key", str(folder / "trial" / "keys" / f"{site}.key"),
                    "--experiment", str(folder / "trial" / "experiment.json"))  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder / "trial"


def test_site_check(federation: Path) -> None:
    place = federation.parent / "neon" / "site.toml"
    words = ["site", "check", str(federation / "experiment.json"), "--site", str(place)]
    told = ask(*words, code=1)
    shown = call(*words).stdout
    assert not told["approved"]
    assert told["allowed"]
    assert told["digest"] in shown
    for one in told["classes"]:
        cells = [str(one[f"{key}_images"] or "-") for key in ("training", "validation", "test")]
        assert re.search(rf"^{re.escape(one['class'])} +" + r" +".join(cells), shown, re.M)
    (shared,) = (one for one in told["leaving"] if one["method"] == "pfedmma")
    assert all(f"{tensor['bytes']:,}" in shown and tensor["tensor"] in shown for tensor in shared["tensors"])


def test_federation_run_and_site_status(federation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one process: the carrier asks the sites' services themselves."""
    from fedvlm.network.carriers.local import LocalCarrier
    from fedvlm.network.coordinator import start
    from fedvlm.network.site import settings
    from fedvlm.network.site.service import Service

    services = {}
    for name in ("sketch", "neon"):
        place = federation.parent / name / "site.toml"
        assert (
            call("site", "approve", str(federation / "experiment.json"), "--site", str(place), "--yes").returncode == 0
        )
        services[name] = Service(settings.read(place), lambda line: None)
        services[name].read_experiments()
    monkeypatch.setattr(
        start, "carrier", lambda *words: LocalCarrier({name: one.answer for name, one in services.items()})
    )
    done = call("federation", "run", str(federation), "--json")
    assert done.returncode == 0, done.stderr
    told = answer(done, "federation run")
    assert "round 1" in done.stderr
    shown = call("federation", "run", str(federation), "--resume").stdout
    for row in told["rows"]:
        if row["reported"]:
            line = next(line for line in shown.splitlines() if re.match(rf"{row['method']}\*? +\d", line))
            assert percent(row["metrics"]["local"]["mean"]) in line
    place = federation.parent / "neon" / "site.toml"
    status = ask("site", "status", "--site", str(place))
    shown = call("site", "status", "--site", str(place)).stdout
    assert status["lines"]
    assert all(f"{one['bytes']:,}" in shown for one in status["lines"])


def test_a_mistake_is_one_sentence_on_standard_error(tmp_path: Path) -> None:
    for words in (["run", "quikstart"], ["watch", str(tmp_path)], ["methods", "pfedmmma"], ["check", "quikstart"]):
        done = call(*words, "--json")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("fedvlm: ")
        assert len(done.stderr.strip().splitlines()) == 1


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x"}
