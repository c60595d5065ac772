"""The ablations on drawn scenes: quickstart's data, variants that differ in what their names say, and that run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvlm
from fedvlm import clip as clips
from fedvlm import experiment, methods, overrides, presets, tensors
from fedvlm.data import federate, load_source
from fedvlm.federation import messages
from fedvlm.streams import torch_stream
from fedvlm.studies import sweep

DRAWN = ["newcomer", "ablation_sharing", "ablation_adapter", "ablation_experts"]
SWEPT = [name for name in presets.names() if "sweep" in presets.settings(name)]
SMALL = ["data.shots=1", "data.val_per_class=1", "data.test_per_class=1", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=2", "evaluation.every=2"]  # fmt: skip


def settings(name: str) -> dict[str, Any]:
    return experiment.parse(presets.settings(name)).resolved()


@pytest.mark.parametrize("name", DRAWN)
def test_data_clients_and_rounds_are_those_of_the_quickstart(name: str) -> None:
    ours, quick = settings(name), settings("quickstart")
    late = ours["partition"].pop("late")
    assert late == (["glitch"] if name == "newcomer" else 0)
    assert quick["partition"].pop("late") == 0
    for key in ("data", "partition", "rounds", "participation", "views", "model"):
        assert ours[key] == quick[key], key
    for key, value in ours["method"]["all"].items():
        assert value == quick["method"]["all"].get(key, 1), key
    for method in ("coop", "promptfl", "local_mma", "fedmma", "pfedmma"):
        assert ours["method"].get(method, quick["method"][method]) == quick["method"][method]
    moap = ours["method"].get("pfedmoap", {})
    assert {k: v for k, v in moap.items() if k != "gate_width"}.items() <= quick["method"]["pfedmoap"].items()


@pytest.mark.parametrize("name", SWEPT)
def test_what_a_preset_does_not_say_is_as_in_the_one_that_it_is_like(name: str) -> None:
    own = overrides.read_toml(presets.FOLDER / f"{name}.toml")
    base, found = presets.settings(own["like"]), presets.settings(name)
    for key in base.keys() - {"name", "methods", "method"}:
        if isinstance(base[key], dict):
            assert found[key] == base[key] | own.get(key, {}), key
        else:
            assert found[key] == own.get(key, base[key]), key
    for key, table in base["method"].items():
        assert found["method"][key] == table | own.get("method", {}).get(key, {}), key


@pytest.mark.parametrize("name", DRAWN[1:])
def test_every_table_is_run_and_no_two_variants_are_the_same(name: str) -> None:
    own, found = overrides.read_toml(presets.FOLDER / f"{name}.toml"), settings(name)
    variants = {key for key, table in own["method"].items() if "method" in table}
    assert variants <= set(found["methods"])
    built = [methods.build(key, found["method"]) for key in found["methods"]]
    assert len({(one.name, one.config.model_dump_json()) for one in built}) == len(built)


def test_what_crosses_in_the_ablation_of_sharing() -> None:
    """Numbers by hand: 4 blocks, rank 16, widths 128 (text) and 128 (vision)."""
    clip = clips.load()
    text, vision, rank, blocks = clip.text.width, clip.visual.width, 16, 4
    towers = {"text": 2 * text * rank + rank + text, "vision": 2 * vision * rank + rank + vision}
    down, up = (text + vision) * rank + 2 * rank, (text + vision) * rank + text + vision
    bridge = rank * rank + rank
    expected = {
        "mma_nothing": 0, "mma_bridge": bridge, **{f"mma_{name}": size for name, size in towers.items()},
        "mma_down": down, "mma_up": up, "mma_towers": sum(towers.values()), "mma_all": sum(towers.values()) + bridge,
    }  # fmt: skip
    found = settings("ablation_sharing")
    for name, numbers in expected.items():
        method = methods.build(name, found["method"])
        initial = method.tuner(clip, ["cat", "dog"], "a photo of a {}.").init(torch_stream(0, "init"))
        assert tensors.count(messages.uplink_template(method, initial)) == blocks * numbers, name


@pytest.mark.parametrize("name", DRAWN[1:])
def test_it_runs_and_draws_novel_over_the_rounds(name: str, tmp_path: Path) -> None:
    done = fedvlm.run(name, *SMALL, out=tmp_path / "run")
    assert {row.method for row in done.rows} == set(settings(name)["methods"])
    assert settings(name)["evaluation"]["every"] == 1
    assert all(">Novel<" in text or "<!-- Novel -->" in text for text in [(done.folder / "rounds.svg").read_text()])


def test_sizes_are_as_uneven_as_the_preset_says() -> None:
    """Coefficient of variation, mean over five seeds; of ten Dirichlet shares it is sqrt((N - 1) / (N alpha + 1))."""
    for chosen in sweep.plan(presets.settings("ablation_sizes"), []).experiments:
        found = []
        for seed in range(5):
            federation = federate(load_source(chosen.data, seed), chosen, seed)
            sizes = np.array([len(client.train) for client in federation.clients])
            assert sizes.sum() == 640
            found.append(sizes.std() / sizes.mean())
            assert not any("were moved" in note for note in federation.notes)
        alpha = chosen.partition.alpha or 0.0
        assert np.mean(found) == pytest.approx((9 / (10 * alpha + 1)) ** 0.5, rel=0.35)


@pytest.mark.parametrize("name", [*DRAWN, *SWEPT])
def test_one_rate_for_all_variants_that_of_the_preset_they_are_like(name: str) -> None:
    own = overrides.read_toml(presets.FOLDER / f"{name}.toml")
    assert not [key for table in own.get("method", {}).values() for key in table if key in ("lr", "gate_lr")]


def test_the_sweeps_are_what_reviewers_and_the_calibration_asked_for() -> None:
    asked = {
        "calibration_shots": "data.shots", "calibration_templates": "data.styles",
        "ablation_shots": "data.shots", "ablation_clients": "partition.clients", "ablation_sizes": "partition.alpha",
        "ablation_labels": "partition.alpha", "ablation_participation": "participation",
    }  # fmt: skip
    assert {name: next(iter(presets.settings(name)["sweep"])) for name in SWEPT} == asked


@pytest.mark.parametrize("name", SWEPT)
def test_every_value_of_a_sweep_can_be_dealt(name: str) -> None:
    planned = sweep.plan(presets.settings(name), [])
    sizes = []
    for chosen in planned.experiments:
        federation = federate(load_source(chosen.data, 0), chosen, 0)
        sizes.append(sorted(len(client.train) for client in federation.clients))
        assert all(client.local for client in federation.clients)
    if name == "ablation_participation":
        assert len({tuple(each) for each in sizes}) == 1
