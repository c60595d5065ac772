"""The schema accepts every preset and refuses what `fedvlm` refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from fedvlm import experiment, presets
from fedvlm.cli import app
from fedvlm.errors import FedvlmError
from fedvlm.reports.schema import experiment_schema

SCHEMA = experiment_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", presets.names())
def test_presets_are_valid(name: str) -> None:
    table = tomllib.loads(presets.text(name))
    assert not [f"{'/'.join(map(str, one.path))}: {one.message}" for one in VALIDATOR.iter_errors(table)]


@pytest.mark.parametrize(
    "table",
    [
        {"round": 3}, {"rounds": 0}, {"rounds": "three"}, {"participation": 1.5}, {"data": {"source": "nowhere"}},
        {"data": {"shot": 3}}, {"method": {"pfedmma": {"rnk": 3}}}, {"method": {"coop": {"lr": -1.0}}},
        {"method": {"all": {"nonsense": 1}}}, {"evaluation": {"state": "now"}}, {"compute": {"dtype": "int4"}},
        {"partition": {"kind": "nonsense"}}, {"method": {"mine": {"lr": 0.1}}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_fedvlm_refuses_the_schema_refuses(table: dict[str, Any]) -> None:
    with pytest.raises(FedvlmError):
        experiment.parse(table)
    assert list(VALIDATOR.iter_errors(table))


@pytest.mark.parametrize(
    "table",
    [
        {"data": {"source": "my_pkg.data:Mine", "anything": 1}}, {"methods": ["my_pkg.methods:Mine"]},
        {"method": {"mine": {"method": "pfedmma", "lr": 0.1}}}, {"data": {"shots": 4}}, {"evaluation": {"state": None}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_others_add_is_allowed(table: dict[str, Any]) -> None:
    assert not list(VALIDATOR.iter_errors(table))


def test_every_setting_is_described() -> None:
    """Settings whose name says all are few."""
    bare = [name for name, field in SCHEMA["properties"].items() if not {"description", "$ref"} & field.keys()]
    assert set(bare) <= {"seeds", "rounds", "data", "faults"}


def test_the_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def fedvlm(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        return done.output + (str(done.exception) if isinstance(done.exception, FedvlmError) else "")

    assert "next: fedvlm check mine.toml" in fedvlm("copy", "quickstart", "mine.toml")
    assert (tmp_path / "mine.toml").read_text() == presets.text("quickstart")
    assert "is there already" in fedvlm("copy", "quickstart", "mine.toml")
    assert "did you mean 'quickstart'" in fedvlm("copy", "quickstat")
    told = fedvlm("check", "mine.toml", "data.shots=2")
    assert "what leaves a client" in told
    assert "sound: 7 methods, 1 seed; nothing was trained or written" in told
    assert "data.shot" in fedvlm("check", "mine.toml", "data.shot=2")
    assert "written: schema.json" in fedvlm("schema", "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == json.loads(json.dumps(SCHEMA))
    assert "is there already and no schema" in fedvlm("schema", "mine.toml")
    assert "written" in fedvlm("schema", "schema.json")
    assert json.loads(fedvlm("schema")) == json.loads(json.dumps(SCHEMA))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "schema.json"]
