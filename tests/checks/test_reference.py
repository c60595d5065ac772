"""The reference outputs in the repository: as many, and the same numbers, as there are; and how draws are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fedvlm import clip as clips
from fedvlm import tensors
from fedvlm.checks import drawn_tensors
from fedvlm.checks.agreement import is_input
from fedvlm.checks.drawn_tensors import Draws
from fedvlm.checks.verify import verify
from fedvlm.errors import FedvlmError

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "reference"
FIXTURES = ("pfedmma", "pfedmoap", "pfedmoap_resnet")
CLIPS = {"tiny-clip": "model", "tiny-clip-resnet": "open_clip_model"}


def test_it_is_small_and_complete() -> None:
    assert sum(file.stat().st_size for file in REFERENCE.rglob("*") if file.is_file()) <= 3_000_000
    assert {file.stem for file in REFERENCE.glob("*.safetensors")} == set(FIXTURES)
    stored = [safetensors.torch.load_file(REFERENCE / f"{name}.safetensors") for name in FIXTURES]
    assert sum(not is_input(key) for table in stored for key in table) == 331


@pytest.mark.parametrize("name", FIXTURES)
def test_numbers_are_those_of_the_full_reference(name: str, full: Path) -> None:
    """Bit for bit, and no output is a draw."""
    expected = safetensors.torch.load_file(full / f"{name}.safetensors")
    stored = safetensors.torch.load_file(REFERENCE / f"{name}.safetensors")
    assert json.loads((REFERENCE / f"{name}.json").read_text()) == json.loads((full / f"{name}.json").read_text())
    assert tensors.equal(drawn_tensors.load(REFERENCE / f"{name}.safetensors"), expected)
    assert {key for key in expected if not is_input(key)} <= stored.keys()


@pytest.mark.parametrize("name", CLIPS)
def test_weights_are_those_of_the_full_models(name: str, full: Path) -> None:
    """Bit for bit; of embeddings those of the tokens and positions that occur."""
    own = drawn_tensors.load(REFERENCE / name / f"{CLIPS[name]}.safetensors")
    expected = safetensors.torch.load_file(full / name / f"{CLIPS[name]}.safetensors")
    assert own.keys() == expected.keys()
    for key, tensor in own.items():
        if not key.endswith(("token_embedding.weight", "position_embedding.weight", "positional_embedding")):
            assert torch.equal(tensor.float(), expected[key]), key
        elif "token" not in key:
            assert torch.equal(tensor.float(), expected[key][: len(tensor)]), key


@pytest.mark.parametrize("name", CLIPS)
def test_texts_have_the_embeddings_of_the_full_models(name: str, full: Path) -> None:
    with drawn_tensors.completed_folder(REFERENCE / name) as place:
        small = clips.load(str(place))
    whole = clips.load(str(full / name))
    settings = [json.loads((REFERENCE / f"{fixture}.json").read_text()) for fixture in FIXTURES]
    for one in settings:
        if one["clip"] != name:
            continue
        for key in ("prompt", "suffix", "zero_shot_prompt"):
            for word in (one[key].format(word.replace("_", " ")) for word in one["classnames"] if key in one):
                embedded = [model.text.token_embedding(model.tokenizer([word])[0]) for model in (small, whole)]
                assert torch.equal(*embedded), word


def test_both_give_the_same_verdicts(full: Path) -> None:
    small, whole = verify(REFERENCE), verify(full)
    assert [(g.fixture, g.name, g.tensors, g.result) for g in small] == [
        (g.fixture, g.name, g.tensors, g.result) for g in whole
    ]
    for one, other in zip(small, whole, strict=True):
        assert one.difference == pytest.approx(other.difference, rel=1e-3, abs=1e-9)


def test_a_word_that_no_fixture_has_is_refused() -> None:
    with drawn_tensors.completed_folder(REFERENCE / "tiny-clip") as place:
        clip = clips.load(str(place))
    with pytest.raises(FedvlmError, match="no tokens for 'zebra'"):
        clip.tokenizer.words("zebra")


@pytest.mark.long
def test_the_recipe_makes_it_again(full: Path, tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "trim_reference.py"
    subprocess.run([sys.executable, str(recipe), str(full), str(tmp_path / "out")], check=True)
    made = {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert made == {file.relative_to(REFERENCE) for file in REFERENCE.rglob("*") if file.is_file()} - {
        Path("README.md")
    }
    for file in made:
        assert (tmp_path / "out" / file).read_bytes() == (REFERENCE / file).read_bytes(), file


LAW: dict[str, Any] = {"seed": 3, "law": "normal", "scale": 0.5}


def generator(seed: int, position: int) -> torch.Generator:
    start = torch.Generator().manual_seed(seed)
    torch.rand(position, generator=start)
    return start


def test_a_draw_is_what_torch_draws_there() -> None:
    lots = [
        Draws(**LAW, mean=2.0, tensors={"late": [96, 4, 16], "early": [16, 2, 8]}),
        Draws(seed=4, law="uniform", scale=0.25, half=True, tensors={"u": [7, 16]}),
        Draws(**LAW, transposed=True, tensors={"t": [16, 8, 4]}),
    ]
    found = drawn_tensors.draw(lots)
    assert torch.equal(found["late"], 2 + 0.5 * torch.randn(4, 16, generator=generator(3, 96)))
    assert torch.equal(found["early"], 2 + 0.5 * torch.randn(2, 8, generator=generator(3, 16)))
    even: Tensor = torch.empty(16).uniform_(-0.25, 0.25, generator=generator(4, 7))
    assert torch.equal(found["u"], even.half().float())
    assert torch.equal(found["t"], 0.5 * torch.randn(4, 8, generator=generator(3, 16)).T)


def written(folder: Path) -> Path:
    file = folder / "x.safetensors"
    drawn_tensors.save(file, {"kept": torch.ones(2)}, [Draws(**LAW, tensors={"a": [32, 4, 8]})])
    return file


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    found = drawn_tensors.load(written(tmp_path))
    assert found.keys() == {"kept", "a"}
    assert torch.equal(found["a"], 0.5 * torch.randn(4, 8, generator=generator(3, 32)))
    (tmp_path / "x.drawn.json").unlink()
    assert drawn_tensors.load(tmp_path / "x.safetensors").keys() == {"kept"}


def entry(**changes: Any) -> dict[str, Any]:
    return LAW | {"tensors": {"a": [32, 4, 8]}} | changes


@pytest.mark.parametrize("group", [
    entry(seed=-1), entry(seed=1.5), entry(law="cauchy"), entry(scale=0), entry(scale=1e999), entry(mean="0"), entry(more=1),
    entry(tensors={"a": [0]}), entry(tensors={"a": [0, 4, 3]}), entry(tensors={"a": [0, 0]}), entry(tensors={"a": [-1, 16]}),
    entry(tensors={"a": [1 << 27, 16]}), entry(tensors={"a": [0, 1 << 20, 1 << 20]}), entry(tensors={"a": [0, 2, 2, 2, 2, 2]}),
    entry(transposed=True, tensors={"a": [0, 16]}), {},
])  # fmt: skip
def test_a_draw_with_a_wrong_form_is_refused(tmp_path: Path, group: dict[str, Any]) -> None:
    """Above all one that would draw for hours."""
    file = written(tmp_path)
    (tmp_path / "x.drawn.json").write_text(json.dumps({"norm": 1.0, "draws": [group]}))
    with pytest.raises(FedvlmError, match=r"x\.drawn\.json is not a readable table of draws"):
        drawn_tensors.load(file)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"norm": 1.0}', '{"norm": NaN, "draws": []}'])
def test_a_damaged_table_of_draws(tmp_path: Path, text: str) -> None:
    file = written(tmp_path)
    (tmp_path / "x.drawn.json").write_text(text)
    with pytest.raises(FedvlmError, match=r"x\.drawn\.json is not a readable table of draws"):
        drawn_tensors.load(file)


def test_another_generator_is_noticed(tmp_path: Path) -> None:
    file = written(tmp_path)
    table = json.loads((tmp_path / "x.drawn.json").read_text())
    (tmp_path / "x.drawn.json").write_text(json.dumps(table | {"norm": table["norm"] * (1 + 1e-5)}))
    with pytest.raises(FedvlmError, match=r"gives other numbers\. Use the full reference outputs"):
        drawn_tensors.load(file)


def test_what_is_both_stored_and_drawn_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    tensors.save(file, {"a": torch.ones(4, 8)})
    with pytest.raises(FedvlmError, match=r"draws what x\.safetensors holds: a"):
        drawn_tensors.load(file)


def test_a_directory_without_draws_is_itself(tmp_path: Path) -> None:
    with drawn_tensors.completed_folder(tmp_path) as place:
        assert place == tmp_path
    with drawn_tensors.completed_folder(tmp_path / "missing") as place:
        assert place == tmp_path / "missing"


def test_a_completed_directory_is_a_whole_model_and_goes_again() -> None:
    with drawn_tensors.completed_folder(REFERENCE / "tiny-clip") as place:
        assert not list(place.glob("*.drawn.json"))
        assert len(safetensors.torch.load_file(place / "model.safetensors")) == 398
    assert not place.exists()
