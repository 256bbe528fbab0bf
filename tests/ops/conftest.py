"""Fixtures of the kernels' tests."""

import pytest
import torch


@pytest.fixture
def threads():
    """Three threads of torch and of the kernels, also where the machine has fewer."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)
