from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.testing import tiny


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
