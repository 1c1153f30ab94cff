"""Measures with two gloo processes: python two_ranks.py RANK STORE OUTPUT."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from firstlight.functional import Ranks, fisher_trace


def measured(ranks: Ranks) -> dict[str, object]:
    """A few numbers that must not depend on the ranks; with more ranks than batches at the end."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    x = torch.randn(23, 5)
    found: dict[str, object] = {}
    for estimator in ("importance", "label", "exact", "batch"):
        result = fisher_trace(net, x, estimator=estimator, batch_size=4, ranks=ranks)
        found[estimator] = [result.value, result.se, list(result.blocks.values()), result.n]
    one = fisher_trace(net, x[:1], ranks=ranks)
    found["fewer examples than ranks"] = [one.value, one.n, one.estimator]
    net[0].requires_grad_(False)
    found["head"] = [fisher_trace(net, x, batch_size=16, ranks=ranks).estimator]
    x[20] = float("nan")  # in a batch of the second rank
    try:
        fisher_trace(net, x, batch_size=4, ranks=ranks)
    except (ValueError, RuntimeError) as error:
        found["refused"] = "not finite" in str(error)
    return found


if __name__ == "__main__":
    rank, store, output = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    content = measured(Ranks.current())
    with Path(f"{output}.{rank}").open("w") as file:
        json.dump(content, file)
    distributed.destroy_process_group()
