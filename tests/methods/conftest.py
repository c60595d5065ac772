"""The tiny CLIP and the federation of four clients that the tests of methods share."""

from __future__ import annotations

import pytest

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.testing import tiny


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture(scope="module")
def fed() -> Federation:
    return tiny.federation()
