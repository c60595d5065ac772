"""Three sites with drawn images in folders, and the same federation in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedvlm import experiment, methods, presets
from fedvlm.data.sources.scenes import ScenesData
from fedvlm.experiment import Experiment
from fedvlm.federation import setup
from fedvlm.federation.simulation import Simulation
from fedvlm.network import example
from fedvlm.network.site.service import Service
from fedvlm.network.site.settings import SiteSettings

SEED = 3
STYLES = ["sketch", "neon", "fog"]
SCENES = ScenesData(styles=STYLES, base_classes=4, novel_classes=4, shots=3, val_per_class=2, test_per_class=2)


def settings(chosen: Sequence[str], **more: Any) -> dict[str, Any]:
    """Plain settings of an experiment between these sites."""
    common = presets.settings("quickstart") | {"methods": list(chosen), "rounds": 3}
    common["evaluation"] = {"every": 2}
    common["compute"] = {"clients_per_step": 1, "threads": 1, "disk_gib": 0.0}
    common["method"]["all"] |= {"epochs": 1, "batch": 4}
    return example.as_sites(common, SCENES, SEED) | more


@dataclass
class Field:
    """Folders of images, and an experiment."""

    folder: Path
    images: dict[str, Path]
    plain: dict[str, Any]
    agreed: Experiment = field(init=False)

    def __post_init__(self) -> None:
        self.agreed = experiment.parse(self.plain)

    @property
    def digest(self) -> str:
        return self.agreed.digest()

    def site(self, name: str, **policy: Any) -> SiteSettings:
        experiments = self.folder / "experiments"
        experiments.mkdir(exist_ok=True)
        (experiments / "one.json").write_text(json.dumps(self.plain))
        return SiteSettings(
            name=name, state=str(self.folder / f"state-{name}"), socket=str(self.folder / name / "carrier" / "site.sock"),
            experiments=str(experiments), data={"source": "folder", "path": str(self.images[name])},
            policy={"experiments": [self.digest]} | policy,
        )  # type: ignore[arg-type]  # fmt: skip

    def service(self, name: str, told: list[str] | None = None, **policy: Any) -> Service:
        service = Service(self.site(name, **policy), (told if told is not None else []).append)
        service.read_experiments()
        return service

    def simulation(self, method: str) -> Simulation:
        """All sites' images side by side in one process."""
        pooled = self.folder / "all"
        for split in ("train", "val", "test"):
            for name, path in self.images.items():
                shutil.copytree(path / split, pooled / split / name, dirs_exist_ok=True)
        data = self.plain["data"] | {"source": "folder", "path": str(pooled), "layout": "domain"}
        here = experiment.parse(self.plain | {"data": data})
        loaded = setup.load(here)
        return setup.simulation(loaded, loaded.seed(SEED), methods.build(method, here.method))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return example.draw_sites(SCENES, SEED, tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def field_of(drawn: dict[str, Path], tmp_path: Path) -> Any:
    def made(*chosen: str, **more: Any) -> Field:
        return Field(tmp_path, drawn, settings(chosen, **more))

    return made
