"""BatchNorm's statistics of a module in training, estimated anew."""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.classifier_view import ClassifierView
from firstlight.callbacks.probe_set import collect
from firstlight.functional.measuring import batches_of_two, estimate_batch_norm, take

_BATCH = 64


def reestimate(
    trainer: Any, pl_module: Any, size: int, seed: int, who: str, adapter: Adapter | None
) -> str:
    """Replace the statistics of layers in training mode by those of training examples.

    Every process draws the same examples, keyed by the seed, and computes the same by itself.
    Collective, since the examples are compared.

    Returns:
        What was done, as a phrase.

    Raises:
        ValueError: as `collect`.
        BatchError: likewise.
    """
    norms = [
        m
        for m in pl_module.modules()
        if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None
    ]
    if not norms:
        return "there is no BatchNorm in training mode to estimate anew"
    probe = collect(trainer, pl_module, None, size, seed, who, adapter)
    forward = probe.bind(pl_module)
    placed = ClassifierView(pl_module, probe.bind, who).placed
    batches = (placed(take(probe.inputs, rows)) for rows in batches_of_two(probe.size, _BATCH))
    with torch.compiler.set_stance("force_eager"):
        estimate_batch_norm(pl_module, batches, forward=forward, norms=norms)
    return f"statistics of {len(norms)} BatchNorm layers estimated on {probe.size} examples"
