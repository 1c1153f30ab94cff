"""One thread for the tests of pure functions."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Hundreds of tiny passes wait for one another's threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
