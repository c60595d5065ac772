"""The two-level partition: complete, without repetition, of equal sizes, as uneven as asked, and as published."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from fake_data import classes, experiment_of, source_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.data import Federation, Source, federate
from fedvlm.data.pachinko import capped_multinomial, pachinko_owners
from fedvlm.errors import FedvlmError
from fedvlm.streams import stream

GROUPS = np.arange(100) // 5
"""Twenty super-classes of five classes."""


def deal(alpha: float, clients: int = 100, each: int = 600, seed: int = 0, inner: float = 10.0) -> np.ndarray:
    """Images by client and class `[N, 100]`."""
    labels = np.repeat(np.arange(100), each)
    owner, _ = pachinko_owners(labels, GROUPS, clients, (alpha, inner), stream(seed, "test"))
    table = np.zeros((clients, 100), np.int64)
    np.add.at(table, (owner, labels), 1)
    return table


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=0, max_size=80), st.lists(st.integers(0, 2), min_size=7, max_size=7),
    st.integers(1, 12), st.sampled_from([1e-300, 1e-3, 0.5, 100.0, 1e308]), st.sampled_from([1e-300, 0.1, 10.0, 1e308]),
)  # fmt: skip
def test_every_image_goes_to_one_client_in_equal_numbers(
    labels: list[int], groups: list[int], clients: int, alpha: float, inner: float
) -> None:
    images = np.array(labels, dtype=np.int64)
    owner, again = pachinko_owners(images, np.array(groups), clients, (alpha, inner), stream(1, "test"))
    assert owner.shape == images.shape
    assert again >= 0
    sizes = np.bincount(owner, minlength=clients)
    assert len(sizes) == clients
    assert sizes.max() - sizes.min() <= 1


def test_as_published_600_images_for_each_of_100_clients() -> None:
    table = deal(0.5)
    assert (table.sum(axis=1) == 600).all()
    assert (table.sum(axis=0) == 600).all()


def test_smaller_alpha_concentrates_more() -> None:
    """The share of a client's largest super-class, for the first half of the clients: the last take what is left."""
    shares = []
    for alpha in (0.05, 0.5, 5.0, 500.0):
        coarse = deal(alpha)[:50].reshape(50, 20, 5).sum(axis=2)
        shares.append((coarse.max(axis=1) / 600).mean())
    assert shares[0] > 0.6
    assert all(one > 1.3 * two for one, two in itertools.pairwise(shares))
    assert shares[-1] < 0.08, "1/20 and what chance adds"


def test_smaller_inner_alpha_concentrates_inside_a_super_class() -> None:
    inside = [deal(0.5, inner=inner)[:30].reshape(30, 20, 5) for inner in (0.1, 10.0)]
    tops = [(part.max(axis=2).sum() / part.sum()) for part in inside]
    assert tops[0] > tops[1] + 0.2


def test_mixtures_are_dirichlet() -> None:
    """The first client of many draws: mean 1/20 and variance (1/20)(19/20)/(20 alpha + 1) of a super-class's share,
    plus the multinomial's (1/20 - E[p^2]) / n."""
    alpha, size = 0.5, 2000
    first = np.array([deal(alpha, clients=30, seed=seed)[0].reshape(20, 5).sum(axis=1) / size for seed in range(100)])
    variance = (1 / 20) * (19 / 20) / (20 * alpha + 1)
    expected = variance + (1 / 20 - variance - 1 / 400) / size
    assert first.mean() == pytest.approx(1 / 20)
    assert first.var() == pytest.approx(expected, rel=0.15)


def test_capped_draws_are_those_of_renormalising_at_once() -> None:
    """Against draws one by one, weights renormalised the moment something is used up: the same distribution."""
    weights, room, size = np.array([0.6, 0.3, 0.1]), np.array([2, 3, 4]), 6
    ours: Counter[tuple[int, ...]] = Counter()
    naive: Counter[tuple[int, ...]] = Counter()
    for seed in range(4000):
        draws = stream(seed, "ours")
        drawn, again = capped_multinomial(size, weights, room, draws)
        assert drawn.sum() == size
        assert (drawn <= room).all()
        assert again >= 0
        ours[tuple(drawn.tolist())] += 1
        draws, left = stream(seed, "naive"), room.copy()
        for _ in range(size):
            open_ = weights * (left > 0)
            left[draws.choice(3, p=open_ / open_.sum())] -= 1
        naive[tuple((room - left).tolist())] += 1
    for counts in ours.keys() | naive.keys():
        spread = np.sqrt(max(naive[counts], 20))
        assert abs(ours[counts] - naive[counts]) < 5 * spread, counts


def test_weights_of_zero_take_what_has_room() -> None:
    drawn, again = capped_multinomial(5, np.zeros(3), np.array([0, 4, 3]), stream(0, "t"))
    assert drawn.sum() == 5
    assert drawn[0] == 0
    assert again >= 0
    assert capped_multinomial(9, np.ones(2), np.array([1, 2]), stream(0, "t"))[0].tolist() == [1, 2], (
        "no more than there is"
    )


def small() -> Source:
    names = classes(10, 30)
    return source_of(names, classes(10, 6), superclasses=tuple(f"above {k // 2}" for k in range(10)))


def dealt(seed: int, **partition: object) -> Federation:
    settings = {"kind": "pachinko", "clients": 12, "alpha": 0.3} | partition
    return federate(small(), experiment_of({"novel": "none"}, settings), seed)


def test_images_stay_training_or_test_images() -> None:
    federation = dealt(0)
    records = federation.source.records
    assert all(len(client.train) + len(client.local) == 30 for client in federation.clients)
    assert all(records[i].split == "train" for client in federation.clients for i in client.train)
    assert all(records[i].split == "test" for client in federation.clients for i in client.local)
    assert sorted(i for client in federation.clients for i in client.train + client.local) == list(range(360))
    assert any("were used up and were repeated among the rest" in note for note in federation.notes)


def test_super_classes_are_those_of_the_source() -> None:
    """A client of one super-class has both of its classes, 2 k and 2 k + 1, and no other; the first client is one."""
    for seed in range(5):
        federation = dealt(seed, alpha=1e-3, inner_alpha=100.0)
        held = {federation.source.records[i].label for i in federation.clients[0].train}
        assert len(held) == 2
        assert max(held) == min(held) + 1
        assert min(held) % 2 == 0


def test_a_seed_changes_the_partition_unless_it_is_fixed() -> None:
    assert dealt(0).digest() != dealt(1).digest()
    assert dealt(0).digest() == dealt(0).digest()
    one, two = (dealt(seed, order="paper") for seed in (0, 1))
    shares = [sorted(client.train + client.local for client in federation.clients) for federation in (one, two)]
    assert shares[0] == shares[1], "the same shares"
    assert [client.train for client in one.clients] != [client.train for client in two.clients], "to other clients"


def test_super_classes_are_needed() -> None:
    source = source_of(classes(4, 5), classes(4, 5))
    with pytest.raises(FedvlmError, match=r"needs super-classes.*CIFAR-100.*coarse_label"):
        federate(source, experiment_of({}, {"kind": "pachinko", "alpha": 0.5}), 0)
    with pytest.raises(FedvlmError, match=r"needs partition\.alpha"):
        federate(small(), experiment_of({}, {"kind": "pachinko"}), 0)


def test_base_classes_only() -> None:
    federation = federate(
        small(), experiment_of({"novel": "half"}, {"kind": "pachinko", "clients": 3, "alpha": 1.0}), 0
    )
    assert sum(len(client.train) + len(client.local) for client in federation.clients) == 5 * 36


def test_dirichlet_reaches_the_minimum_of_test_images_too() -> None:
    """The papers' `noniid-labeldir`: drawn again until everyone has enough of both, here after 100 draws moved."""
    source = source_of(classes(5, 40), classes(5, 12))
    wanted = {"kind": "dirichlet", "alpha": 0.5, "clients": 4, "cap": True, "min_images": 10, "min_test": 5}
    for seed in range(5):
        federation = federate(source, experiment_of({"novel": "none"}, wanted), seed)
        assert min(len(client.train) for client in federation.clients) >= 10
        assert min(len(client.local) for client in federation.clients) >= 5
        assert not federation.notes
        for client in federation.clients:
            held = [Counter(federation.labels(images)) for images in (client.train, client.local)]
            for label in range(5):
                assert abs(held[0][label] / 40 - held[1][label] / 12) < 1 / 12 + 1 / 40, "the same shares"
    hard = wanted | {"alpha": 0.01, "cap": False, "clients": 10, "min_test": 6}
    federation = federate(source, experiment_of({"novel": "none"}, hard), 0)
    assert [len(client.local) for client in federation.clients] == [6] * 10
    assert any("partition.min_test = 6 own test images" in note for note in federation.notes)
    short = federate(source, experiment_of({"novel": "none"}, hard | {"min_test": 9}), 0)
    assert any("fewer than partition.min_test = 9 test images of their own" in note for note in short.notes)
