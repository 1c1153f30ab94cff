"""Random numbers that depend on where a run stands, never on how it got there."""

import hashlib
import struct

import torch


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


def keyed_generator(seed: int, *keys: int) -> torch.Generator:
    """Return a new CPU generator seeded with ``fold_in(seed, *keys)``.

    Parameters of augmentations are drawn on the CPU whatever the training device, so that the same
    run draws the same crops on every device.
    """
    return torch.Generator().manual_seed(fold_in(seed, *keys))
