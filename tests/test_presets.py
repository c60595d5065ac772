"""Every preset is valid, says what its paper says, and runs on a small copy of its data in the published layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_datasets
import pytest
import torch

import fedvlm
from fedvlm import clip as clips
from fedvlm import experiment, methods, overrides, presets
from fedvlm.clip.templates import TEMPLATES
from fedvlm.data import federate, load_source
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.runs.chance import chance_threshold, zero_shot_check
from fedvlm.studies import sweep
from fedvlm.training.activations import Activations
from fedvlm.training.device import Device

ROOT = Path(__file__).parents[1]
BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
COARSE = [fine % 20 for fine in range(100)]
HUNDRED = [f"{name}_{i}" for i in range(10) for name in fake_datasets.CIFAR10]

# What the embedded CLIP and a test's patience need; the rest is as in the preset.
TINY = ["model.name=embedded", "seeds=3", "rounds=1", "views=none", "method.all.epochs=1", "method.all.batch=8",
        "method.all.tokens=2", "method.all.first_block=5", "method.all.last_block=6", "method.all.rank=4",
        "method.all.gate_width=64", "compute.disk_gib=0"]  # fmt: skip


def chosen(name: str, *words: str) -> Experiment:
    """As one run; of a sweep without what is swept."""
    settings = presets.settings(name)
    settings.pop("sweep", None)
    return experiment.parse(overrides.apply_words(settings, words))


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_is_valid_and_says_how_to_run_it(name: str) -> None:
    found = chosen(name)
    methods.check(found.method)
    for method in found.methods:
        methods.build(method, found.method)
    settings = presets.settings(name)
    verb = "sweep" if "sweep" in settings else "compare" if name.startswith("ablation_") else "run"
    assert presets.about(name).startswith(f"fedvlm {verb} {name}")
    assert len(presets.about(name).splitlines()) >= 2
    if "sweep" in settings:
        assert len(sweep.plan(settings, []).experiments) >= 3
        with pytest.raises(FedvlmError, match="fedvlm sweep"):
            experiment.parse(settings)


# The tables of arXiv 2410.10114 (appendix) and 2507.05394, and the released scripts.
PUBLISHED: dict[str, dict[str, Any]] = {
    "few_shot": {"rounds": 10, "participation": 1.0, "clients": 10, "order": "paper", "shots": 16, "epochs": 5, "lr": 0.002, "model": "timm/resnet50_clip.openai", "novel": "none"},
    "base_to_novel": {"rounds": 50, "participation": 1.0, "clients": 10, "order": "paper", "shots": 16, "epochs": 2, "lr": 0.001, "model": "openai/clip-vit-base-patch16", "novel": "half"},
    "cifar10": {"rounds": 120, "participation": 0.1, "clients": 100, "kind": "dirichlet", "alpha": 0.5, "cap": True, "min_images": 10, "min_test": 10, "epochs": 5, "lr": 0.002, "model": "timm/resnet50_clip.openai", "novel": "none", "shots": None},
    "cifar100": {"rounds": 120, "participation": 0.1, "clients": 100, "kind": "pachinko", "alpha": 0.5, "inner_alpha": 10.0, "epochs": 5, "model": "timm/resnet50_clip.openai", "novel": "none", "shots": None},
    "domainnet": {"rounds": 25, "participation": 0.25, "clients_per_domain": 5, "kind": "domain", "alpha": 0.3, "epochs": 5, "experts": 20, "model": "openai/clip-vit-base-patch16", "include": fake_datasets.DOMAINNET},
    "domainnet_pfedmma": {"rounds": 50, "participation": 0.25, "clients_per_domain": 5, "kind": "domain", "alpha": 0.3, "epochs": 1, "lr": 0.001, "batch": 32, "model": "openai/clip-vit-base-patch16", "include": fake_datasets.DOMAINNET},
    "office_caltech": {"rounds": 25, "participation": 0.5, "clients_per_domain": 5, "kind": "domain", "alpha": 0.3, "epochs": 5, "model": "openai/clip-vit-base-patch16"},
    "pacs": {"kind": "domain", "clients_per_domain": 5},
    "leave_one_domain_out": {"rounds": 25, "participation": 0.5, "clients_per_domain": 5, "kind": "domain", "alpha": 0.3, "epochs": 5, "late": ["webcam"], "model": "openai/clip-vit-base-patch16"},
}  # fmt: skip


@pytest.mark.parametrize("name", ["newcomer", "ablation_experts", "ablation_sharing", "ablation_adapter"])
def test_rates_said_to_be_the_quickstart_s_are(name: str) -> None:
    there, here = (presets.settings(each)["method"] for each in ("quickstart", name))
    rates = {
        m: {key: table[key] for key in ("lr", "gate_lr") if key in table} for m, table in here.items() if m in there
    }
    assert rates == {m: {key: there[m][key] for key in each} for m, each in rates.items()}
    assert rates["pfedmma" if "pfedmma" in rates else "pfedmoap"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    found = chosen(name)
    places: list[dict[str, Any]] = [found.resolved(), found.resolved()["data"], found.resolved()["partition"],
                                    found.method["all"], found.method.get("pfedmoap", {}), {"model": found.model.name}]  # fmt: skip
    for key, value in PUBLISHED[name].items():
        values = [place[key] for place in reversed(places) if key in place]
        assert values[0] == value, key


def test_every_protocol_is_checked_against_its_paper() -> None:
    drawn = {name for name in presets.names() if chosen(name).data.source == "scenes"}
    asking = {name for name in presets.names() if name.startswith(("ablation_", "calibration_"))}
    assert drawn == {"quickstart", "quickstart_full", "common_style", "common_style_full", "newcomer"} | asking
    assert set(presets.names()) == {*PUBLISHED} | drawn


def pictures(names: list[str], count: int = 12) -> dict[str, list[Any]]:
    return {
        name: [fake_datasets.drawing(fake_datasets.DRAWN[place % 10], i + count * (place // 10)) for i in range(count)]
        for place, name in enumerate(names)
    }


def ten(root: Path, names: list[str] = fake_datasets.CIFAR10) -> list[str]:
    """360 records: six of every class in every file."""
    images = {
        name: [
            (label, fake_datasets.drawing(fake_datasets.DRAWN[label], 6 * f + i, side=32))
            for i in range(6)
            for label in range(10)
        ]
        for f, name in enumerate(BATCHES)
    }
    fake_datasets.cifar10(root, images, names)
    return ["data.complete=false", "partition.clients=5", "partition.min_test=3"]


def hundred(root: Path) -> list[str]:
    images = {
        name: [
            (label, fake_datasets.drawing(fake_datasets.DRAWN[label % 10], label // 10 + 10 * f + 20 * i, side=32))
            for i in range(n)
            for label in range(100)
        ]
        for f, (name, n) in enumerate((("train", 5), ("test", 1)))
    }
    fake_datasets.cifar100(root, images, COARSE, HUNDRED)
    return ["data.complete=false", "partition.clients=5"]


def domainnet(root: Path) -> list[str]:
    """With a class that the papers leave out, between the others in the lists' numbering."""
    names = sorted([*fake_datasets.DOMAINNET, "sea_turtle"])
    fake_datasets.by_domain(root, fake_datasets.DOMAINS["domainnet"], pictures(names))
    labels = {name: 7 * place for place, name in enumerate(names)}
    fake_datasets.write_lists(root, "{domain}_train.txt", labels, range(8), fake_datasets.DOMAINS["domainnet"])
    fake_datasets.write_lists(root, "{domain}_test.txt", labels, range(8, 12), fake_datasets.DOMAINS["domainnet"])
    return ["partition.clients_per_domain=2"]


def office(root: Path) -> list[str]:
    fake_datasets.by_domain(root, fake_datasets.DOMAINS["office"], pictures(fake_datasets.DOMAINNET))
    return ["partition.clients_per_domain=2"]


def pacs(root: Path) -> list[str]:
    fake_datasets.by_domain(root, fake_datasets.DOMAINS["pacs"], pictures(fake_datasets.PACS))
    labels = {name: place for place, name in enumerate(fake_datasets.PACS, 1)}
    for kind, numbers in (("train", range(9)), ("crossval", range(9, 12)), ("test", range(12))):
        fake_datasets.write_lists(root, f"{{domain}}_{kind}_kfold.txt", labels, numbers, fake_datasets.DOMAINS["pacs"])
    return ["partition.clients_per_domain=2"]


def few_shot(root: Path) -> list[str]:
    fake_datasets.coop(root, pictures(fake_datasets.DRAWN), 9)
    return ["data.shots=4"]


def base_to_novel(root: Path) -> list[str]:
    fake_datasets.coop(root, pictures(fake_datasets.DRAWN), 9)
    return ["data.shots=4", "partition.clients=2"]


COPIES: dict[str, tuple[Callable[[Path], list[str]], str, int, int]] = {
    "few_shot": (few_shot, "pfedmoap", 10, 10),
    "base_to_novel": (base_to_novel, "pfedmma", 2, 5),
    "cifar10": (ten, "pfedmoap", 5, 10),
    "cifar100": (hundred, "pfedmoap", 5, 100),
    "domainnet": (domainnet, "pfedmoap", 12, 10),
    "domainnet_pfedmma": (domainnet, "pfedmma", 12, 10),
    "office_caltech": (office, "pfedmoap", 8, 10),
    "pacs": (pacs, "pfedmma", 8, 7),
    "leave_one_domain_out": (office, "pfedmma", 8, 10),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_preset_runs_on_a_copy_in_the_published_layout(name: str, tmp_path: Path) -> None:
    make, method, clients, classes = COPIES[name]
    words = [f"data.path={tmp_path / 'data'}", *make(tmp_path / "data"), *TINY, f"methods=zero_shot,{method}"]
    found = chosen(name, *words)
    federation = federate(load_source(found.data, 3), found, 3)
    assert len(federation.clients) == clients
    assert len(federation.base) == classes
    assert len(federation.novel) == (5 if name == "base_to_novel" else 0)
    assert federation.source.warnings == ()
    if name.startswith("domainnet"):
        assert federation.base_names == fake_datasets.DOMAINNET
    elif name == "pacs":
        assert federation.base_names == fake_datasets.PACS
    results = fedvlm.run(name, *words, out=tmp_path / "run")
    assert {row.method for row in results.rows} == {"zero_shot", method}
    assert all(0 <= row.metrics["local"].mean <= 1 for row in results.rows)
    assert results.points[method][3].up_bytes_per_visit > 0


@pytest.mark.parametrize(("name", "model"), [("cifar10", "resnet"), ("cifar100", "vit")])
def test_cifar_with_clips_of_other_makes(name: str, model: str, makes: dict[str, Path], tmp_path: Path) -> None:
    """A ResNet and a ViT in the published file formats, with the released transform and the fixed partition."""
    words = [f"data.path={tmp_path / 'data'}", *COPIES[name][0](tmp_path / "data"), *TINY, "method.all.first_block=2",
             "method.all.last_block=2", "method.all.gate_width=8", "method.all.heads=2", f"data.preprocess={name}"]  # fmt: skip
    words += [f"model.name={makes[model]}", "methods=zero_shot,pfedmoap", "partition.order=paper"]
    results = fedvlm.run(name, *words, out=tmp_path / "run")
    assert {row.method for row in results.rows} == {"zero_shot", "pfedmoap"}


def test_the_released_transform_gives_other_numbers_and_its_own_activations(tmp_path: Path) -> None:
    words = [
        f"data.path={tmp_path / 'data'}",
        *ten(tmp_path / "data"),
        *TINY,
        "methods=zero_shot",
        "compute.disk_gib=1",
    ]
    losses = {}
    for kind in ("clip", "cifar10", "clip"):
        out = tmp_path / f"{kind}-{len(losses)}"
        point = fedvlm.run("cifar10", *words, f"data.preprocess={kind}", out=out).points["zero_shot"][3]
        losses.setdefault(kind, []).append(point.reported["loss"])
    assert losses["clip"][0] == losses["clip"][1], "the second run of the same transform takes its own activations"
    assert losses["clip"][0] != losses["cifar10"][0]


def test_the_released_transform_has_no_augmentation(tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match=r'data\.preprocess = "cifar10" has no augmentation.*views = "online"'):
        chosen("cifar10", "data.preprocess=cifar10", "views=online")
    with pytest.raises(FedvlmError, match="views = 4 asks for it"):
        chosen("cifar10", "data.preprocess=cifar100", "views=4")


@pytest.mark.parametrize("kind", ["clip", "cifar10"])
def test_zero_shot_is_far_above_chance_on_cifar_s_files(kind: str, tmp_path: Path) -> None:
    found = chosen("cifar10", *ten(tmp_path, fake_datasets.DRAWN), f"data.path={tmp_path}")
    clip = clips.load()
    clip.preprocess = clips.preprocess.select(clip.preprocess, kind)
    assert zero_shot(found, clip) > 0.5


@pytest.mark.parametrize("name", ["domainnet", "pacs"])
def test_zero_shot_is_far_above_chance_with_lists(name: str, tmp_path: Path) -> None:
    """Label numbers against the order of the alphabet: names must follow the numbers."""
    words = {"domainnet": ("train", "test"), "pacs": ("train_kfold", "crossval_kfold")}[name]
    fake_datasets.by_domain(tmp_path, fake_datasets.DOMAINS[name], pictures(fake_datasets.DRAWN))
    labels = {word: 100 - place for place, word in enumerate(sorted(fake_datasets.DRAWN))}
    for split, numbers in zip(words, (range(8), range(8, 12)), strict=True):
        fake_datasets.write_lists(tmp_path, f"{{domain}}_{split}.txt", labels, numbers, fake_datasets.DOMAINS[name])
    found = chosen(name, f"data.path={tmp_path}", "data.include=[]", "partition.clients_per_domain=2")
    assert zero_shot(found, clips.load()) > 0.5


def zero_shot(found: Experiment, clip: clips.FrozenCLIP) -> float:
    """Accuracy of the embedded CLIP on a balanced sample of what clients are tested on."""
    federation = federate(load_source(found.data, 0), found, 0)
    activations = Activations(clip, federation.source.records, Device(torch.device("cpu")), 2**28)
    accuracy, count, classes = zero_shot_check(clip, federation, activations, found)
    assert accuracy > chance_threshold(count, classes)
    return accuracy


def test_office_as_it_is(shared: Path) -> None:
    """The real one: four domains, ten classes, a fifth held out, as many images as the papers count."""
    found = chosen("office_caltech", f"data.path={shared / 'data/office_caltech_10'}")
    federation = federate(load_source(found.data, 0), found, 0)
    assert [client.domain for client in federation.clients] == [
        d for d in fake_datasets.DOMAINS["office"] for _ in range(5)
    ]
    train, test = (sum(len(getattr(c, part)) for c in federation.clients) for part in ("train", "local"))
    assert train + test == 2533
    assert abs(test - 508) <= 12
    assert min(len(client.local) for client in federation.clients) >= 2
    for client in federation.clients:
        for i in client.train + client.local:
            one = federation.source.records[i]
            assert str(one.image.key).startswith(f"{client.domain}/{one.name}/")


def test_templates_take_a_class_name() -> None:
    """The table in the documentation is the one in the package."""
    page = (ROOT / "docs/protocols.md").read_text()
    for name, words in TEMPLATES.items():
        assert words.count("{}") == 1
        assert f"| {name} | `{words}` |" in page


def test_every_preset_is_in_the_documentation() -> None:
    page = (ROOT / "docs/protocols.md").read_text()
    assert all(f"| `{name}` |" in page for name in PUBLISHED)
