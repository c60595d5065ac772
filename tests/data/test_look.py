"""A look at folders and tables, and the first experiment that is written from it."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from typer.testing import CliRunner

from fedvlm import experiment
from fedvlm.cli import app
from fedvlm.data.look import look
from fedvlm.errors import FedvlmError
from fedvlm.runs import starter

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes a folder with empty image files; nothing is decoded by a look."""

    def made(*names: str) -> Path:
        for name in names:
            file = tmp_path / "photos" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
        return tmp_path / "photos"

    return made


def numbered(*folders: str, count: int = 4) -> list[str]:
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(count)]


def test_class_folders(tree: Tree) -> None:
    found = look(tree(*numbered("cat", "dog"), "dog/more.JPG", "notes.txt", ".hidden/1.jpg"))
    assert found.labels == {"cat": 4, "dog": 5}
    assert (found.settings["layout"], found.above, found.splits, found.oddities) == ("class", "", [], [])
    assert found.said == "9 images in 2 classes (4 to 5 in each)"


def test_clients_above_classes_and_splits_above_both(tree: Tree) -> None:
    names = numbered(*(f"{split}/{owner}/{label}" for split in ("train", "test") for owner in ("ada", "ben")
                       for label in ("cat", "dog")))  # fmt: skip
    found = look(tree(*names))
    assert found.settings["layout"] == "client"
    assert found.clients == {"ada": 16, "ben": 16}
    assert found.splits == ["test", "train"]
    assert found.said == "32 images in 2 classes (16 in each), of 2 clients, split into test, train"


def test_splits_above_classes_are_no_clients(tree: Tree) -> None:
    found = look(tree(*numbered("train/cat", "train/dog", "test/cat")))
    assert (found.settings["layout"], found.labels) == ("class", {"cat": 8, "dog": 4})


def test_oddities_are_told(tree: Tree) -> None:
    found = look(tree(*numbered("Polo shirt", "polo_shirt"), "cat/1.jpg", "stray.jpg"))
    assert found.oddities == [
        "1 images lie at another depth", "cat: fewer than 4 images", "Polo shirt, polo_shirt: probably one class",
    ]  # fmt: skip


def test_what_is_no_layout_is_refused(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match="no folder and no CSV"):
        look(tmp_path / "absent")
    with pytest.raises(FedvlmError, match="holds no image"):
        look(tree("notes.txt"))
    with pytest.raises(FedvlmError, match=r"do not lie in class folders.*a/b/c/1\.jpg"):
        look(tree("a/b/c/1.jpg", "a/b/c/2.jpg"))


@pytest.mark.parametrize("rows", ["file,diagnosis,patient\na.png,mole,p1\nb.png,mole,p2\nb.png,,p2\n"])
def test_a_table_by_the_usual_names_of_columns(rows: str, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text(rows)
    found = look(tmp_path / "list.csv")
    assert found.settings == {
        "source": "manifest", "path": str(tmp_path), "manifest": "list.csv", "image": "file", "label": "diagnosis",
        "client": "patient",
    }  # fmt: skip
    assert found.clients == {"p1": 1, "p2": 2}
    assert found.oddities == ["1 rows have no label", "mole: fewer than 4 images"]


@pytest.mark.parametrize("pattern", ["images/{}.jpg", "{}.png", "all/of them [1]/{}"])
def test_images_beside_a_table_are_found(pattern: str, tmp_path: Path) -> None:
    names = ["x1", "b*", "c 3"]
    for name in names:
        file = tmp_path / pattern.replace("{}", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    rows = "".join(f"{name},{label}\n" for name in names for label in ("cat", "Not sure", "Skip"))
    (tmp_path / "list.csv").write_text(f"image,label\n{rows}")
    found = look(tmp_path / "list.csv")
    assert found.settings["image_path"] == pattern
    assert found.oddities[-1].startswith("Not sure, Skip: a label that says nothing")


def test_a_table_whose_images_are_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,label\nx1,cat\n")
    assert any("set data.image_path" in one for one in look(tmp_path / "list.csv").oddities)
    for text, message in (("image,label\n", "no row below its header"), ("image,label\nx1,\n", "no row has a value")):
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(FedvlmError, match=message):
            look(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("picture,name\nx1,cat\n")
    with pytest.raises(FedvlmError, match="needs a column 'image'"):
        look(tmp_path / "list.csv")


@pytest.mark.parametrize("model", ["embedded", "openai/clip-vit-base-patch16"])
@pytest.mark.parametrize("layout", ["class", "client", "domain"])
def test_the_written_file_is_a_valid_experiment(layout: str, model: str, tree: Tree, tmp_path: Path) -> None:
    labels = [f"thing {number}" for number in range(6)]
    if layout == "domain":
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "list.csv").write_text("image,label,camera\n1.jpg,cat,old\n2.jpg,dog,new\n")
        found = look(tmp_path / "photos" / "list.csv")
    else:
        found = look(tree(*numbered(*(labels if layout == "class" else [f"ada/{label}" for label in labels]))))
    file = tmp_path / "mine.toml"
    starter.write(found, file, model)
    chosen = experiment.load(str(file))
    assert chosen.name == "mine"
    assert chosen.model.name == model
    assert chosen.partition.kind == {"class": "dirichlet", "client": "natural", "domain": "domain"}[layout]
    assert tomllib.loads(file.read_text())["data"]["novel"] == "none"
    assert ("first_block" in chosen.method["all"]) == (model == "embedded")
    with pytest.raises(FedvlmError, match="is there already"):
        starter.write(found, file, model)


def test_a_label_cannot_write_settings(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('image,label\n1.jpg,"cat\nmethods = [""os:getcwd""]"\n2.jpg,dog\n')
    starter.write(look(tmp_path / "list.csv"), tmp_path / ".mine.toml", "embedded")
    chosen = experiment.load(str(tmp_path / ".mine.toml"))
    assert chosen.methods == list(starter.CHOSEN)
    assert chosen.name == "mine"


PAGE = Path(__file__).parents[2] / "docs" / "bring-your-images.md"


def test_the_pages_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/bring-your-images.md, first block, on drawn photographs with fewer rounds: from nothing to a prediction."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")  # rows in one line
    starter.draw_example(tmp_path / "photographs")
    images = sorted((tmp_path / "photographs").glob("*/*.png"))
    assert len(images) == 200
    assert {PIL.Image.open(image).mode for image in images} == {"RGB"}
    (block,) = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.S)[:1]
    told = {}
    for line in block.splitlines():
        program, verb, *words = shlex.split(line.removeprefix("$ ").split("  #")[0])
        assert program == "fedvlm"
        few = ["rounds=2", "methods=zero_shot,pfedmma"] if verb == "run" else []
        done = CliRunner().invoke(app, [verb, *words, *few])
        assert done.exit_code == 0, done.output + str(done.exception)
        told[verb] = done.output
    assert list(told) == ["init", "check", "run", "export", "predict"]
    assert "found: 200 images in 5 classes (40 in each)" in told["init"]
    assert "sound: 5 methods, 1 seed" in told["check"]
    assert "fedvlm export my-run FOLDER" in told["run"]
    rows = [row for row in told["predict"].splitlines() if ".png" in row]
    assert len(rows) == 200
    right = sum(row.split("/")[1] in row.split(".png", 1)[1].split("%")[0] for row in rows)
    assert right > 150, "the embedded model names drawn photographs"


def test_an_example_beside_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("here")
    with pytest.raises(FedvlmError, match="is not empty"):
        starter.draw_example(tmp_path)
