from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from fedvlm import presets
from fedvlm.config import Section
from fedvlm.data import settings as sources
from fedvlm.errors import FedvlmError, listed, nearest
from fedvlm.experiment import Experiment, parse
from fedvlm.methods import build
from fedvlm.overrides import apply_words, read_toml


def test_every_default_survives_json() -> None:
    whole = parse({})
    assert parse(json.loads(json.dumps(whole.resolved()))) == whole
    assert parse(whole.resolved()).digest() == whole.digest()


@pytest.mark.parametrize(
    ("settings", "name", "near"),
    [({"round": 3}, "round", "rounds"), ({"partition": {"alfa": 0.3}}, "partition.alfa", "alpha"),
     ({"data": {"source": "scenes", "shot": 4}}, "data.shot", "shots"), ({"compute": {"dtyp": "x"}}, "compute.dtyp", "dtype"),
     ({"data": {"source": "manifest", "path": "p", "manifest": "m", "labels": "x"}}, "data.labels", "label")],
)  # fmt: skip
def test_an_unknown_setting_is_named_with_the_nearest_known_one(settings: dict[str, Any], name: str, near: str) -> None:
    with pytest.raises(FedvlmError, match=rf"unknown setting '{name}' \(did you mean '{near}'\?\)"):
        parse(settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rounds": 0}, "rounds"), ({"rounds": 3.0}, "rounds"), ({"rounds": "3"}, "rounds"), ({"participation": 0}, "participation"),
     ({"participation": 1.5}, "participation"), ({"seeds": []}, "seeds"), ({"seeds": [1.5]}, "seeds"), ({"methods": []}, "methods"),
     ({"views": "yes"}, "views"), ({"partition": {"kind": "iid2"}}, "partition.kind"), ({"partition": {"alpha": 0}}, "partition.alpha"),
     ({"data": {"source": "folder"}}, "data.path"), ({"data": {"source": "ftp"}}, "data.source"),
     ({"evaluation": {"split": "train"}}, "evaluation.split"), ({"compute": {"cache_gib": -1}}, "compute.cache_gib"),
     ({"model": 3}, "model"), ({"method": {"pfedmma": 3}}, "method.pfedmma")],
)  # fmt: skip
def test_a_wrong_value_is_named_and_not_converted(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FedvlmError, match=f"'{words}"):
        parse(settings)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(FedvlmError) as error:
        parse({"rounds": 0, "round": 3, "partition": {"kind": "x"}})
    assert len(str(error.value).splitlines()) == 3


def test_the_digest_changes_with_what_changes_results_and_with_nothing_else() -> None:
    base = parse({}).digest()
    same = [
        {"name": "other"},
        {"compute": {"device": "cpu"}},
        {"compute": {"threads": 3}},
        {"compute": {"cache_gib": 0.0}},
    ]
    other = [{"rounds": 11}, {"seeds": [1]}, {"views": "online"}, {"compute": {"dtype": "bfloat16"}}, {"participation": 0.5},
             {"data": {"source": "scenes", "shots": 4}}, {"partition": {"alpha": 0.3}}, {"evaluation": {"every": 2}},
             {"method": {"pfedmma": {"lr": 0.1}}}, {"model": {"name": "x"}}, {"methods": ["pfedmma"]}]  # fmt: skip
    assert {parse(settings).digest() for settings in same} == {base}
    assert len({parse(settings).digest() for settings in other} | {base}) == len(other) + 1


def test_overrides_are_laid_over_and_leave_the_original_alone() -> None:
    settings: dict[str, Any] = {"rounds": 3, "partition": {"kind": "iid"}}
    words = ["rounds=5", "partition.alpha=0.3", "methods=coop,pfedmma", "seeds=1,2", "views=4", "model.name=a/b",
             "method.pfedmma.lr=1e-3", "evaluation.template=an x of {}, y=z.", "partition.clients=none"]  # fmt: skip
    result = apply_words(settings, words)
    assert result == {
        "rounds": 5, "partition": {"kind": "iid", "alpha": 0.3, "clients": "none"}, "methods": ["coop", "pfedmma"], "seeds": [1, 2],
        "views": 4, "model": {"name": "a/b"}, "method": {"pfedmma": {"lr": 0.001}},
        "evaluation": {"template": "an x of {}, y=z."},
    }  # fmt: skip
    assert settings == {"rounds": 3, "partition": {"kind": "iid"}}
    assert parse(result).partition.clients is None


@pytest.mark.parametrize("word", ["seeds=3", "seeds=[3]", "seeds=3,"])
def test_one_item_is_a_list_too(word: str) -> None:
    assert apply_words({}, [word]) == {"seeds": [3]}


@pytest.mark.parametrize("word", ["rounds", "=3", ""])
def test_a_word_without_a_key_or_sign_is_refused(word: str) -> None:
    with pytest.raises(FedvlmError, match="key=value"):
        apply_words({}, [word])


def test_a_value_is_not_a_table() -> None:
    with pytest.raises(FedvlmError, match="'rounds' is a value"):
        apply_words({"rounds": 3}, ["rounds.x=4"])


def test_a_later_word_wins() -> None:
    assert apply_words({}, ["rounds=3", "rounds=4"]) == {"rounds": 4}


def test_no_novel_classes_from_the_command_line() -> None:
    whole = parse(apply_words({"data": {"source": "folder", "path": "x"}}, ["data.novel=none"]))
    assert whole.data.novel == "none"  # type: ignore[union-attr]


def test_no_experts_from_the_command_line() -> None:
    whole = parse(apply_words({}, ["method.pfedmoap.select=none"]))
    assert build("pfedmoap", whole.method).config.select == "none"  # type: ignore[attr-defined]


def test_none_stands_for_what_may_be_absent_and_only_there() -> None:
    """TOML has no null."""
    absent = {"partition": {"alpha": "none"}, "evaluation": {"state": "none"}, "model": {"revision": "none"}}
    assert parse(absent) == parse({})
    with pytest.raises(FedvlmError, match="'rounds'"):
        parse({"rounds": "none"})
    assert parse({"name": "none"}).name == "none"


def test_the_default_data_can_be_changed_from_the_command_line() -> None:
    assert parse(apply_words({}, ["data.shots=4"])).data.shots == 4


def test_spaces_around_a_key_do_not_matter() -> None:
    assert apply_words({}, [" seeds = 1,2"]) == {"seeds": [1, 2]}


def test_a_date_in_the_file_is_a_mistake_not_a_traceback() -> None:
    with pytest.raises(FedvlmError, match="name"):
        parse(apply_words({"name": datetime.date(2024, 1, 1)}, []))


@pytest.mark.parametrize("word", ["name=7", "model.revision=12345", "data.path=2024"])
def test_a_number_can_be_a_name(word: str) -> None:
    parse(apply_words({"data": {"source": "folder", "path": "x"}}, [word]))


def test_a_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('rounds = 3\n[method.pfedmma]\nlr = 0.1\n[data]\nsource = "scenes"\n')
    assert parse(read_toml(file)).method == {"pfedmma": {"lr": 0.1}}
    file.write_text("rounds = = 3")
    with pytest.raises(FedvlmError, match=f"{file}.*TOML"):
        read_toml(file)
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(FedvlmError, match=f"{file}.*TOML"):
        read_toml(file)
    with pytest.raises(FedvlmError, match="no such experiment file"):
        read_toml(tmp_path / "y.toml")
    with pytest.raises(FedvlmError, match=str(tmp_path)):
        read_toml(tmp_path)


def test_every_setting_says_what_it_is() -> None:
    """Each section has a docstring, and no two sections share a key path."""
    sections = [Experiment, *sources.builtin_sources().values()]
    sections += [field.annotation for field in Experiment.model_fields.values()
                 if isinstance(field.annotation, type) and issubclass(field.annotation, Section)]  # fmt: skip
    assert len(sections) == 1 + 7 + 5
    assert all(section.__doc__ for section in sections)
    assert not set(Experiment.model_fields) & {"lr", "epochs", "batch"}


def test_words_for_messages() -> None:
    assert nearest("pfedma", ["pfedmma", "coop"]) == " (did you mean 'pfedmma'?)"
    assert nearest("zzz", ["pfedmma"]) == ""
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(10), 2) == "0, 1 and 8 more"
    assert listed(name for name in "ab") == "a, b"


BEFORE = {
    "": "8e59d9f78aa7c9d2b9a6d1e69c66ebacceca74a1f2b9b8ca9d19b2452b066d63",
    "office_caltech": "c16e9a02808a44d239297330bcf792c96bfb479d9bacfc9e41060b67652a9e66",
    "pacs": "067a48f873348ddcd8176db726961a55151b96cd3cfa7982f8057c84f3c507af",
    "few_shot": "2ee178fe9352d174a0dacb49fbca5f30fb3e4dfe4e78fafa02718c5080984293",
    "cifar10": "4a1b553039d0131acab7554fc3da7f80b02e79fc7d22c80ba21817a601ede406",
}
"""Digests of presets in version 0.1, and of the defaults (drawn scenes): before there were `data.on_duplicate`,
`data.grey_bits`, `data.homonyms` and others."""


@pytest.mark.parametrize("name", BEFORE)
def test_settings_that_came_later_change_no_digest_until_they_are_used(name: str) -> None:
    """Otherwise a run that was begun before there were any could not be resumed."""
    settings = presets.settings(name) if name else {}
    if name == "office_caltech":  # which uses one of them
        assert settings["data"].pop("on_duplicate") == "keep"
    base = parse(settings)
    assert base.digest() == BEFORE[name]
    if name:
        other = {"keep": "once", "once": "keep"}[parse(settings).data.on_duplicate]  # type: ignore[union-attr]
        digests = {
            parse(apply_words(settings, [word])).digest()
            for word in (f"data.on_duplicate={other}", "data.grey_bits=12")
        }
        assert len(digests | {base.digest()}) == 3
        assert parse(apply_words(settings, ["data.grey_bits=none"])).digest() == base.digest()
