"""All that a method of another package needs to test."""

import pytest
from my_method.fedprox import FedProx

from fedvlm.testing import PROMISES, Case


@pytest.mark.parametrize("promise", PROMISES, ids=str)
def test_promise(promise):
    """One promise."""
    promise.check(Case(FedProx))
