"""The table of known facts, and the signs of published differences, on made-up results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import agreement
import calibrate
import fake_results

from fedvlm import methods, overrides, presets
from fedvlm.data.scenes import STYLES
from fedvlm.reports.statistics import estimate
from fedvlm.runs.result import PointResult


def runs(lift: dict[str, tuple[float, float]]) -> calibrate.Runs:
    """Three seeds in which a method lies so many points above zero-shot in (Base and Local, Novel)."""
    made = calibrate.Runs()

    def points(method: str, more: float = 0.0) -> dict[int, PointResult]:
        base, novel = lift.get(method, (0.0, 0.0))
        level = {seed: 0.6 + seed / 100 for seed in range(3)}
        means = {
            seed: {"local": at + (base + more) / 100, "base": at + (base + more) / 100, "novel": at + novel / 100}
            for seed, at in level.items()
        }
        return {
            seed: fake_results.point(mean, curve={"base": [(2, mean["base"] - 0.02), (20, mean["base"])]})
            for seed, mean in means.items()
        }

    for preset in calibrate.PRESETS:
        settings = presets.settings(preset)
        (swept,) = settings.get("sweep", {"": [""]}).values()
        for value in swept:
            text = overrides.format_value(value)
            for method in calibrate.METHODS.get(preset, settings["methods"]):
                named = isinstance(value, list) and calibrate.CONDITION[value[0]] == method
                more = 1.0 if value == 16 or named else 0.0
                made.points[preset, text if value else "", method] = points(method, more)
    return made


KNOWN = {
    "coop": (13.0, -11.0), "coop_for_local": (20.0, -11.0), "cocoop": (11.0, -3.0), "kgcoop": (11.0, -0.5), "maple": (13.0, 1.0), "local_mma": (14.0, 2.5),
    "tip_adapter": (10.0, 0.0), "coop_random": (13.0, -11.0), "coop_16": (13.0, -11.0), "promptfl": (12.0, -6.0),
    "zero_shot_templates": (2.0, 2.0),
}  # fmt: skip


def test_a_model_that_behaves_like_clip_shows_every_fact() -> None:
    rows = calibrate.table(runs(KNOWN))
    assert [row["fact"] for row in rows if not row["same"] or not row["sized"]] == []
    assert rows[0]["mean"] == pytest.approx(13)
    assert "25 of 25 as published." in calibrate.text(rows, 3)


def test_a_model_that_is_blind_to_prompts_shows_few() -> None:
    rows = {row["fact"]: row for row in calibrate.table(runs({"local_mma": (15.0, 11.0)}))}
    assert not rows["CoOp lifts Base"]["same"]
    assert not rows["CoOp lowers Novel"]["same"]
    assert rows["MMA lifts Base"]["same"]
    assert rows["MMA lifts Base"]["sized"]
    assert "**no**" in calibrate.text(list(rows.values()), 3)


def test_a_lift_that_is_too_small_has_the_sign_and_not_the_size() -> None:
    row = calibrate.table(runs(KNOWN | {"coop": (5.0, -1.0)}))[0]
    assert row["same"]
    assert not row["sized"]


def test_every_method_that_a_fact_names_is_in_its_preset_and_every_style_has_a_condition() -> None:
    assert set(calibrate.NOVEL_ORDER) <= set(presets.settings(calibrate.COMMON)["methods"])
    assert list(calibrate.CONDITION) == list(STYLES)
    assert set(calibrate.CONDITION.values()) <= set(presets.settings(calibrate.TEMPLATES)["methods"])


def test_published_means_are_over_data_sets_and_leave_variants_out() -> None:
    main = agreement.published(agreement.library.table("pfedmma-main"))
    assert main["base"]["promptfl"] == 88.95
    few = agreement.published(agreement.library.table("pfedmoap-1"))["local"]
    assert few["zero_shot"] == pytest.approx((62.17 + 84.47 + 75.27 + 85.14 + 40.21) / 5)
    assert "pfedmoap_0" not in few
    assert set(few) <= set(methods.known())


def test_signs_are_compared_and_small_differences_left_out() -> None:
    def points(*local: float) -> list[PointResult]:
        return [fake_results.point({"local": x, "base": x, "novel": x, "hm": x}) for x in local]

    ours = {"zero_shot": points(0.6, 0.6, 0.6), "pfedmma": points(0.7, 0.71, 0.72), "promptfl": points(0.5, 0.9, 0.1)}
    found = {(p.metric, p.first, p.second): p for p in agreement.pairs(ours, "pfedmma-main")}
    assert ("base", "zero_shot", "pfedmma") not in found  # 0.6 points in the paper
    assert found["local", "zero_shot", "pfedmma"].agrees
    assert found["local", "zero_shot", "pfedmma"].clear
    assert not found["base", "zero_shot", "promptfl"].agrees
    assert not found["base", "zero_shot", "promptfl"].clear
    assert estimate([1.0]).half is None
    assert "signs agree" in agreement.text(list(found.values()))


def test_a_method_counts_once_at_the_rates_of_the_goal() -> None:
    hm, local = [fake_results.point({"local": 0.7})], [fake_results.point({"local": 0.9})]
    found = {"coop": hm, "coop_for_local": local, "promptfl": hm}
    assert agreement.at_rates(found, for_local=False) == {"coop": hm, "promptfl": hm}
    assert agreement.at_rates(found, for_local=True) == {"coop": local, "promptfl": hm}
