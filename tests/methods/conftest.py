"""The tiny CLIP and the federation of four clients that the tests of methods share."""

from __future__ import annotations

import pytest
import small

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return small.clip()


@pytest.fixture(scope="module")
def fed() -> Federation:
    return small.federation()
