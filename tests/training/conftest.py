"""Small networks are no faster with more threads, and much slower where the machine has other work."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
