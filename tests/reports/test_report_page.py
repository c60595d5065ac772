"""The report: what it says of runs, that it needs nothing else, and that nothing in it can become markup."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import tomllib
import warnings
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import PIL.Image
import pytest
from fake_results import point
from typer.testing import CliRunner

import fedvlm
from fedvlm import experiment, presets
from fedvlm.cli import app
from fedvlm.cli import report as report_verb
from fedvlm.errors import FedvlmError
from fedvlm.reports import comparison, text, watch
from fedvlm.reports.charts import accuracy
from fedvlm.reports.charts.chart import COLOURS, Dot
from fedvlm.reports.comparison import Target
from fedvlm.reports.page import chapters, html, run
from fedvlm.reports.statistics import Estimate
from fedvlm.runs import owned_files
from fedvlm.runs.folder import RunFolder
from fedvlm.studies import compare as comparing
from fedvlm.studies import sweep as sweeping
from fedvlm.studies.audit import report
from fedvlm.studies.audit.run import AuditCell, AuditRow
from fedvlm.studies.study import Options

DATA = {"styles": ["neon", "fog", "chalk"], "base_classes": 3, "novel_classes": 2, "shots": 2, "val_per_class": 1,
        "test_per_class": 2}  # fmt: skip
METHODS = ["zero_shot", "promptfl", "pfedmoap"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedvlm.run(
        "quickstart", rounds=2, methods=METHODS, seeds=[0, 1], data=DATA, partition={"clients": 3},
        method={"all": {"epochs": 1}}, evaluation={"every": 1}, out=tmp_path_factory.mktemp("run") / "one",
    ).folder  # fmt: skip


class Page(HTMLParser):
    """Elements of a page with their attributes, its text, and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def made(folder: Path, **options: bool) -> str:
    return html.page(chapters.chapters([folder], **options), "1.0", "fedvlm report")


@pytest.fixture(scope="module")
def page(done: Path) -> str:
    return made(done)


def test_it_has_what_a_reader_looks_for(page: str) -> None:
    found = Page(page)
    titles = re.findall(r"<h3[^>]*>([^<]*)</h3>", page)
    assert titles == [
        "Accuracy", "Differences from zero_shot", "Personalisation against generalisation", "Accuracy per round",
        "Clients", "Who holds what", "Bytes against accuracy", "Time", "Who helps whom", "Calibration", "The other state",
        "What leaves a client", "Versions and machine", "Settings",
    ]  # fmt: skip
    assert "3 methods, 3 clients, 2 seeds, 2 rounds." in found.text
    assert "Best Local: " in found.text


def test_its_table_has_the_values_of_the_results(done: Path, page: str) -> None:
    for method in METHODS:
        values = [RunFolder(done).point(seed, method).result().reported["local"] for seed in (0, 1)]  # type: ignore[union-attr]
        row = re.search(rf"<th scope=\"row\">(?:<i[^>]*></i>)?{re.escape(method)}\*?</th><td[^>]*>([^<]*)</td>", page)
        assert row
        assert row[1].split(" ")[0] == f"{50 * sum(values):.1f}"
        assert "±" in row[1]


def test_it_fetches_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script
    own = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{own}'" in page, "no other script runs"
    found = Page(page)
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:")), (tag, address)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert not re.search(r"https?:", page)


def test_ids_are_unique_and_labels_point_somewhere(page: str) -> None:
    found = Page(page)
    ids = [one["id"] for _, one in found.elements if "id" in one]
    assert len(ids) == len(set(ids))
    for _, one in found.elements:
        if label := one.get("aria-labelledby"):
            assert label in ids
        if (one.get("href") or "").startswith("#"):
            assert (one["href"] or "")[1:] in ids


def test_the_same_folder_gives_the_same_bytes(done: Path, page: str, tmp_path: Path) -> None:
    assert made(done) == page
    copy = tmp_path / "elsewhere"
    shutil.copytree(done, copy)
    assert made(copy).replace(str(copy), str(done)) == page


def files(page: str) -> dict[str, str]:
    return {name: base64.b64decode(held).decode() for name, held in
            re.findall(r'download="([^"]+)" href="data:[^,]*;base64,([^"]*)"', page)}  # fmt: skip


def test_data_of_every_figure_can_be_taken_away(done: Path, page: str) -> None:
    held = files(page)
    figures = {name for name in held if name.endswith(".csv")}
    assert figures == {f"{name}.csv" for name in (
        "tradeoff", "rounds", "clients", "partition", "bytes", "time", "helpers-pfedmoap", "calibration")}  # fmt: skip
    assert page.count("<figure") == len(figures)
    rows = list(csv.DictReader(io.StringIO(held["clients.csv"])))
    results = [RunFolder(done).point(seed, "promptfl").result() for seed in (0, 1)]
    (row,) = (row for row in rows if (row["method"], row["client"]) == ("promptfl", "1"))
    mean = sum(one.clients[one.state]["1"]["local"] for one in results if one) / 2
    assert float(row["local"]) == pytest.approx(100 * mean, abs=1e-3)


def test_its_settings_are_an_experiment(done: Path, page: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(files(page)["settings.toml"])
    assert tomllib.loads(file.read_text())["data"]["styles"] == DATA["styles"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of earlier names
        assert experiment.load(str(file), ()).digest() == RunFolder(done).begun()[0].digest()


def test_experts_are_those_of_the_last_round(done: Path) -> None:
    record = watch.records(RunFolder(done).point(0, "pfedmoap"))[-1]
    assert set(record.experts) == {"0", "1", "2"}
    for client, shares in record.experts.items():
        assert set(shares) == {"0", "1", "2"}, "the pool holds the others, and each has itself"
        assert next(iter(shares)) == client
        assert sum(shares.values()) == pytest.approx(1)
    assert not watch.records(RunFolder(done).point(0, "promptfl"))[-1].experts


def test_without_clients_nobody_is_named(done: Path) -> None:
    page = made(done, with_clients=False)
    assert not {"Clients", "Who holds what", "Who helps whom"} & set(re.findall(r"<h3[^>]*>([^<]*)</h3>", page))
    assert "data-c=" not in page
    assert 'data-picks="c"' not in page
    assert str(done) not in page, "where a run lies may name people"
    assert "path = " not in files(page)["settings.toml"]
    shown = CliRunner().invoke(app, ["report", str(done), "--no-clients", "--images", "1"])
    assert isinstance(shown.exception, FedvlmError)


def test_an_unfinished_method_is_told_and_left_out(done: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(done, half)
    (half / "seed-1" / "promptfl" / "result.json").unlink()
    page = made(half)
    assert "promptfl has no result yet (seed 1: round 2) and is not in the tables and figures." in Page(page).text
    assert page.count('data-m="promptfl"') == 1, "in the contract only"
    for method in METHODS:
        (half / "seed-0" / method / "result.json").unlink()
    assert "No method has a result with every seed yet." in Page(made(half)).text


def test_names_cannot_become_markup(done: Path, tmp_path: Path) -> None:
    hostile = "</title><script>alert(1)</script>"
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    saved = json.loads((copy / "experiment.json").read_text())
    saved["versions"]["python"] = hostile
    (copy / "experiment.json").write_text(json.dumps(saved))
    partition = json.loads((copy / "seed-0" / "partition.json").read_text())
    first = next(iter(partition["base"]))
    partition["base"][first] = f'"{hostile}'
    (copy / "seed-0" / "partition.json").write_text(json.dumps(partition))
    page = made(copy)
    assert hostile in Page(page).text
    assert sum(tag == "script" for tag, _ in Page(page).elements) == 1
    assert page.count("alert(1)") == page.count("&lt;script&gt;alert(1)") > 1


def test_the_command(done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    figures = tmp_path / "figures"
    shown = CliRunner().invoke(app, ["report", str(copy), "--figures", str(figures), "--format", "svg,png"])
    assert shown.exit_code == 0, shown.output
    assert (copy / "report.html").stat().st_mode & 0o077 == 0, "it names clients"
    assert {path.suffix for path in figures.iterdir()} == {".svg", ".png"}
    assert len(list(figures.iterdir())) == 16
    assert "16 files" in shown.output
    assert "report.html" in owned_files.check(copy), "a run that holds a report can be overwritten"


def test_images_only_where_they_are_asked_for(done: Path, tmp_path: Path) -> None:
    assert not any(tag == "img" for tag, _ in Page(made(done)).elements)
    out = tmp_path / "with.html"
    shown = CliRunner().invoke(app, ["report", str(done), "--images", "1", "--method", "promptfl", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    pictures = [one for tag, one in Page(out.read_text()).elements if tag == "img"]
    result = RunFolder(done).point(0, "promptfl").result()
    assert result is not None
    wrong, right = (len(re.findall(f'<li class="{word}">', out.read_text())) for word in ("wrong", "right"))
    assert len(pictures) == wrong + right > 0
    assert right / len(pictures) == pytest.approx(result.clients[result.state]["1"]["local"]), "as in the run"
    assert all((one["src"] or "").startswith("data:image/jpeg;base64,") and one["alt"] for one in pictures)


def test_no_comment_of_a_photograph_comes_along() -> None:
    file = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), "red").save(file, "JPEG", comment=b"Ada Lovelace")
    file.seek(0)
    address = report_verb._address(PIL.Image.open(file))
    held = base64.b64decode(address.partition(",")[2])
    assert b"Lovelace" in file.getvalue()
    assert b"Lovelace" not in held
    assert PIL.Image.open(io.BytesIO(held)).size == (40, 30)


def test_several_folders_are_chapters(done: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "b"
    shutil.copytree(done, other)
    shutil.copytree(done, tmp_path / "runs" / "a")
    found = chapters.chapters([tmp_path / "runs"])
    assert [Path(one.folder).name for one in found] == ["a", "b"]
    page = html.page(found, "1.0", "x")
    assert 'href="#chapter-1"' in page
    assert 'id="chapter-1"' in page


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match="no run, comparison, sweep, audit or federation is here"):
        chapters.chapters([tmp_path])
    with pytest.raises(FedvlmError, match="is no folder"):
        chapters.chapters([tmp_path / "nowhere"])
    (tmp_path / "federation.toml").write_text("")
    with pytest.raises(FedvlmError, match="has not begun: fedvlm federation run"):
        chapters.chapters([tmp_path])


def test_a_reference_that_is_not_there_is_refused(done: Path) -> None:
    with pytest.raises(FedvlmError, match="has no result of it with every seed, but of zero_shot, promptfl, pfedmoap"):
        chapters.chapters([done], "coop")
    assert run.chapter(done, "promptfl", with_clients=True).tables[1].title == "Differences from promptfl"


def test_a_sweep(tmp_path: Path) -> None:
    settings = presets.settings("quickstart") | {"methods": ["zero_shot", "promptfl"], "rounds": 1, "seeds": [0, 1]}
    settings["data"] |= DATA
    settings["partition"] |= {"clients": 2}
    sweeping.sweep(sweeping.plan(settings, [], "method.promptfl.lr=0.5,2"), tmp_path / "s", options=Options())
    (found,) = chapters.chapters([tmp_path / "s"])
    assert found.lead == ["2 methods at 2 values of method.promptfl.lr, 2 seeds."]
    (chart,) = found.charts
    assert chart.panels[0].x.names == ("0.5", "2")
    saved = json.loads((tmp_path / "s" / "sweep.json").read_text())
    (table,) = (table for table in found.tables if table.name == "local")
    for place, part in enumerate(saved["comparisons"]):
        for row in part["rows"]:
            (cells,) = (cells for cells in table.rows if cells[0] == row["method"])
            mean = 100 * sum(row["values"]["local"]) / 2
            assert cells[place + 1].startswith(f"{mean:.1f} ±")
    assert "Accuracy by value" in html.page([found], "1", "x")


def test_an_audit(done: Path, tmp_path: Path) -> None:
    chosen = RunFolder(done).begun()[0].model_copy(update={"methods": ["promptfl"]})
    right = {"local": AuditCell(Estimate(0.8, 0.02, 2), None, None)}
    wrong = {"local": AuditCell(Estimate(0.75, 0.03, 2), Estimate(-0.05, 0.04, 2), 0.5)}
    rows = [AuditRow("promptfl", "promptfl", "none", (), "", right, 1.0),
            AuditRow("promptfl", "x", "labels <moved>", ("a",), "some code", wrong, 1.0)]  # fmt: skip
    (tmp_path / "audit.json").write_text(json.dumps(report.as_json(chosen, rows)))
    (found,) = chapters.chapters([tmp_path])
    (table,) = found.tables
    assert list(table.rows[1]) == ["labels <moved>", "75.0 ± 3.0", "-5.0 ± 4.0", "0.500", "some code"]
    (chart,) = found.charts
    (dot,) = chart.panels[0].marks
    assert isinstance(dot, Dot)
    assert (dot.x, dot.half_x) == (pytest.approx(-5), pytest.approx(4))
    assert found.lead == ["1 method, 1 fault of released code."]


def test_a_comparison_is_told_as_it_was_made(tmp_path: Path) -> None:
    chosen = experiment.load("quickstart", ["methods=zero_shot,promptfl", "seeds=0,1", "rounds=1"])
    small = chosen.model_copy(update={"data": chosen.data.model_copy(update=DATA),
                                      "partition": chosen.partition.model_copy(update={"clients": 3})})  # fmt: skip
    made = comparing.compare(small, tmp_path / "c", against="promptfl", target=Target("local", 0.4))
    (found,) = chapters.chapters([tmp_path / "c"])
    assert found.tables[1].title == "Differences from promptfl"
    assert list(found.tables[0].rows) == text.accuracies(made)[1]
    assert list(found.tables[0].about)[1:] == [line.removeprefix("- ") for line in text.reading_notes(made)]


def themes() -> list[dict[str, str]]:
    """The colours of light, dark and print, by their names."""
    style = resources.files("fedvlm.reports.page").joinpath("page.css").read_text()
    return [dict(re.findall(r"--([a-z0-9]+):(#[0-9a-f]{3,6})\b", block)) for block in
            re.findall(r":root\{(.*?)\}", style, re.DOTALL)]  # fmt: skip


def contrast(one: str, other: str) -> float:
    """WCAG 2.1, relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * letter for letter in colour[1:])
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_what_is_read_stands_out_from_the_paper() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert len(themes()) == 3
    for theme in themes():
        for ink in ("ink", "quiet", "link"):
            for paper in ("paper", "soft", "warn"):
                assert contrast(theme[ink], theme[paper]) >= 4.5, (ink, paper, theme["paper"])
        for place in range(COLOURS):
            assert contrast(theme[f"c{place}"], theme["paper"]) >= 3, (place, theme["paper"])
        assert contrast(theme["on"], theme["c0"]) >= 4.5, "numbers on full cells"


def copied(done: Path, place: Path) -> Path:
    shutil.copytree(done, place)
    return place


def test_a_failed_method_is_told_as_in_the_table(done: Path, tmp_path: Path) -> None:
    folder = copied(done, tmp_path / "r")
    (folder / "seed-1" / "promptfl" / "result.json").unlink()
    table = json.loads((folder / "table.json").read_text())
    kept = [line for line in table if line["method"] != "promptfl"]
    (folder / "table.json").write_text(json.dumps([*kept, {"method": "promptfl", "failed": "diverged (1 of 2 seeds)"}]))
    (found,) = chapters.chapters([folder])
    assert not found.warnings
    assert found.tables[0].rows[-1][:2] == ["promptfl", "diverged (1 of 2 seeds)"]


def test_metrics_that_sites_keep_to_themselves(done: Path, tmp_path: Path) -> None:
    """A federation whose sites tell their calibration only has no harmonic mean, and still a page."""
    results = {
        name: {0: point({"ece": 0.1, "loss": 2.0}, clients={"after_aggregation": {"north": {}}})} for name in ("a", "b")
    }
    found = comparison.compare("withheld", results, "a")
    assert all("hm" not in row.values for row in found.rows)
    assert accuracy.tradeoff(found, "t") is None


def test_accuracies_of_nothing_have_a_figure(tmp_path: Path) -> None:
    results = {name: {0: point({"local": 0.0, "base": 0.001, "hm": 0.0})} for name in ("a", "b")}
    assert accuracy.tradeoff(comparison.compare("low", results, "a"), "t") is not None


def test_one_that_cannot_be_read_does_not_keep_the_others_back(done: Path, tmp_path: Path) -> None:
    copied(done, tmp_path / "runs" / "b")
    (tmp_path / "runs" / "a").mkdir()
    (tmp_path / "runs" / "a" / "federation.toml").write_text("")
    first, second = chapters.chapters([tmp_path / "runs"])
    assert "has not begun" in first.warnings[0]
    assert not second.warnings


def test_settings_with_dots_in_their_keys() -> None:
    chosen = experiment.parse({
        "name": "x", "methods": ["zero_shot"], "rounds": 1, "seeds": [0], "partition": {"kind": "iid", "clients": 2},
        "data": {"source": "folder", "path": "photos", "rename": {"St. Bernard": "dog"}},
    })  # fmt: skip
    read = tomllib.loads(run.toml(chosen))
    assert read["data"]["rename"] == {"St. Bernard": "dog"}
    assert experiment.parse(read).digest() == chosen.digest()
