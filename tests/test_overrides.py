"""Plain settings: files that are like others, values that are written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm import experiment, overrides, presets
from fedvlm.errors import FedvlmError

VALUES = st.one_of(st.integers(-3, 3), st.floats(-2, 2), st.booleans(), st.sampled_from(["a", "none", "a photo of a"]))


def test_a_file_is_like_a_preset_but_for_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('like = "quickstart"\nrounds = 3\n[data]\nshots = 2\n[method.pfedmma]\nrank = 4\n')
    found, base = presets.settings(str(file)), presets.settings("quickstart")
    assert (found["name"], found["rounds"], found["methods"]) == ("own", 3, base["methods"])
    assert found["data"] == base["data"] | {"shots": 2}
    assert found["method"]["pfedmma"] == base["method"]["pfedmma"] | {"rank": 4}
    assert found["method"]["coop"] == base["method"]["coop"]
    assert experiment.parse(found).data.shots == 2
    assert presets.settings("quickstart") == base


def test_a_file_is_like_a_file_beside_it_that_is_like_a_preset(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one.toml").write_text('like = "common_style"\nrounds = 3\n')
    (tmp_path / "deep" / "two.toml").write_text('like = "../one.toml"\nseeds = [5]\n')
    found = presets.settings(str(tmp_path / "deep" / "two.toml"))
    assert (found["name"], found["rounds"], found["seeds"]) == ("two", 3, [5])
    assert found["data"]["styles"] == ["halftone"]
    assert "like" not in found


def test_data_of_another_source_replace_the_base_s(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('like = "quickstart"\n[data]\nsource = "folder"\npath = "photos"\n')
    found = presets.settings(str(file))
    assert found["data"] == {"source": "folder", "path": "photos"}
    assert found["partition"] == presets.settings("quickstart")["partition"]


def test_settings_of_another_method_replace_the_base_s_and_scenes_need_no_name(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('like = "ablation_experts"\n[method.moap_random]\nmethod = "pfedmma"\nrank = 4\n')
    assert presets.settings(str(file))["method"]["moap_random"] == {"method": "pfedmma", "rank": 4}
    assert overrides.merge({"data": {"shots": 4}}, {"data": {"source": "scenes", "styles": ["fog"]}}) == {
        "data": {"shots": 4, "source": "scenes", "styles": ["fog"]}
    }


def test_only_the_nearest_sweep_counts(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('like = "ablation_shots"\n[sweep]\nrounds = [1, 2]\n')
    assert presets.settings(str(file))["sweep"] == {"rounds": [1, 2]}


MISTAKES = {
    "one like another": ('like = "b.toml"', 'like = "a.toml"', "like itself: a.toml -> b.toml -> a.toml"),
    "like itself": ('like = "a.toml"', "", "like itself"),
    "no such preset": ('like = "quickstat"', "", "did you mean 'quickstart'"),
    "no such file": ('like = "c.toml"', "", "no such experiment file"),
    "no name": ("like = 3", "", "not the name of a preset or file"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_like(case: str, tmp_path: Path) -> None:
    one, other, message = MISTAKES[case]
    (tmp_path / "a.toml").write_text(one + "\n")
    (tmp_path / "b.toml").write_text(other + "\n")
    with pytest.raises(FedvlmError, match=message):
        presets.settings(str(tmp_path / "a.toml"))


@given(st.lists(VALUES, min_size=2, max_size=4))
def test_values_are_read_as_they_are_written(values: list[Any]) -> None:
    words = "key=" + ",".join(overrides.format_value(value) for value in values)
    assert overrides.parse_values(words) == ("key", values)


def test_a_value_for_what_is_swept_takes_the_place_of_the_sweep() -> None:
    base = {"rounds": 3, "data": {"source": "scenes", "styles": ["a"]}, "sweep": {"data.shots": [1, 2]}}
    assert overrides.merge_settings(base, {"rounds": 4})["sweep"] == {"data.shots": [1, 2]}
    chosen = overrides.merge_settings(base, {"data": {"shots": 2}})
    assert chosen == {"rounds": 3, "data": {"source": "scenes", "styles": ["a"], "shots": 2}}
