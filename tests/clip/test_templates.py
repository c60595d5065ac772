"""Every setting that takes a template takes the same ones, and a mistake in it is told before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from called import call

from fedvlm import experiment, methods, overrides, presets
from fedvlm.clip.templates import TEMPLATES, template
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny

BAD = ["a photo", "Food", "{} and {}", "", "a {x}", "a { }", "a {0}", "a {}{", "a }{}", "{{}}", "a {!r}", "a {:>9}"]
SETTINGS = [
    "evaluation.template", "method.zero_shot.templates", "method.tip_adapter.templates", "method.kgcoop.anchor",
    "method.fedclip.template", "method.fedmgp.suffix", "method.maple.suffix",
]  # fmt: skip


def parsed(key: str, words: str) -> experiment.Experiment:
    settings = presets.settings("quickstart")
    overrides.set_value(settings, key, [words] if key.endswith("templates") else words)
    found = experiment.parse(settings)
    methods.check(found.method)
    return found


@pytest.mark.parametrize("words", BAD)
def test_what_is_no_template(words: str) -> None:
    with pytest.raises(FedvlmError, match="is no template"):
        template(words)


@pytest.mark.parametrize("words", BAD)
@pytest.mark.parametrize("key", SETTINGS)
def test_no_setting_takes_what_is_no_template(key: str, words: str) -> None:
    """One sentence, which names the setting."""
    with pytest.raises(FedvlmError) as error:
        parsed(key, words)
    assert str(error.value).startswith(f"setting '{key}")
    assert f"'{words}' is no template" in str(error.value)
    assert "Value error" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", ["a sketch of a {}", "Food101"])
@pytest.mark.parametrize("key", SETTINGS)
def test_a_template_is_kept_as_it_was_given(key: str, words: str) -> None:
    """So that experiments of before have the digests they had."""
    found = parsed(key, words)
    assert words in str(found.resolved())


def test_the_digest_of_an_experiment_is_what_it_was() -> None:
    table = parsed("evaluation.template", "a photo of a {}.").resolved()
    assert table["evaluation"]["template"] == "a photo of a {}."
    assert (
        parsed("evaluation.template", "OxfordPets").digest()
        != experiment.parse(presets.settings("quickstart")).digest()
    )


def test_a_data_sets_name_stands_for_its_template() -> None:
    assert template("Food101") == "a photo of {}, a type of food."
    assert template("a sketch of a {}") == "a sketch of a {}"


@pytest.mark.parametrize("name", ["zero_shot", "pfedmma", "kgcoop", "fedpgp", "local_lora", "zero_shot_prior"])
def test_a_data_sets_name_is_its_template_for_every_method(name: str) -> None:
    """It was the word itself, the same for all classes: every prediction a guess."""
    frozen, method = tiny.clip(tiny.vit_config(context=60)), tiny.method(name)
    start = None
    for words in ("OxfordPets", TEMPLATES["OxfordPets"], "a photo of a {}."):
        tuner = method.tuner(frozen, tiny.BASE, words)
        start = start or tuner.init(torch.Generator().manual_seed(0))
        made = tuner.classifier(start, {})["text"], getattr(tuner, "anchor", torch.zeros(1))
        if words == "OxfordPets":
            first = made
        same = all(torch.equal(a, b) for a, b in zip(made, first, strict=True))
        assert same == (words != "a photo of a {}.")


def test_a_bad_template_ends_the_command_with_one_sentence(tmp_path: Path) -> None:
    words = ["run", "quickstart", "evaluation.template=a {x}", "--out", str(tmp_path / "out")]
    done = call(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("fedvlm: setting 'evaluation.template': 'a {x}' is no template")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pair", [("Cat", "cat"), ("red_car", "red car"), ("a  dog", "a dog"), ("cat", "cat ")])
@pytest.mark.parametrize("name", ["zero_shot", "coop", "pfedmma", "maple", "pfedmoap", "fedtpg"])
def test_two_classes_of_the_same_tokens_are_refused(pair: tuple[str, str], name: str) -> None:
    """No text tells them apart: the first one would get every image of both."""
    with pytest.raises(FedvlmError) as error:
        tiny.method(name).tuner(tiny.clip(), ["pig", pair[0], "fox", pair[1]], "a {}.")
    assert f"classes '{pair[0]}' and '{pair[1]}' have the same tokens in the template" in str(error.value)


def test_texts_of_unequal_lengths_are_not_the_same() -> None:
    """None is taken for another, though one begins as another does."""
    texts = tiny.clip().texts(["cat", "cat cat", "cat."], "{}")
    assert texts.position[texts.end].tolist() == [2, 3, 3]


def test_learned_tokens_stand_behind_a_name_only_where_the_name_comes_first() -> None:
    clip = tiny.clip()
    assert clip.texts(["dog"], "{}.", 1, 2).ids.tolist()[1:5] == [-1, *clip.tokenizer.words("dog"), -2, -3]
    with pytest.raises(FedvlmError, match=r"begins with it, not 'of a \{\}\.'"):
        clip.texts(["dog"], "of a {}.", 1, 2)
