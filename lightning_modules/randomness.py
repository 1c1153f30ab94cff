"""Random numbers inside a training step that depend on where the run stands, and nothing else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from firstlight.functional.seeding import fold_in


def resolve_seed(seed: int | None) -> int:
    """Return the given seed, else that of ``seed_everything``, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


@contextmanager
def keyed_randomness(device: torch.device, seed: int, *keys: int) -> Iterator[None]:
    """Draw from torch's global generators as seeded by ``fold_in(seed, *keys)``, then restore them.

    Dropout and stochastic depth inside then need no stored random state to be resumed, and nothing
    outside is changed by how much they draw. CPU and CUDA generators; other devices' are left.
    """
    key = fold_in(seed, *keys)
    on_cuda = device.type == "cuda"
    before = torch.get_rng_state()
    before_cuda = torch.cuda.get_rng_state(device) if on_cuda else None
    try:
        # torch.manual_seed would queue a seed for every device at each call.
        torch.default_generator.manual_seed(key)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(key)
        yield
    finally:
        torch.set_rng_state(before)
        if before_cuda is not None:
            torch.cuda.set_rng_state(before_cuda, device)
