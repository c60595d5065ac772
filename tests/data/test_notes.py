"""What may leave the owner's machine names no file and no client."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from fake_data import experiment_of, photo, photos, source_of

from fedvlm.data import Federation, federate, load_source
from fedvlm.data.notes import Note, counted_note, public
from fedvlm.data.sources.folder import FolderData

SECRETS = ("ann", "bob", "cid", ".png", ".txt")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Every kind of trouble, at clients that have names."""
    names = [
        f"{client}/{label}/{client}{n}.png" for client in ("ann", "bob") for label in ("cat", "dog") for n in range(4)
    ]
    root = photos(tmp_path / "ward", *names)
    (root / "ann" / "cat" / "ann.txt").write_text("")
    (root / "ann" / "empty").mkdir()
    photo(root / "bob" / "bob.png")
    (root / "bob" / "cat" / "bob9.png").write_bytes(b"no image")
    for copy in ("ann/dog/ann9.png", "bob/dog/bob9.png"):
        (root / copy).write_bytes((root / names[4]).read_bytes())
    photo(root / "cid" / "dog" / "cid0.png", (7, 7, 7))
    source = load_source(FolderData(source="folder", path=str(root), layout="client"), 0)
    return federate(source, experiment_of({"novel": "none"}, {"kind": "natural", "clients": None}), 0)


def test_no_public_note_names_a_file_or_a_client(federation: Federation) -> None:
    saved = json.loads(json.dumps(federation.to_json()))
    assert len(saved["notes"]) >= 7
    assert not [word for note in saved["notes"] for word in SECRETS if word in note], saved["notes"]
    assert "left out: 1 image is unreadable" in saved["notes"]
    assert "1 client has no test image of its own" in saved["notes"]


def test_the_owner_is_told_names(federation: Federation) -> None:
    details = federation.to_json()["details"]
    assert details == list(federation.notes)
    assert any("bob/cat/bob9.png" in note for note in details)
    assert any(note.endswith("of its own: cid") for note in details)


def test_both_texts_are_saved_and_read(federation: Federation) -> None:
    saved = json.loads(json.dumps(federation.to_json()))
    read = Federation.from_json(federation.source, saved)
    assert read == federation
    assert [public(note) for note in read.notes] == saved["notes"]
    del saved["details"]
    assert Federation.from_json(federation.source, saved).notes == tuple(saved["notes"]), "as before there were any"


def test_classes_may_be_named() -> None:
    source = source_of({"cat": 2, "dog": 5}, {"cat": 1, "dog": 1})
    fed = federate(source, experiment_of({"novel": "none", "shots": 3}, {"clients": 1}), 0)
    assert "1 class has fewer than 3 training images: cat (2)" in fed.to_json()["notes"]


def test_a_note_survives_another_process() -> None:
    note = counted_note(["a.png"], "image is missing", "images are missing")
    again = pickle.loads(pickle.dumps(note))
    assert isinstance(again, Note)
    assert (again, public(again)) == ("1 image is missing: a.png", "1 image is missing")
