"""The effective prior of some weights: estimated, kept, and recognised as theirs."""

from typing import Any

import torch
from torch import Tensor

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.labelled_sets import Source, find_set, number_of_batches
from firstlight.callbacks.logit_shift import estimate_prior
from firstlight.callbacks.probe_report import progress
from firstlight.callbacks.records import Voice
from firstlight.callbacks.training_loss import TrainingLoss
from firstlight.functional import prior_distance
from firstlight.functional.prior_correction import SAME


class KeptPrior:
    """An effective prior, and a checksum of the weights that have it.

    Attributes:
        prior: (K,), or None before there is one.
        weights: the checksum; empty likewise.
    """

    def __init__(self, prior: Tensor | None = None, weights: list[float] | None = None) -> None:
        self.prior, self.weights = prior, list(weights or [])

    def brought_up(
        self,
        trainer: Any,
        pl_module: Any,
        num_classes: int,
        data: Source,
        loss: TrainingLoss,
        say: Voice,
        adapter: Adapter | None,
    ) -> Tensor:
        """Return the prior of a module's weights, estimated unless it is the one kept. Collective.

        Where there is nothing to estimate it on, that of other weights serves, said so.

        Raises:
            ValueError: where there is neither; or as `estimate_prior`.
        """
        now = checksum(pl_module)
        if self.prior is not None and self.weights == now:
            say(trainer, "the effective prior is the one kept with these weights.")
            return self.prior
        try:
            source = find_set(trainer, data, say.who)
        except ValueError as error:
            if self.prior is None:
                raise
            say(
                trainer,
                "the effective prior is one kept from other weights than these, since there is "
                f"nothing to estimate it on ({error}).",
            )
            return self.prior
        for note in source.notes:
            say(trainer, note)
        batches = number_of_batches(source.loader) or 0
        with progress(trainer, f"prior on {source.name}", batches) as tick:
            self.prior = estimate_prior(
                pl_module, source.loader, num_classes, trainer.strategy.batch_to_device, say.who,
                adapter, offsets=loss.offsets, class_weights=loss.class_weights, tick=tick,
            )  # fmt: skip
        self.weights = now
        return self.prior


def checksum(module: torch.nn.Module) -> list[float]:
    """Sums that tell a module's weights and statistics from others."""
    with torch.no_grad():
        every = [*module.parameters(), *module.buffers()]
        floats = [x.detach() for x in every if x.is_floating_point()]
        # Not in float64 where the device has none.
        floats = [x.cpu() if x.device.type == "mps" else x for x in floats]
        return [
            float(sum(x.sum(dtype=torch.float64).cpu() for x in floats)),
            float(sum(x.abs().sum(dtype=torch.float64).cpu() for x in floats)),
        ]


def diagnosis(prior: Tensor | None, counts: Tensor | None) -> str:
    """Say how far a prior is from the classes' frequencies, and what follows."""
    if prior is None or counts is None:
        return "cannot be told from logit adjustment: the training counts are unknown"
    found = prior_distance(prior, counts)
    raised = f"; {found.raised} classes at the least prior allowed" if found.raised else ""
    near = f"total variation {found.total_variation:.1e}, " if found.total_variation < SAME else ""
    return (
        f"{found.sentence} ({near}rank correlation {found.spearman:.3f}, largest to smallest "
        f"{found.largest_ratio:.3g}{raised})"
    )
