"""Partitions: the papers' lists, and what must hold whatever the data and the settings are."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from fake_data import PAPER, classes, experiment_of, source_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.data import Federation, Source, federate
from fedvlm.data.dirichlet import dirichlet_shares, draw_shares, round_shares, top_up
from fedvlm.data.partitions import class_chunks, class_order
from fedvlm.errors import FedvlmError
from fedvlm.streams import stream


@pytest.mark.parametrize("base", PAPER)
@pytest.mark.parametrize("seed", [0, 5])
def test_the_papers_partition_for_every_seed(base: int, seed: int) -> None:
    assert class_chunks(class_order(base, "paper", seed), 10) == PAPER[base]
    source = source_of(classes(2 * base, 3), classes(2 * base, 1))
    federation = federate(source, experiment_of({"shots": 2}, {"order": "paper"}), seed)
    assert [sorted(chunk) for chunk in PAPER[base]] == [list(client.classes) for client in federation.clients]
    names = {federation.source.records[i].name for i in federation.clients[3].local}
    assert names == {f"class {label:03d}" for label in PAPER[base][3]}


@pytest.mark.parametrize(("base", "last"), [(199, 19), (51, 6), (24, 6), (102, 12), (37, 1), (101, 11), (47, 2)])
def test_the_last_client_takes_the_remainder(base: int, last: int) -> None:
    assert len(class_chunks(list(range(base)), 10)[-1]) == last


def test_a_seeded_order_differs_from_seed_to_seed() -> None:
    assert class_order(50, "seeded", 0) != class_order(50, "seeded", 1)
    assert sorted(class_order(50, "seeded", 0)) == list(range(50))


@pytest.mark.parametrize(("base", "clients", "fit"), [(5, 10, "at most 5"), (16, 10, "8"), (3, 4, "3"), (1, 2, "1")])
def test_too_many_clients_are_told_what_would_do(base: int, clients: int, fit: str) -> None:
    with pytest.raises(FedvlmError, match=rf"{base} base class(es)? cannot be dealt to {clients} clients") as error:
        class_chunks(list(range(base)), clients)
    assert fit in str(error.value)


@given(st.integers(1, 60), st.integers(1, 60))
def test_class_chunks_are_a_partition_or_an_error(base: int, clients: int) -> None:
    try:
        chunks = class_chunks(list(range(base)), clients)
    except FedvlmError as error:
        fit = str(error).split("for example, ")[1].split(" (at most")[0]
        assert all(class_chunks(list(range(base)), int(word)) for word in fit.split(", "))
        return
    assert len(chunks) == clients
    assert all(chunks)
    assert [label for chunk in chunks for label in chunk] == list(range(base))


@st.composite
def settings_and_sources(draw: st.DrawFn) -> tuple[Source, dict[str, Any], dict[str, Any]]:
    """Small sources of every shape, with a partition of any kind."""
    count = draw(st.integers(1, 7))
    train = {f"c{k}": draw(st.integers(0, 6)) for k in range(count)}
    test = {f"c{k}": draw(st.integers(0, 4)) for k in range(count)} if draw(st.booleans()) else None
    domains = draw(st.sampled_from([(None,), ("x",), ("x", "y"), ("x", None, "z")]))
    clients = draw(st.sampled_from([(None,), ("p",), ("p", "Q", "q"), ("a/b", None)]))
    partition = {
        "kind": draw(
            st.sampled_from(["pathological", "dirichlet", "pachinko", "domain", "natural", "iid", "quantity"])
        ),
        "order": draw(st.sampled_from(["seeded", "paper"])),
        "inner_alpha": draw(st.sampled_from([1e-3, 10.0])),
        "min_test": draw(st.integers(0, 3)),
        "clients": draw(st.integers(1, 9)),
        "alpha": draw(st.sampled_from([None, 1e-3, 0.3, 5.0])),
        "cap": draw(st.booleans()),
        "clients_per_domain": draw(st.integers(1, 4)),
        "one_domain_each": draw(st.booleans()),
        "min_images": draw(st.integers(1, 5)),
    }
    data = {
        "shots": draw(st.sampled_from([None, 1, 3])),
        "novel": draw(st.sampled_from(["half", "none"])),
        "val_fraction": draw(st.sampled_from([0.0, 0.4])),
        "test_per_class": draw(st.sampled_from([None, 2])),
    }
    above = tuple(f"s{k % 3}" for k in range(count)) if draw(st.booleans()) else ()
    return source_of(train, test, domains=domains, clients=clients, superclasses=above), data, partition


def dealt(source: Source, data: dict[str, Any], partition: dict[str, Any], seed: int = 3) -> Federation | None:
    """The federation, or None if the settings cannot be met (nothing but a FedvlmError may say so)."""
    try:
        return federate(source, experiment_of(data, partition), seed)
    except FedvlmError:
        return None


@settings(max_examples=200, deadline=None)
@given(settings_and_sources())
def test_whatever_the_settings(case: tuple[Source, dict[str, Any], dict[str, Any]]) -> None:
    source, data, partition = case
    federation = dealt(source, data, partition)
    if federation is None:
        return
    base = set(federation.base)
    assert federation.base + federation.novel == tuple(range(len(source.classnames)))
    trained = [i for client in federation.clients for i in client.train]
    local = [i for client in federation.clients for i in client.local]
    shared = {i for images in federation.tests.values() for i in images}
    assert len(set(trained)) == len(trained), "an image is dealt at most once"
    assert len(set(local)) == len(local)
    assert not set(trained) & shared, "no test image is trained on"
    assert set(local) <= shared, "own test images are among the test images"
    assert all(source.records[i].split != "test" for i in trained)
    assert all(source.records[i].label in base for i in trained + local)
    assert len({client.name.casefold() for client in federation.clients}) == len(federation.clients)
    for client in federation.clients:
        check_client(federation, client.train, client.local, client.classes, client.domain)
        assert client.train
        assert client.base in federation.tests
        assert client.novel is None or client.novel in federation.tests
    assert federation == dealt(source, data, partition)
    assert Federation.from_json(source, federation.to_json()) == federation
    other = dealt(source, data, partition | {"min_images": 1}, seed=4)
    assert other is not None


def check_client(
    federation: Federation, train: tuple[int, ...], local: tuple[int, ...], places: tuple[int, ...], domain: str | None
) -> None:
    """Index lists rise; the classes are those of the images; a bound client sees its domain only."""
    records = federation.source.records
    assert list(train) == sorted(train)
    assert list(local) == sorted(local)
    assert {federation.base_names[place] for place in places} == {records[i].name for i in train}
    assert federation.labels(train) == [federation.base_names.index(records[i].name) for i in train]
    if domain is not None:
        assert {records[i].domain for i in train + local} == {domain}


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 8), st.integers(0, 99), st.booleans())
def test_shares_cut_to_whole_images(totals: list[int], clients: int, seed: int, cap: bool) -> None:
    counts = np.array(totals)
    shares = dirichlet_shares(counts, clients, 0.5, stream(seed, "test"), cap=cap)
    sizes = round_shares(counts, shares)
    assert np.allclose(shares.sum(axis=1), 1)
    assert (sizes >= 0).all()
    assert sizes.sum(axis=1).tolist() == totals
    assert np.abs(sizes - shares * counts[:, None]).max() <= 1.0 + 1e-9, "within one image of the exact share"


def test_cap_stops_a_client_that_has_its_fair_share() -> None:
    totals = np.full(20, 100)
    for seed in range(5):
        sizes = round_shares(totals, dirichlet_shares(totals, 10, 0.1, stream(seed, "test"), cap=True))
        before = np.cumsum(sizes, axis=0) - sizes
        assert not sizes[before >= totals.sum() / 10].any()


def test_small_alpha_is_more_uneven() -> None:
    totals = np.full(10, 1000)
    spread = [
        round_shares(totals, dirichlet_shares(totals, 10, a, stream(0, "t"), cap=False)).std() for a in (0.1, 1, 100)
    ]
    assert spread[0] > 2 * spread[1] > 4 * spread[2]


def test_extreme_alphas_end() -> None:
    totals = np.full(3, 10)
    for alpha in (1e-300, 1e-9, 1e300):
        assert round_shares(totals, dirichlet_shares(totals, 4, alpha, stream(0, "t"), cap=True)).sum() == 30


def test_draws_are_bounded() -> None:
    seen: list[int] = []

    def draw(attempt: int) -> np.random.Generator:
        seen.append(attempt)
        return stream(0, "t", attempt)

    totals = np.array([40])
    _, short = draw_shares(totals, 10, 1e-3, 4, draw, cap=False)
    assert short > 0
    assert seen == list(range(100))
    seen.clear()
    draw_shares(totals, 10, 1e-3, 5, draw, cap=False)
    assert seen == [0], "five for each of ten clients is more than there is: no need to try again"


@given(st.lists(st.integers(0, 5), min_size=0, max_size=40), st.integers(1, 9))
def test_top_up_takes_from_the_rich(owners: list[int], least: int) -> None:
    owner = np.array(owners, dtype=np.int64)
    before = np.bincount(owner, minlength=6)
    moved = top_up(owner, 6, least, stream(0, "t"))
    after = np.bincount(owner, minlength=6)
    assert after.sum() == before.sum()
    assert moved == np.maximum(after - before, 0).sum()
    assert ((after >= least) | (after >= before)).all(), "nobody falls below the minimum by giving"
    if before.sum() >= 6 * least:
        assert (after >= least).all()


def test_dirichlet_reaches_the_minimum_and_says_so() -> None:
    source = source_of(classes(4, 20), classes(4, 10))
    partition = {"kind": "dirichlet", "alpha": 0.01, "clients": 10, "min_images": 6}
    federation = federate(source, experiment_of({"novel": "none"}, partition), 0)
    assert min(len(client.train) for client in federation.clients) == 6
    assert sum(len(client.train) for client in federation.clients) == 80
    assert "moved from the largest clients" in federation.notes[0]


def test_dirichlet_with_fewer_images_than_clients() -> None:
    source = source_of(classes(2, 2), classes(2, 1))
    partition = {"kind": "dirichlet", "alpha": 0.5, "clients": 9}
    federation = federate(source, experiment_of({"novel": "none"}, partition), 0)
    assert len(federation.clients) == 4
    assert any("5 of 9 clients have no training image and are left out" in note for note in federation.notes)


def test_dirichlet_deals_test_images_in_the_training_shares() -> None:
    source = source_of(classes(3, 1000), classes(3, 1000))
    partition = {"kind": "dirichlet", "alpha": 0.5, "clients": 5}
    federation = federate(source, experiment_of({"novel": "none"}, partition), 0)
    for client in federation.clients:
        train, local = (Counter(federation.labels(images)) for images in (client.train, client.local))
        assert train == local


def test_the_test_images_do_not_change_who_trains_on_what() -> None:
    partition = {"kind": "dirichlet", "alpha": 0.3, "clients": 4, "min_images": 3}
    few, many = (
        federate(source_of(classes(4, 20), classes(4, n)), experiment_of({"novel": "none"}, partition), 0)
        for n in (1, 30)
    )
    assert [client.train for client in few.clients] == [client.train for client in many.clients]


def test_domain_clients_see_their_domain() -> None:
    source = source_of(classes(3, 10), classes(3, 5), domains=("day", "night"))
    for alpha in (None, 0.5):
        partition = {"kind": "domain", "clients_per_domain": 3, "alpha": alpha}
        federation = federate(source, experiment_of({"novel": "none"}, partition), 0)
        assert [client.domain for client in federation.clients] == ["day"] * 3 + ["night"] * 3
        assert sum(len(client.train) for client in federation.clients) == 60
        assert sum(len(client.local) for client in federation.clients) == 30


@pytest.mark.parametrize("kind", ["pathological", "iid", "dirichlet"])
def test_one_domain_each(kind: str) -> None:
    source = source_of(classes(8, 6), classes(8, 4), domains=("day", "night", "fog"))
    partition = {"kind": kind, "clients": 4, "one_domain_each": True, "alpha": 0.5}
    federation = federate(source, experiment_of({"shots": 4}, partition), 0)
    assert [client.domain for client in federation.clients] == ["day", "night", "fog", "day"]
    for client in federation.clients:
        check_client(federation, client.train, client.local, client.classes, client.domain)
    if kind == "pathological":
        assert [len(client.train) for client in federation.clients] == [4] * 4
        assert [len(client.local) for client in federation.clients] == [4] * 4


def test_iid_is_even() -> None:
    federation = federate(
        source_of(classes(4, 25), classes(4, 7)),
        experiment_of({"novel": "none"}, {"kind": "iid", "clients": 7}),
        0,
    )
    assert sorted(len(client.train) for client in federation.clients) == [14] * 5 + [15] * 2
    assert {len(client.local) for client in federation.clients} == {4}


def test_quantity_is_uneven_in_size_alone() -> None:
    source = source_of(classes(4, 500), classes(4, 250))
    sizes = {}
    for alpha in (0.5, 100.0):
        partition = {"kind": "quantity", "clients": 5, "alpha": alpha, "min_images": 40}
        federation = federate(source, experiment_of({"novel": "none"}, partition), 0)
        sizes[alpha] = [len(client.train) for client in federation.clients]
        assert sum(sizes[alpha]) == 2000
        for client in federation.clients:
            assert abs(len(client.local) - len(client.train) / 2) <= 1, "the same shares of the test images"
            labels = Counter(federation.labels(client.train))
            # Drawn without regard to labels: a quarter each, within four standard deviations.
            spread = 4 * (len(client.train) * 3 / 16) ** 0.5
            assert all(abs(labels[k] - len(client.train) / 4) <= spread for k in range(4))
    assert min(sizes[0.5]) >= 40
    assert max(sizes[0.5]) > 3 * min(sizes[0.5])
    assert max(sizes[100.0]) < 1.5 * min(sizes[100.0])


def test_natural_clients_keep_their_images() -> None:
    source = source_of(classes(2, 4), None, clients=("ann", "bob/../x", None))
    federation = federate(source, experiment_of({"novel": "none"}, {"kind": "natural"}), 0)
    assert [client.name.split("-")[0] for client in federation.clients] == ["ann", "bob_.._x"]
    for client, name in zip(federation.clients, ("ann", "bob/../x"), strict=True):
        assert {source.records[i].client for i in client.train + client.local} == {name}
        assert len(client.train + client.local) == 8
    assert any("6 of 18 training images name no client" in note for note in federation.notes)


def test_natural_clients_the_largest_first() -> None:
    parts = [source_of({"a": n, "b": n}, None, clients=(name,)) for name, n in (("s", 1), ("m", 3), ("l", 9), ("t", 2))]
    records = tuple(record for part in parts for record in part.records)
    source = Source("sample", ("a", "b"), records)
    partition = {"kind": "natural", "clients": 2, "min_images": 3}
    federation = federate(source, experiment_of({"novel": "none"}, partition), 0)
    assert [client.name for client in federation.clients] == ["l", "m"]
    assert "1 of 4 clients have fewer than 3 usable images and are left out" in federation.notes
    assert "the 2 largest of 3 clients take part (partition.clients)" in federation.notes


def test_a_client_without_test_images_is_told() -> None:
    source = source_of({"a": 1}, None, clients=("one", "two"))
    more = source_of({"a": 4}, None, clients=("three",))
    records = source.records + more.records
    federation = federate(Source("sample", ("a",), records), experiment_of({"novel": "none"}, {"kind": "natural"}), 0)
    assert any("2 clients have no test image of their own: one, two" in note for note in federation.notes)


NEEDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "domain": ({"kind": "domain"}, {}, "needs domains.*data.layout"),
    "one domain each": ({"one_domain_each": True}, {}, "one_domain_each needs domains"),
    "natural": ({"kind": "natural"}, {}, "needs clients.*data.client"),
    "dirichlet": ({"kind": "dirichlet"}, {}, "needs partition.alpha"),
    "number": ({"kind": "iid", "clients": None}, {}, "needs partition.clients"),
    "own domain": ({"kind": "iid"}, {"general": "own_domain"}, "one domain each"),
    "validation": ({"kind": "iid"}, {"split": "val"}, "data.val_fraction"),
}


@pytest.mark.parametrize("case", NEEDS)
def test_what_a_partition_needs_is_told(case: str) -> None:
    partition, evaluation, said = NEEDS[case]
    source = source_of(classes(20, 2), classes(20, 1))
    with pytest.raises(FedvlmError, match=said):
        federate(source, experiment_of({}, partition, evaluation), 0)


def test_a_thousand_clients_of_sixty_thousand_images_in_seconds() -> None:
    source = source_of(classes(100, 500), classes(100, 100))
    start = time.perf_counter()
    for kind in ("dirichlet", "iid"):
        partition = {"kind": kind, "alpha": 0.1, "clients": 1000, "min_images": 10}
        federation = federate(source, experiment_of({"novel": "none"}, partition), 0)
        assert len(federation.clients) == 1000
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("domains", "each", "names"),
    [
        (("art_painting", "photo"), 1, ["art_painting", "photo"]),
        (("art_painting", "photo"), 2, ["art_painting-0", "art_painting-1", "photo-0", "photo-1"]),
        (("a", "a-0"), 2, ["a-0", "a-1", "a-0-0", "a-0-1"]),
    ],
)
def test_clients_of_domains_have_their_names(domains: tuple[str, ...], each: int, names: list[str]) -> None:
    source = source_of(classes(2, 12), classes(2, 4), domains=domains)
    fed = federate(source, experiment_of({"novel": "none"}, {"kind": "domain", "clients_per_domain": each}), 0)
    assert [client.name for client in fed.clients] == names
    assert [client.domain for client in fed.clients] == [domain for domain in domains for _ in range(each)]


def test_names_of_domains_are_safe_as_files_and_numbers_sort() -> None:
    source = source_of(classes(2, 60), classes(2, 4), domains=("Ward/1", "ward_1"))
    partition = {"kind": "domain", "clients_per_domain": 11}
    fed = federate(source, experiment_of({"novel": "none"}, partition), 0)
    names = [client.name for client in fed.clients]
    assert len({name.casefold() for name in names}) == 22
    assert all("/" not in name for name in names)
    assert [name[-3:] for name in names] == [f"-{n:02d}" for n in range(11)] * 2


def test_other_partitions_number_their_clients() -> None:
    source = source_of(classes(4, 6), classes(4, 2), domains=("x", "y"))
    fed = federate(source, experiment_of({"novel": "none"}, {"clients": 2, "one_domain_each": True}), 0)
    assert [client.name for client in fed.clients] == ["0", "1"]


def test_all_clients_of_a_domain_are_late_by_its_name() -> None:
    source = source_of(classes(2, 12), classes(2, 4), domains=("amazon", "webcam"))
    for each, late in ((1, ["webcam"]), (2, ["webcam-0", "webcam-1"])):
        partition = {"kind": "domain", "clients_per_domain": each, "late": ["webcam"]}
        fed = federate(source, experiment_of({"novel": "none"}, partition), 0)
        assert [client.name for client in fed.newcomers] == late
    one = federate(source, experiment_of({"novel": "none"}, partition | {"late": ["webcam-1"]}), 0)
    assert [client.name for client in one.newcomers] == ["webcam-1"]
