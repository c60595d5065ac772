"""Personal models: what is exported predicts as the run did, for every method; bad folders and images are told."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import fedvlm
from fedvlm import experiment, methods, tensors
from fedvlm.cli import app
from fedvlm.data.look import look
from fedvlm.errors import FedvlmError
from fedvlm.federation import setup
from fedvlm.federation.client import evaluation_tensors
from fedvlm.federation.setup import SeedSetup
from fedvlm.personal import export, folder, folds, merge
from fedvlm.personal import onnx as graphs
from fedvlm.personal.folds import Replay
from fedvlm.personal.model import Calibrated, PersonalModel, sources
from fedvlm.runs import result, starter
from fedvlm.training.evaluation import compute_outputs

SETTINGS: dict[str, Any] = {
    "rounds": 2, "seeds": [3], "participation": 1.0, "methods": ["all"],
    "data": {"styles": ["sketch", "neon", "fog"], "base_classes": 4, "novel_classes": 4, "shots": 3,
             "val_per_class": 0, "test_per_class": 4},
    "partition": {"kind": "domain"}, "evaluation": {"every": 2, "general": "own_domain"},
    "compute": {"threads": 1},
    "method": {"all": {"epochs": 1, "batch": 4, "first_block": 5, "last_block": 6}},
}  # fmt: skip
CLIENT = "neon"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedvlm.run("quickstart", out=tmp_path_factory.mktemp("run") / "all", **SETTINGS).folder


@pytest.fixture(scope="module")
def dealt(run: Path) -> tuple[setup.Loaded, SeedSetup]:
    loaded = setup.load(experiment.load("quickstart", (), SETTINGS))
    return loaded, loaded.seed(3)


@pytest.mark.parametrize("method", list(methods.known()))
def test_it_predicts_as_in_the_run(
    method: str, run: Path, dealt: tuple[setup.Loaded, SeedSetup], tmp_path: Path
) -> None:
    made = small(run, method)
    folder.save(made, tmp_path / "model")
    model = folder.load(tmp_path / "model")
    loaded, seed = dealt
    here = setup.simulation(loaded, seed, methods.build(method, loaded.experiment.method))
    (client,) = (one for one in seed.federation.clients if one.name == CLIENT)
    truth = compute_outputs(
        here.site, client, evaluation_tensors(here.spec, here.spec.reported, made.tensors, {}), made.received
    )
    assert truth.local is not None
    images = [seed.federation.source.records[index].image for index in client.local]
    found = model.logits(images, model.facts.classes)
    torch.testing.assert_close(found, truth.local.logits, rtol=1e-4, atol=1e-3)
    said = [one.label for one in model.predict([image.open() for image in images])]
    right = [seed.federation.source.records[index].name for index in client.local]
    told = result.read(run / "seed-3" / method / "result.json").clients[here.spec.reported][CLIENT]["local"]
    assert sum(map(str.__eq__, map(str, said), right)) / len(right) == pytest.approx(told, abs=1e-9)
    assert model.facts.metrics["local"] == told
    assert 0 < model.facts.zero_shot["local"] <= 1
    # Classes that nobody trained are asked for by name.
    assert truth.novel is not None
    others = [seed.federation.source.records[index].image for index in seed.federation.tests[str(client.novel)]]
    torch.testing.assert_close(model.logits(others, model.facts.novel), truth.novel.logits, rtol=1e-4, atol=1e-3)


def small(run: Path, method: str = "pfedmma", folds_: int = 0, client: str = CLIENT) -> PersonalModel:
    origin = export.of_run(run, client, method)
    return export.calibrate(export.make(origin), origin, folds_)


@pytest.fixture(scope="module")
def saved(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved") / "model"
    folder.save(small(run, folds_=3), place)
    return place


@pytest.fixture(scope="module")
def photographs(dealt: tuple[setup.Loaded, SeedSetup], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photographs")
    federation = dealt[1].federation
    for number, index in enumerate(federation.clients[1].local[:6]):
        federation.source.records[index].image.open().save(place / f"{number}.png")
    return place


def test_the_folder_says_what_it_is_and_is_for_its_owner_only(saved: Path) -> None:
    facts = folder.read_facts(saved)
    assert facts.client == CLIENT
    assert sum(facts.own.values()) == 3 * len(facts.classes)
    held = tensors.load(saved / "model.safetensors")
    assert {name for name in held if name.startswith("tensor/")} == {
        f"tensor/{name}" for name in facts.shared | facts.private
    }
    assert not facts.shared.keys() & facts.private.keys()
    assert all(name.startswith("shared.") for name in facts.shared)
    for file in saved.iterdir():
        assert file.stat().st_mode & 0o077 == 0
    card = (saved / "README.md").read_text()
    for word in ("shared.5.weight", facts.base.weights, facts.experiment, "fedvlm.load", "none of these"):
        assert word in card
    assert re.match(r"---\nlibrary_name: fedvlm\npipeline_tag: [a-z-]+\ntags:\n", card)


def test_the_cards_blocks_run(saved: Path, photographs: Path, tmp_path: Path) -> None:
    place = tmp_path / "taken home"
    place.mkdir()
    for file in saved.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    (place / "photograph.jpg").write_bytes((photographs / "0.png").read_bytes())
    card = (saved / "README.md").read_text()
    python, console = (re.search(rf"```{kind}\n(.*?)```", card, re.S) for kind in ("python", "console"))
    assert python
    assert console
    done = subprocess.run([sys.executable, "-c", python.group(1)], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, chance = done.stdout.rsplit(" ", 1)
    assert name in [*folder.read_facts(saved).classes, "None"]
    assert 0 < float(chance) <= 1
    words = console.group(1).removeprefix("$ fedvlm ").split()
    done = subprocess.run([sys.executable, "-m", "fedvlm", *words], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "photograph.jpg" in done.stdout


def test_probabilities_are_those_of_the_calibrated_logits(saved: Path, photographs: Path) -> None:
    model = fedvlm.load(saved)
    (found,) = model.predict(photographs / "0.png", top=99)
    logits = model.logits([seen(photographs / "0.png")], model.facts.classes)[0].double()
    expected = torch.softmax(logits / model.facts.calibrated.temperature, 0)
    assert sum(found.probabilities) == pytest.approx(1)
    assert dict(zip(found.labels, found.probabilities, strict=True)) == pytest.approx(
        dict(zip(model.facts.classes, expected.tolist(), strict=True))
    )
    assert found.probabilities == sorted(found.probabilities, reverse=True)


def seen(path: Path) -> Any:
    from fedvlm.data.files import FileImage

    return FileImage(path.parent, path.name)


def test_labels_old_and_new(saved: Path, photographs: Path) -> None:
    model = fedvlm.load(saved)
    image = photographs / "1.png"
    (new,) = model.predict(image, labels=["red fox", " grey wolf"], top=9)
    assert set(new.labels) == {"red fox", "grey wolf"}
    assert not new.none, "a threshold of the trained classes says nothing of others"
    (both,) = model.predict(image, labels=["red fox", model.facts.classes[0]], trained=True, top=99)
    assert sorted(both.labels) == sorted({*model.facts.classes, "red fox"})
    for wrong in ([], ["red fox", " "]):
        with pytest.raises(FedvlmError, match="a class needs a name"):
            model.predict(image, labels=wrong)
    with pytest.raises(FedvlmError, match="no class to choose from"):
        model.predict(image, trained=False)
    with pytest.raises(FedvlmError, match="same tokens"):
        model.predict(image, labels=["red fox", "red_fox"])


def test_none_of_these(saved: Path, photographs: Path) -> None:
    model = fedvlm.load(saved)
    (sure,) = model.predict(photographs / "0.png", none_below=0.0)
    assert sure.label == sure.labels[0]
    (unsure,) = model.predict(photographs / "0.png", none_below=1.0)
    assert unsure.none
    assert unsure.label is None
    assert unsure.labels == sure.labels


def test_an_image_that_cannot_be_read_costs_no_other(saved: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    model = fedvlm.load(saved)
    first, second, third = model.predict([photographs / "0.png", tmp_path / "broken.png", tmp_path / "absent.png"])
    assert first == model.predict(photographs / "0.png")[0]
    assert "broken.png" in second.problem
    assert "absent.png" in third.problem
    assert second.label is None
    with pytest.raises(FedvlmError, match="int is no image"):
        model.predict([3])  # type: ignore[list-item]
    with pytest.raises(FedvlmError, match=r"array \(4, 4\) of float64"):
        model.predict(np.zeros((4, 4)))  # type: ignore[arg-type]
    with pytest.raises(FedvlmError, match="a list of class names"):
        model.predict(photographs / "0.png", labels="fox")


def test_paths_links_images_and_arrays_are_the_same(saved: Path, photographs: Path, tmp_path: Path) -> None:
    """A photograph that is stored turned, and one with 12-bit greys: the same however it is given."""
    model = fedvlm.load(saved)
    turned = PIL.Image.open(photographs / "0.png").transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "link.png").symlink_to(tmp_path / "turned.png")
    plain = PIL.Image.open(photographs / "0.png").convert("RGB")
    ways = [photographs / "0.png", tmp_path / "turned.png", tmp_path / "link.png",
            PIL.Image.open(tmp_path / "turned.png"), plain, np.asarray(plain)]  # fmt: skip
    first, *others = (one.probabilities for way in ways for one in model.predict(way))  # type: ignore[arg-type]
    assert all(one == pytest.approx(first, abs=1e-6) for one in others)
    greys = np.asarray(plain.convert("L")).astype(np.uint16) << 4
    PIL.Image.fromarray(greys).save(tmp_path / "grey.png")
    radiographs = replace(model, facts=model.facts.model_copy(update={"grey_bits": 12}))
    (wide,) = radiographs.predict(tmp_path / "grey.png")
    (narrow,) = radiographs.predict(plain.convert("L"))
    assert wide.probabilities == pytest.approx(narrow.probabilities, abs=1e-6)


def test_images_that_were_added_since_are_noticed(tmp_path: Path) -> None:
    starter.draw_example(tmp_path / "photos")
    starter.write(look(tmp_path / "photos"), tmp_path / "one.toml", "embedded")
    fedvlm.run(str(tmp_path / "one.toml"), rounds=1, methods=["promptfl"], out=tmp_path / "run")
    model = small(tmp_path / "run", "promptfl", client="0")
    assert str(tmp_path) not in json.dumps(model.facts.dump()), "no path leaves with a model"
    (tmp_path / "photos" / "new").mkdir()
    (image, *_) = (tmp_path / "photos").glob("*/*.png")
    PIL.Image.open(image).rotate(17).save(tmp_path / "photos" / "new" / "1.png")
    with pytest.raises(FedvlmError, match="made for other images"):
        small(tmp_path / "run", "promptfl", client="0")


def test_local_rounds_are_played_again_from_the_last_downlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing private, the local rounds on all images give the client's own tensors again, bit for bit."""
    more = SETTINGS | {"methods": ["promptfl"], "method": {"all": SETTINGS["method"]["all"] | {"fine_tune": 3}}}
    more |= {"compute": {"threads": 1, "clients_per_step": 1}}
    fedvlm.run("quickstart", out=tmp_path / "run", **more)
    origin = export.of_run(tmp_path / "run", CLIENT, "promptfl")
    assert origin.replay.rounds == [0, 1, 2, 3, 4]
    assert origin.replay.taught.keys() == {"prompt"}
    assert not origin.replay.received, "later local rounds send nothing that is trained"
    seen: list[Any] = []

    def spy(*words: Any) -> Any:
        seen.append(words[2])
        return evaluation_tensors(*words)

    monkeypatch.setattr(folds, "evaluation_tensors", spy)
    some = origin.client.train[:1]
    whole = replace(origin.client, train=(*origin.client.train, 10**9))  # an image that is not there is held out
    replay = replace(origin.replay, rounds=[2, 3, 4])
    with pytest.raises((IndexError, KeyError)):
        folds.held_out(origin.spec, origin.site, whole, origin.point, replay, [10**9])
    assert tensors.digest(seen[0]) == tensors.digest(origin.personal or {})
    folds.held_out(origin.spec, origin.site, origin.client, origin.point, replay, some)
    assert tensors.digest(seen[1]) != tensors.digest(seen[0])
    model = export.make(origin)
    folder.save(model, tmp_path / "model")
    assert "then trained further here in 3 local rounds" in (tmp_path / "model" / "README.md").read_text()


def test_sources(photographs: Path, tmp_path: Path) -> None:
    assert sources([photographs]) == sorted(photographs.glob("*.png"))
    (tmp_path / "list.txt").write_text(f"{photographs}/0.png\n\n{photographs}/1.png\n")
    assert sources([f"@{tmp_path / 'list.txt'}", photographs / "2.png"]) == [photographs / f"{n}.png" for n in range(3)]
    with pytest.raises(FedvlmError, match="no such file"):
        sources([tmp_path / "absent.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FedvlmError, match="holds no image"):
        sources([tmp_path / "empty"])


def spoilt(saved: Path, tmp_path: Path) -> Path:
    place = tmp_path / "spoilt"
    place.mkdir()
    for file in saved.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def test_damaged_folders_are_refused(saved: Path, tmp_path: Path) -> None:
    place = spoilt(saved, tmp_path)
    facts = json.loads((place / "model.json").read_text())

    def refused(changes: dict[str, Any], message: str) -> None:
        (place / "model.json").write_text(json.dumps(facts | changes))
        with pytest.raises(FedvlmError, match=message):
            folder.load(place)

    refused({"base": facts["base"] | {"digest": "0" * 64}}, "belongs to the CLIP 'embedded'")
    refused({"version": 2}, "version")
    refused({"surprise": 1}, "unknown setting 'surprise'")
    refused({"private": {}}, r"does not belong to model\.json")
    refused({"received": {"experts.0000": [4, 128]}}, r"does not belong to model\.json: experts")
    refused({"support": 3}, r"does not belong to model\.json: the support set")
    refused({"method": "local_lora", "settings": {}}, r"does not belong to model\.json")
    refused({"base": facts["base"] | {"transform": "other"}}, "transform")
    refused({"method": "nonsense"}, "nonsense")
    refused({"calibrated": {"temperature": 0}}, "temperature")
    refused({"method": "os:getcwd"}, "runs that package's code")
    (place / "model.json").write_text("{")
    with pytest.raises(FedvlmError, match=r"model\.json"):
        folder.load(place)
    (place / "model.json").write_text(json.dumps(facts))
    held = tensors.load(place / "model.safetensors")
    held["tensor/shared.5.weight"][0, 0] = math.nan
    tensors.save(place / "model.safetensors", held)
    with pytest.raises(FedvlmError, match="not finite"):
        folder.load(place)
    (place / "model.safetensors").write_bytes(b"none")
    with pytest.raises(FedvlmError, match="not a readable safetensors"):
        folder.load(place)
    with pytest.raises(FedvlmError, match=r"holds no model\.json: fedvlm export"):
        folder.load(tmp_path)
    with pytest.raises(FedvlmError, match="is not empty"):
        folder.save(fedvlm.load(saved), place)


def test_a_method_of_another_package_needs_trust(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = spoilt(saved, tmp_path)
    (tmp_path / "strange.py").write_text(
        "from fedvlm.methods.pfedmma import PFedMMA\nopen('ran', 'w')\n\n\nclass Mine(PFedMMA):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    facts = json.loads((place / "model.json").read_text())
    (place / "model.json").write_text(json.dumps(facts | {"method": "strange:Mine"}))
    with pytest.raises(FedvlmError, match="--trust"):
        fedvlm.load(place)
    assert not (tmp_path / "ran").exists()
    assert fedvlm.load(place, trust=True).method.name == "mine"


def test_wrong_words_of_an_export(run: Path, tmp_path: Path) -> None:
    for words, message in (
        (("nobody", "pfedmma", 3), "no client 'nobody'"),
        ((CLIENT, "nonsense", 3), "--method nonsense is none of"), ((CLIENT, "pfedmma", 4), "--seed 4 is none of: 3"),
        ((CLIENT, None, 3), "say which, with --method"),
    ):  # fmt: skip
        with pytest.raises(FedvlmError, match=message):
            export.of_run(run, *words)  # type: ignore[arg-type]
    with pytest.raises(FedvlmError, match="is no run folder"):
        export.of_run(tmp_path, CLIENT)
    assert export.choose("ab", {"abc": "abc", "b": "b"}, "--x", begins=True) == "abc"
    with pytest.raises(FedvlmError, match="begins several"):
        export.choose("a", {"ab": "ab", "ac": "ac"}, "--x", begins=True)
    with pytest.raises(FedvlmError, match="none of: 10"):
        export.choose("1", {"10": "10"}, "--seed")


def test_an_unfinished_run_has_no_models(run: Path, tmp_path: Path) -> None:
    (tmp_path / "seed-3").mkdir()
    (tmp_path / "experiment.json").write_text((run / "experiment.json").read_text())
    with pytest.raises(FedvlmError, match="is not finished"):
        export.of_run(tmp_path, CLIENT, "pfedmma", 3)


class TestFolds:
    """Temperature and threshold."""

    def test_held_out_images_are_not_trained_on(
        self, dealt: tuple[setup.Loaded, SeedSetup], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded, seed = dealt
        here = setup.simulation(loaded, seed, methods.build("pfedmma", loaded.experiment.method))
        client = seed.federation.clients[0]
        seen: list[set[int]] = []
        right = folds.train_client

        def spy(*words: Any) -> Any:
            seen.append(set(words[3].train))
            return right(*words)

        monkeypatch.setattr(folds, "train_client", spy)
        parts = folds.deal(3, client, here.site.labels(client.train).tolist(), 3)
        assert sorted(image for part in parts for image in part) == sorted(client.train)
        labels = here.site.labels(client.train).tolist()
        by_class = dict(zip(client.train, labels, strict=True))
        for part in parts:
            assert len({by_class[image] for image in part}) == len(part), "three shots: one of each class in each fold"
        received = here.spec.method.server(here.spec.initial)
        for part in parts:
            seen.clear()
            folds.held_out(here.spec, here.site, client, "after_aggregation", Replay(received, received, [0, 1]), part)
            assert seen == [set(client.train) - set(part)] * 2

    def test_the_temperature_undoes_a_scale(self) -> None:
        draws = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(4000, 5, generator=draws, dtype=torch.float64)
        labels = torch.multinomial(torch.softmax(logits, -1), 1, generator=draws)[:, 0]
        for scale in (0.25, 1.0, 4.0):
            assert folds.best_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.06)

    def test_few_images_that_are_all_right_ask_for_no_certainty(self) -> None:
        logits = 10 * F.one_hot(torch.arange(4).repeat(3), 4).double()
        assert 0.1 < folds.best_temperature(logits, torch.arange(4).repeat(3)) < 10

    def test_too_few_images_say_nothing(self, dealt: tuple[setup.Loaded, SeedSetup]) -> None:
        loaded, seed = dealt
        here = setup.simulation(loaded, seed, methods.build("pfedmma", loaded.experiment.method))
        client = replace(seed.federation.clients[0], train=seed.federation.clients[0].train[:9])
        found = folds.calibrate(here.spec, here.site, client, "after_aggregation", Replay({}, {}, [0]))
        assert found == Calibrated(why_not="9 training images are too few")
        with pytest.raises(FedvlmError, match="one fold"):
            folds.calibrate(here.spec, here.site, client, "after_aggregation", Replay({}, {}, [0]), 1)

    @pytest.mark.parametrize("method", ["pfedmoap", "promptfl", "tip_adapter", "fedsa_lora", "gaussian", "promptfl_ft"])
    def test_all_kinds_of_methods_are_calibrated(self, method: str, run: Path) -> None:
        found = small(run, method, 2).facts.calibrated
        assert found.images == 12
        assert found.before is not None
        assert found.after is not None
        assert 0 < (found.none_below or 0) <= 1
        assert found.held_out == (method != "promptfl"), "all of PromptFL's prompt is shared, and has seen every image"


def fedvlm_(*words: str, code: int = 0) -> str:
    """A command's output; errors have the exit code 1 here, because `main` is not around."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output + str(done.exception)
    return done.output + (str(done.exception) if isinstance(done.exception, FedvlmError) else "")


def test_the_command_line(run: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = fedvlm_("export", str(run), "mine", "--client", CLIENT, "--method", "pfedmoap", "--folds", "2")
    assert "temperature" in told
    assert "seed 3" in told
    assert "next: fedvlm predict mine PHOTOGRAPHS" in told
    assert "is not empty" in fedvlm_("export", str(run), "mine", "--client", CLIENT, "--method", "promptfl", code=1)
    told = fedvlm_(
        "predict", "mine", str(photographs), "--csv", "said.csv", "--sort-into", "sorted", "--none-below", "0"
    )
    assert told.count(".png") == 6
    rows = (tmp_path / "said.csv").read_text().splitlines()
    assert rows[0].startswith("image,class,class 1,probability 1,class 2")
    assert len(rows) == 7
    copied = sorted(path.relative_to(tmp_path / "sorted").as_posix() for path in tmp_path.glob("sorted/*/*.png"))
    expected = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    assert (tmp_path / "sorted").stat().st_mode & 0o077 == 0
    assert copied == sorted(f"{row['class']}/{Path(row['image']).name}" for row in expected)
    fedvlm_("predict", "mine", str(photographs / "0.png"), "--sort-into", "sorted", "--none-below", "0")
    assert len(list(tmp_path.glob("sorted/*/0-2.png"))) == 1, "a file that is there is not replaced"
    assert "is there already" in fedvlm_("predict", "mine", str(photographs), "--csv", "said.csv", code=1)
    assert "no image in sorted" in fedvlm_("predict", "mine", "sorted", "--sort-into", "sorted", code=1)
    fedvlm_("predict", "mine", str(photographs / "0.png"), "--labels", "../up,..", "--sort-into", "odd")
    assert {path.parent.parent for path in tmp_path.rglob("0.png")} <= {tmp_path / "sorted", tmp_path / "odd"}
    (tmp_path / "broken.png").write_bytes(b"x")
    lines = fedvlm_("predict", "mine", "broken.png", str(photographs / "0.png"), "--json", code=1).splitlines()
    broken, fine = map(json.loads, lines)
    assert broken["problem"]
    assert fine["label"] in [*fine["labels"], None]
    assert "red fox" in fedvlm_("predict", "mine", str(photographs / "0.png"), "--labels", "red fox,grey wolf")


@pytest.mark.parametrize("method", ["local_lora", "fedlora", "ffa_lora", "fedsa_lora"])
def test_a_merged_model_is_a_plain_clip_for_transformers(
    method: str, run: Path, dealt: tuple[setup.Loaded, SeedSetup], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, CLIPModel

    model = small(run, method)
    merge.save(merge.merge(model), tmp_path)
    federation = dealt[1].federation
    images = [federation.source.records[index].image for index in federation.clients[1].local]
    pixels = torch.stack([model.clip.preprocess.test(image.open()) for image in images])
    other = CLIPModel.from_pretrained(tmp_path)
    texts = [model.facts.template.format(name) for name in model.facts.classes]
    words = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = other(**words, pixel_values=model.clip.preprocess.normalise(pixels))
    scale = float(model.clip.logit_scale.exp())
    ours = model.logits(images, model.facts.classes)
    torch.testing.assert_close(found.logits_per_image / scale, ours / scale, rtol=0, atol=1e-4)
    plain = other.logit_scale.exp() * 0 + small(run, "zero_shot").logits(images, model.facts.classes)
    assert (plain - ours).abs().max() > 1e-2, "the changes matter"


@pytest.mark.parametrize("method", ["pfedmma", "pfedmoap", "tip_adapter"])
def test_what_is_no_change_of_weights_is_not_merged(method: str, run: Path) -> None:
    with pytest.raises(FedvlmError, match="cannot be merged: LoRA methods can"):
        merge.merge(small(run, method))


@pytest.mark.parametrize("method", ["pfedmma", "pfedmoap"])
def test_an_onnx_graph_says_what_the_model_says(method: str, run: Path, photographs: Path, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model = small(run, method, 2)
    graph = graphs.make(model)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    about = {one.key: one.value for one in onnx.load_model_from_string(graph).metadata_props}
    assert json.loads(about["classes"]) == model.facts.classes
    paths = sorted(photographs.glob("*.png"))[:2]
    pixels = torch.stack([model.clip.preprocess.test(seen(path).open()) for path in paths])
    (found,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
    for row, said in zip(found.tolist(), model.predict(paths, top=99), strict=True):
        assert dict(zip(model.facts.classes, row, strict=True)) == pytest.approx(
            dict(zip(said.labels, said.probabilities, strict=True)), abs=1e-4
        )


def test_the_page_word_by_word(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/predict.md, in an empty folder with photographs; only the clients are fewer."""
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    (tmp_path / "photographs").mkdir()
    for number, image in enumerate(sorted(photographs.glob("*.png")), 1):
        (tmp_path / "photographs" / f"{number:04d}.png").write_bytes(image.read_bytes())
    (tmp_path / "list.txt").write_text("photographs/0001.png\nphotographs/0002.png\n")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(console|python)\n(.*?)```", page, re.S)
    lines = [line.removeprefix("$ ") for kind, text in blocks if kind == "console" for line in text.splitlines()]
    assert len(lines) == 9
    few = shlex.split("rounds=2 data.base_classes=4 data.novel_classes=0 data.shots=4 data.test_per_class=2 "
                      "partition.clients=4")  # fmt: skip
    for line in lines:
        program, verb, *words = shlex.split(line)
        assert program == "fedvlm"
        if verb != "site":  # tests/network has that one
            fedvlm_(verb, *words, *(few if verb in ("run", "partition") else []))
    (python,) = (text for kind, text in blocks if kind == "python")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(python, "docs/predict.md", "exec"), {})
    assert [line.split()[0] for line in said.getvalue().splitlines()] == [f"photographs/000{n}.png" for n in (1, 2)]
