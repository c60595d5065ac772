"""A run with a client that joins late: ledger, result, digest, tables."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import fedvlm
from fedvlm import durable
from fedvlm.reports import table
from fedvlm.runs.results import Results

METHODS = ["zero_shot", "tip_adapter", "pfedmma", "pfedmoap"]
SMALL = ["data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=8", "data.novel_classes=4",
         "partition.clients=4", "rounds=2", "evaluation.every=2", "method.all.fine_tune=1"]  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("late") / "run"
    return fedvlm.run("quickstart", *SMALL, "partition.newcomers=1", methods=METHODS, seeds=[0, 1], out=out)


def lines(found: Results, seed: int, method: str, kind: str) -> list[dict[str, Any]]:
    text = (found.folder / f"seed-{seed}" / method / "ledger.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def late_names(found: Results, seed: int) -> set[str]:
    saved = json.loads((found.folder / f"seed-{seed}" / "partition.json").read_text())
    return {client["name"] for client in saved["clients"] if client.get("late")}


def test_ledger_and_result_hold_both_moments(found: Results) -> None:
    for seed in (0, 1):
        (name,) = late_names(found, seed)
        for method in METHODS:
            rounds = lines(found, seed, method, "round")
            told = {moment: record for line in rounds for moment, record in line["late"].items()}
            assert list(told) == ["on_arrival"] + ["after_tuning"] * (method in ("pfedmma", "pfedmoap"))
            result = found.points[method][seed]
            assert {moment: asdict(record) for moment, record in result.newcomers.items()} == told
            for record in told.values():
                assert record["clients"].keys() == record["down_bytes"].keys() == {name}
                assert record["means"]["local"] == record["clients"][name]["local"]
            assert all(name not in clients for clients in result.clients.values())


def test_the_digest_covers_them(found: Results) -> None:
    result = json.loads((found.folder / "seed-0/pfedmma/result.json").read_text())
    clock = ("digest", "train_s", "evaluate_s", "peak_memory_bytes")
    content = {key: value for key, value in result.items() if key not in clock}
    assert durable.json_digest(content) == result["digest"]
    content.pop("late")
    assert durable.json_digest(content) != result["digest"]


def test_bytes_per_visit_are_those_of_trained_clients(found: Results) -> None:
    """Three rounds (one of them at home): up 2 x 4,352 bytes, down three times as many; the late one's count apart."""
    result = found.points["pfedmma"][0]
    assert result.up_bytes_per_visit == pytest.approx(4352 * 2 / 3)
    assert result.down_bytes_per_visit == 4352
    (name,) = late_names(found, 0)
    visits = [line for line in lines(found, 0, "pfedmma", "visit") if line["client"] == name]
    assert [(line["round"], sum(line["up_bytes"].values())) for line in visits] == [(3, 0)]


def test_its_own_rows_in_every_table(found: Results) -> None:
    assert [(row.method, row.state) for row in found.newcomers] == [
        *((method, "on_arrival") for method in METHODS), ("pfedmma", "after_tuning"), ("pfedmoap", "after_tuning"),
    ]  # fmt: skip
    assert not {row.state for row in found.rows} & {"on_arrival", "after_tuning"}
    row = next(row for row in found.newcomers if row.method == "pfedmma" and row.state == "after_tuning")
    values = [found.points["pfedmma"][seed].newcomers["after_tuning"].means["base"] for seed in (0, 1)]
    assert row.metrics["base"].mean == pytest.approx(sum(values) / 2)
    assert row.metrics["base"].std == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert row.down_bytes == 4352
    with (found.folder / "table.csv").open() as file:
        states = [(line["method"], line["state"], line["reported"]) for line in csv.DictReader(file)]
    assert ("tip_adapter", "on_arrival", "False") in states
    assert {line["state"] for line in json.loads((found.folder / "table.json").read_text())} >= {"after_tuning"}
    _, small = (found.folder / "table.md").read_text().split(table.NEWCOMERS_TITLE)
    assert "| pfedmoap | after tuning |" in small
    shown = table.newcomers_as_rich(found.newcomers)
    assert list(shown.columns[1].cells)[-1] == "after tuning"


def test_the_contract_says_who_comes_late(found: Results) -> None:
    text = (found.folder / "contract.txt").read_text()
    (name,) = late_names(found, 0)
    assert "clients     3, each with" in text
    assert f"late        1 joins after the last round, sends nothing and is measured apart: {name} (" in text


def test_without_late_clients_nothing_mentions_them(tmp_path: Path) -> None:
    plain = fedvlm.run("quickstart", *SMALL, methods=["zero_shot"], seeds=[0], out=tmp_path / "run")
    assert plain.newcomers == []
    assert "late" not in json.loads((plain.folder / "seed-0/zero_shot/result.json").read_text())
    assert "joined after" not in (plain.folder / "table.md").read_text()
