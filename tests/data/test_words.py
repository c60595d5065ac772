"""Words with two meanings: the table, and how a data set names its shapes with them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from fedvlm.data.scenes import COLOURS, FILLS, SHAPES
from fedvlm.data.scenes.words import HOMONYMS, PLACES, class_words, related
from fedvlm.data.sources.scenes import ScenesData, choose_classes, scenes_source
from fedvlm.errors import FedvlmError


def test_every_shape_is_the_first_meaning_of_one_word_and_the_second_of_another() -> None:
    assert Counter(one.first for one in HOMONYMS.values()) == Counter(SHAPES)
    assert Counter(one.second for one in HOMONYMS.values()) == Counter(SHAPES)
    assert all(one.first != one.second for one in HOMONYMS.values())
    assert not set(HOMONYMS) & {*SHAPES, *FILLS, *COLOURS}


def test_every_place_decides_for_half_of_the_words() -> None:
    assert all(len(set(one.places)) == 3 for one in HOMONYMS.values())
    assert Counter(place for one in HOMONYMS.values() for place in one.places) == dict.fromkeys(PLACES, 10)
    cap = HOMONYMS["cap"]
    assert (cap.meaning("court"), cap.meaning("forest")) == ("crown", "mushroom")


def test_a_data_set_calls_its_shapes_by_distinct_words_that_mean_them() -> None:
    ambiguous = second = 0
    for seed in range(200):
        names = class_words(SHAPES[:12], 0.7, 0.35, np.random.default_rng(seed))
        assert list(names) == list(SHAPES[:12])
        assert len(set(names.values())) == 12
        for shape, word in names.items():
            if word != shape:
                assert shape in (HOMONYMS[word].first, HOMONYMS[word].second)
                ambiguous += 1
                second += HOMONYMS[word].second == shape
    assert 0.6 < ambiguous / 2400 <= 0.7  # less those whose word is taken
    assert 0.3 < second / ambiguous < 0.4


def test_the_names_do_not_depend_on_the_order_of_the_shapes() -> None:
    once, again = (class_words(shapes, 0.7, 0.35, np.random.default_rng(1)) for shapes in (SHAPES, SHAPES[::-1]))
    assert once == again


def test_all_or_none_or_only_the_rarer() -> None:
    draw = np.random.default_rng(0)
    assert class_words(SHAPES, 0.0, 0.35, draw) == {shape: shape for shape in SHAPES}
    assert all(HOMONYMS[word].first == shape for shape, word in class_words(SHAPES, 1.0, 0.0, draw).items())
    assert all(HOMONYMS[word].second == shape for shape, word in class_words(SHAPES, 1.0, 1.0, draw).items())


def test_names_change_and_images_do_not() -> None:
    settings = {"shots": 1, "val_per_class": 0, "test_per_class": 1}
    plain, ambiguous = (scenes_source(ScenesData.model_validate(settings | {"homonyms": share}), 3) for share in (0, 1))
    assert plain.classnames != ambiguous.classnames
    assert len(set(ambiguous.classnames)) == 40
    assert [record.image for record in plain.records] == [record.image for record in ambiguous.records]
    assert [record.label for record in plain.records] == [record.label for record in ambiguous.records]


@pytest.mark.parametrize(("base", "novel"), [(20, 20), (60, 60), (100, 1), (5, 0), (2, 30)])
def test_novel_classes_with_shapes_of_their_own(base: int, novel: int) -> None:
    for seed in range(5):
        classes = choose_classes(base, novel, seed, own=True)
        assert len(set(classes)) == base + novel
        assert not {shape for _, shape in classes[:base]} & {shape for _, shape in classes[base:]}
        if base >= 4:
            assert len({shape for _, shape in classes[:base]}) < base  # fills matter


def test_shapes_stand_beside_those_that_their_words_confuse_them_with() -> None:
    row = related()
    assert sorted(row) == sorted(SHAPES)
    pairs = {(one.first, one.second) for one in HOMONYMS.values()}
    assert sum(pair in pairs for pair in itertools.pairwise(row)) == 18  # one step is from row to row
    together = []
    for seed in range(10):
        classes = choose_classes(20, 20, seed, own=True)
        for part in (classes[:20], classes[20:]):
            shapes = {shape for _, shape in part}
            assert 7 <= len(shapes) <= 10
            together.append(sum({first, second} <= shapes for first, second in pairs))
    assert np.mean(together) > 6  # shapes drawn by chance: 4


def test_too_few_shapes_for_both() -> None:
    with pytest.raises(FedvlmError, match=r"61 base and 59 novel classes need 21 shapes .* data.novel_shapes to 'any'"):
        choose_classes(61, 59, 0, own=True)
