from __future__ import annotations

from pathlib import Path

import pytest

from fedvlm import methods
from fedvlm.config import Section
from fedvlm.errors import FedvlmError
from fedvlm.methods import build, check, known
from fedvlm.methods.base import Method


def test_every_class_in_a_file_of_the_folder_is_known_by_its_name() -> None:
    assert {"zero_shot", "coop", "promptfl", "pfedmma", "fedmma", "local_mma", "pfedmoap"} <= known().keys()
    assert list(known()) == sorted(known())
    assert all(kind.name == name for name, kind in known().items())


def test_every_file_holds_a_method_of_its_own_name() -> None:
    files = {file.stem for file in Path(methods.__path__[0]).glob("*.py")} - {"__init__", "base"}
    assert files <= known().keys()


def test_titles_are_told_apart_and_names_are_fit_for_folders() -> None:
    assert len({kind.title for kind in known().values()}) == len(known())
    assert all(name.replace("_", "").isalnum() and name.islower() for name in known())


def test_trade_offs_are_drawn_up_to_zero_shot() -> None:
    """Rising weights with 0 (the method) and 1 (zero-shot) among them; what is trained is not extrapolated."""
    for kind in known().values():
        weights = kind.mixing
        assert list(weights) == sorted(set(weights))
        assert 0.0 in weights
        assert weights[-1] == 1.0
        assert not kind.trains or weights == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])


def test_every_setting_is_documented() -> None:
    """house.md: a configuration class with its fields' effects documented (pydantic keeps the words only on request)."""
    for kind in known().values():
        assert issubclass(kind.Config, Section)
        assert kind.Config.__doc__


def test_settings_for_all_go_to_those_that_know_them() -> None:
    table = {"all": {"lr": 0.5, "rank": 3, "tokens": 2}, "pfedmma": {"lr": 0.25}}
    assert build("pfedmma", table).config.lr == 0.25  # type: ignore[attr-defined]
    assert build("pfedmma", table).config.rank == 3  # type: ignore[attr-defined]
    assert build("coop", table).config.lr == 0.5  # type: ignore[attr-defined]
    assert build("coop", table).config.tokens == 2  # type: ignore[attr-defined]
    assert build("zero_shot", table).config == build("zero_shot").config


def test_a_table_may_name_the_method_it_varies() -> None:
    table = {
        "all": {"lr": 0.5},
        "pfedmoap": {"experts": 4, "select": "fixed"},
        "drawn": {"method": "pfedmoap", "select": "random"},
    }
    drawn = build("drawn", table)
    assert type(drawn) is known()["pfedmoap"]
    assert (drawn.config.select, drawn.config.experts, drawn.config.lr) == ("random", 4, 0.5)  # type: ignore[attr-defined]
    assert build("pfedmoap", table).config.select == "fixed"  # type: ignore[attr-defined]
    assert table["drawn"] == {"method": "pfedmoap", "select": "random"}


def test_methods_do_not_share_their_configuration() -> None:
    first, second = build("coop", {"coop": {"lr": 0.5}}), build("coop")
    assert first.config.lr != second.config.lr  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [("pfedma", {}, r"unknown method 'pfedma' \(did you mean 'pfedmma'\?\); known: cocoop, coop"),
     ("x", {"x": {"method": "pfedmap"}}, r"unknown method 'pfedmap'.*did you mean"),
     ("coop", {"coop": {"token": 3}}, r"'method\.coop\.token' \(did you mean 'tokens'\?\)"),
     ("coop", {"coop": {"lr": -1.0}}, r"'method\.coop\.lr'"), ("coop", {"coop": {"epochs": 1.0}}, r"'method\.coop\.epochs'"),
     ("coop", {"coop": {"momentum": 1.0}}, "momentum"), ("pfedmoap", {"pfedmoap": {"select": "all"}}, "'nearest', 'random'"),
     ("zero_shot", {"zero_shot": {"lr": 0.1}}, "method.zero_shot.lr"), ("coop", {"coop": {"lr": float("nan")}}, "method.coop.lr"),
     pytest.param("coop", {"coop": {"lr": float("inf")}}, "method.coop.lr"),
     pytest.param("pfedmma", {"pfedmma": {"first_block": 3, "last_block": 2}}, "last_block"),
     pytest.param("pfedmoap", {"pfedmoap": {"heads": 3}}, "heads")],
)  # fmt: skip
def test_mistakes_are_named(name: str, table: dict[str, dict[str, object]], words: str) -> None:
    with pytest.raises(FedvlmError, match=words):
        build(name, table)


def test_a_variants_mistake_is_told_under_its_own_name() -> None:
    with pytest.raises(FedvlmError, match=r"method\.drawn\.selects"):
        build("drawn", {"drawn": {"method": "pfedmoap", "selects": "random"}})


def test_checking_all_tables() -> None:
    check({})
    check({"all": {"lr": 0.5, "rank": 3}, "drawn": {"method": "pfedmoap"}})
    with pytest.raises(FedvlmError, match=r"method\.all\.rnk' \(did you mean 'rank'\?\)"):
        check({"all": {"rnk": 3}})
    with pytest.raises(FedvlmError, match="unknown method 'pfedma'"):
        check({"pfedma": {}})
    with pytest.raises(FedvlmError, match=r"method\.coop\.lrr"):
        check({"coop": {"lrr": 1.0}})


def test_checking_the_values_for_all() -> None:
    with pytest.raises(FedvlmError, match="lr"):
        check({"all": {"lr": -1.0}})


def test_rates_cover_every_tensor() -> None:
    moap = build("pfedmoap", {"pfedmoap": {"lr": 0.25, "gate_lr": 0.5}})
    assert moap.rate("prompt") == 0.25
    assert moap.rate("gating.q.weight") == 0.5
    for name, kind in known().items():
        if kind.trains:
            assert build(name).rate("anything") > 0


def test_a_method_without_a_tuner_says_so() -> None:
    class Bare(Method):
        name = "bare"

    with pytest.raises(NotImplementedError, match="Bare"):
        Bare().tuner(None, [], "")  # type: ignore[arg-type]


def test_all_methods_are_the_controls_then_the_local_ones_then_the_others_then_variants() -> None:
    tables = {"all": {"lr": 0.1}, "pfedmma": {"lr": 0.2}, "mine": {"method": "pfedmma"}}
    names = methods.expanded(["all"], tables)
    assert set(names) == {*known(), "mine"}
    assert len(names) == len(set(names))
    assert names[-1] == "mine"
    assert names.index("majority") < names.index("coop") < names.index("promptfl")
    assert methods.expanded(["coop", "all"], {})[0] == "coop"
    assert methods.expanded(["coop", "pfedmma"], tables) == ["coop", "pfedmma"]


@pytest.mark.parametrize("name", ["../escaped", "a/b", "", ".hidden", "a b", "x\n"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(FedvlmError, match="is no name of a method"):
        build(name, {name: {"method": "coop"}})
