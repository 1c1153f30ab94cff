"""A pass over loaders, counted twice: by the logits as they are, and by corrected ones."""

from typing import Any

import torch
from torch import Tensor

from firstlight.callbacks.batches import Adapter, LogitsTap
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


class PairedWatch:
    """Catches the logits of a stage's batches and counts each of its loaders twice.

    Args:
        pl_module: the module whose logits are caught, until `finish` or `remove`.
        before: what to add to them for those as they were, (K,).
        after: what to add for the corrected ones, (K,).
        who: named in errors.
        adapter: see `read_batch`.
    """

    def __init__(
        self, pl_module: Any, before: Tensor, after: Tensor, who: str, adapter: Adapter | None
    ) -> None:
        self._tap = LogitsTap(pl_module)
        self._module, self._shifts, self._who, self._adapter = (
            pl_module, (before, after), who, adapter,
        )  # fmt: skip
        self._running: dict[str, PairedEvaluation] = {}

    def arm(self) -> None:
        """Look at the next forward."""
        self._tap.armed = True

    def update(self, split: str, loader: Any, batch: Any) -> list[str]:
        """Count a batch of a split; return sentences that the user should read once."""
        if split not in self._running:
            self._running[split] = self._evaluation(split, loader)
        return self._running[split].update(self._module, batch, self._tap, self._adapter)

    def _evaluation(self, split: str, loader: Any) -> PairedEvaluation:
        return PairedEvaluation(split, loader, *self._shifts, self._module.device, self._who)

    def finish(self) -> dict[str, tuple[ClassifierScores, ClassifierScores]]:
        """Scores before and after, by split, over all ranks; the watch ends. Collective.

        A rank that saw no batch of a split takes part in its sums.
        """
        self.remove()
        splits = sorted({split for rank in gather(sorted(self._running)) for split in rank})
        every = {s: self._running.get(s) or self._evaluation(s, None) for s in splits}
        return {split: one.scores() for split, one in every.items()}

    def remove(self) -> None:
        """Look no longer."""
        self._tap.remove()
