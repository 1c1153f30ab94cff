"""One pass over one loader, counted twice: by the logits as they are, and by corrected ones."""

from typing import Any

import torch
from torch import Tensor

from firstlight.callbacks.evaluation import Evaluation
from firstlight.callbacks.records import gather
from firstlight.functional import ClassifierScores, ScoreSums, example_positions
from firstlight.functional.ranks import Ranks


class PairedEvaluation(Evaluation):
    """Scores of one pass before and after a constant is added to the logits.

    Args:
        split: its name in keys.
        loader: gives the sampler.
        before: what to add to the logits that are caught for those as they were, (K,).
        after: what to add for the corrected ones, (K,).
        device: where sums live.
        who: named in errors.
    """

    def __init__(
        self, split: str, loader: Any, before: Tensor, after: Tensor, device: torch.device, who: str
    ) -> None:
        super().__init__(split, loader, len(before), None, who=who)
        home = torch.device("cpu") if device.type == "mps" else device
        self._shifts = before, after
        self._sums = ScoreSums(len(before), home), ScoreSums(len(before), home)

    def _count(self, logits: Tensor, targets: Tensor) -> None:
        positions = example_positions(self._sampler, self._seen, len(targets))
        self._seen += len(targets)
        kept = (positions >= 0).to(logits.device)
        work = logits if logits.dtype == torch.float64 else logits.float()
        for shift, sums in zip(self._shifts, self._sums, strict=True):
            sums.update((work + shift.to(work))[kept], targets[kept], positions[positions >= 0])

    def scores(self) -> tuple[ClassifierScores, ClassifierScores]:
        """Scores before and after, over all ranks. Collective."""
        before, after = (sums.compute(ranks=Ranks.current()) for sums in self._sums)
        return before, after


def agreed(running: dict[str, PairedEvaluation], empty: Any) -> list[PairedEvaluation]:
    """Give all ranks the same evaluations in the same order. Collective.

    Args:
        running: this rank's, by split.
        empty: makes one of a split that this rank saw no batch of.
    """
    splits = sorted({split for rank in gather(sorted(running)) for split in rank})
    return [running.get(split) or empty(split) for split in splits]
