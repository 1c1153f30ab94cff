"""One thread for the tests of pure functions, and runs that several of them take."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Hundreds of tiny passes wait for one another's threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def predicted():
    """Predictions of five runs, (5, 200), and targets of five classes; the last has no image."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 4, 200)
    pred = np.where(generator.random((5, 200)) < 0.6, targets, generator.integers(0, 5, (5, 200)))
    return pred, targets
