"""Random numbers that depend on where a run stands, never on how it got there."""

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def resolve_seed(seed: int | None) -> int:
    """Return the given seed, else that of Lightning's ``seed_everything``, else 0.

    Raises:
        ValueError: when PL_GLOBAL_SEED, where ``seed_everything`` leaves it, is no integer.
    """
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def fold_in(seed: int, *keys: int) -> int:
    """Derive a seed from a seed and integer keys such as epoch, step and rank.

    A run that draws the randomness of step ``k`` from ``fold_in(seed, k)`` needs no stored random
    state: a resumed run draws the same numbers. Neighbouring keys give unrelated seeds (BLAKE2b of
    the packed integers).

    Args:
        seed: any integer that fits 64 bits.
        keys: any integers that fit 64 bits; their order matters.

    Returns:
        An integer in ``[0, 2**63)``, valid for ``torch.manual_seed``.

    Example:
        >>> fold_in(0, 3, 1) == fold_in(0, 3, 1), fold_in(0, 3, 1) == fold_in(0, 1, 3)
        (True, False)
    """
    packed = struct.pack(f"<{1 + len(keys)}q", seed, *keys)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def keyed_generator(seed: int, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator seeded with ``fold_in(seed, *keys)``.

    Parameters of augmentations are drawn on the CPU whatever the training device, so that the same
    run draws the same crops on every device; large tensors may be drawn where they are needed.
    """
    return torch.Generator(device).manual_seed(fold_in(seed, *keys))


@contextmanager
def keyed_randomness(seed: int, *keys: int, device: torch.device | None = None) -> Iterator[None]:
    """Draw from torch's global generators as seeded by ``fold_in(seed, *keys)``, then restore them.

    What is drawn inside (dropout, a random transform) then needs no stored random state to be
    resumed, and nothing outside is changed by how much is drawn.

    Args:
        seed: any integer that fits 64 bits.
        keys: any integers that fit 64 bits; their order matters.
        device: its generator is keyed beside the CPU's if it is a CUDA device; those of other
            devices are left alone.
    """
    key = fold_in(seed, *keys)
    cuda = device if device is not None and device.type == "cuda" else None
    before = torch.get_rng_state()
    before_cuda = None if cuda is None else torch.cuda.get_rng_state(cuda)
    try:
        # torch.manual_seed would queue a seed for every device at each call.
        torch.default_generator.manual_seed(key)
        if cuda is not None:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(key)
        yield
    finally:
        torch.set_rng_state(before)
        if cuda is not None and before_cuda is not None:
            torch.cuda.set_rng_state(before_cuda, cuda)
