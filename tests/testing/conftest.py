"""Small tensors are faster on one thread, the more so on a machine that does other things too."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
