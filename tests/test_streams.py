from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedvlm.streams import key, stream, torch_stream


def test_a_key_is_the_hash_of_the_names_written_as_json() -> None:
    """The documented recipe, by hand: a change of it would silently change every published number."""
    expected = int.from_bytes(hashlib.sha256(b'[7,"order",3,0]').digest()[:16], "little")
    assert key(7, "order", 3, 0) == expected
    numbers = np.random.Generator(np.random.Philox(key=expected)).random(5)
    assert np.array_equal(stream(7, "order", 3, 0).random(5), numbers)


def test_the_torch_stream_is_seeded_by_the_same_key() -> None:
    words = hashlib.sha256(b'[7,"init"]').digest()[:8]
    seed = int.from_bytes(words, "little") & ~(1 << 63)
    expected = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.rand(4, generator=torch_stream(7, "init")), expected)


def test_different_names_are_different_streams() -> None:
    names = [(7, "a", 1), (7, "a", "1"), (7, "a1"), (7, "a", 1, 0), (7, 1, "a"), (8, "a", 1), (7, "a", -1), (7,),
             (7, ""), (7, "", ""), (7, "a,1"), (7, 'a",1'), (7, "ä"), (7, "a\u0308"), (71, "a"), (7, "1a")]  # fmt: skip
    assert len({key(*name) for name in names}) == len(names)


def test_the_order_in_which_streams_are_opened_does_not_matter() -> None:
    names = [("clients", 0), ("order", "site-1", 0, 0), ("view", "site-1", 0, 0, 17)]
    seen = []
    for order in itertools.permutations(names):
        opened = {name: stream(3, *name) for name in order}
        for _ in range(2):
            drawn = {name: opened[name].random(2).tolist() for name in order}
        seen.append([drawn[name] for name in names])
    assert all(draws == seen[0] for draws in seen)


def test_another_process_draws_the_same_numbers() -> None:
    code = "from fedvlm.streams import *; print(stream(5, 'x', 'é', 2).integers(1 << 60), torch_stream(5, 'x').initial_seed())"
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert words == [str(stream(5, "x", "é", 2).integers(1 << 60)), str(torch_stream(5, "x").initial_seed())]


def test_neighbouring_streams_are_uncorrelated_and_uniform() -> None:
    """200 streams that differ in one number: mean 1/2 and pairwise correlation 0, within five standard errors."""
    table = np.stack([stream(0, "view", "site", number).random(2000) for number in range(200)])
    assert abs(table.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / table.size**0.5
    correlations = np.corrcoef(table)[np.triu_indices(200, 1)]
    assert abs(correlations).max() < 6 / 2000**0.5
    first = table[:, 0]
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 5 / 199**0.5


def test_no_global_generator_is_touched() -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    stream(1, "a").random(100)
    torch.rand(100, generator=torch_stream(1, "a"))
    after = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    assert before[0] == after[0]
    assert np.array_equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63, 2**70, -1])
def test_any_integer_is_a_seed_and_zero_is_not_special(seed: int) -> None:
    assert key(seed, "a") != key(seed + 1, "a")
    stream(seed, "a").random()
    torch_stream(seed, "a")
