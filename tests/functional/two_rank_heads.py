"""Heads fitted by two gloo processes: python two_rank_heads.py RANK STORE OUTPUT."""

import sys

import torch
from torch import Tensor, distributed

from firstlight.functional import RULES, EffectivePrior, Ranks, retrain_last_layer
from firstlight.functional.ranks import ALONE

SPLIT = 70
"""Examples of the first process; of the rarest class the other has one."""


def heads(ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Every rule's weight and bias as one tensor, and a prior."""
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([2] * 6 + [0, 0, 1] * 30 + [2])
    x = torch.randn(len(y), 4, dtype=torch.float64, generator=generator) + y[:, None] * 0.7 + 5
    part = slice(None)
    if ranks.world > 1:
        part = (slice(0, SPLIT), slice(SPLIT, None))[ranks.rank]
    found = retrain_last_layer(x[part], y[part], list(RULES), tolerance=1e-9, ranks=ranks)
    tensors = {n: torch.cat([h.weight, h.bias[:, None]], 1) for n, h in found.heads.items()}
    prior = EffectivePrior(4)
    prior.update(x[part])
    prior.reduce(ranks)
    return tensors | {"prior": prior.compute()}


if __name__ == "__main__":
    rank, store, output = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    torch.save(heads(Ranks.current()), f"{output}.{rank}")
    distributed.destroy_process_group()
