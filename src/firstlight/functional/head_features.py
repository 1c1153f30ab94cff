"""Features to fit logistic heads to: standardised once, with what is known of their covariance."""

from collections.abc import Iterator

import torch
from torch import Tensor

from firstlight.functional.ranks import ALONE, Ranks
from firstlight.functional.retrained_head import check_examples, check_present

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Most logits held at once, with half as many features: both fit into a processor's cache."""
SAMPLE = 2
"""Examples for each unknown from which curvature is taken: a guess needs no more."""
UNKNOWNS, FEWEST = 640, 16
"""Most weights along the leading directions, all classes together; fewer directions do not pay."""
LEADING = 2.0
"""Times the mean variance that a leading direction has."""
ROUNDS = 4


class HeadFeatures:
    """Examples to fit logistic heads to: standardised once, with their covariance.

    Any number of heads share it. Memory: one copy of the features, in float32 (float64 where they
    are), and ``2 d^2``. Cost: three passes over the copy, and ``d^3`` or so for the covariance.

    Args:
        features: floating, (N, d).
        targets: integers in [0, K), (N,).
        num_classes: K.
        standardize: scale to a standard deviation of 1.
        center: about the mean; without it an intercept is that of the features as they are.
        ranks: processes that hold a part of the examples each. Collective.

    Attributes:
        x: (N, d), standardised.
        moment: (d, d) second moments of ``2 d`` of them or up to twice as many.
        directions: (d, q) orthonormal, in which the features vary most; none
            with more than 40 classes.
        largest: eigenvalue of the moment, about.

    Raises:
        ValueError: on bad examples or a class without any.
    """

    def __init__(
        self,
        features: Tensor,
        targets: Tensor,
        num_classes: int,
        *,
        standardize: bool = True,
        center: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        check_examples(features, targets, num_classes)
        self.ranks, self.num_classes, self.centered = ranks, num_classes, center
        work = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.targets = targets.to(features.device).long()
        self.counts = ranks.sum(torch.bincount(self.targets, minlength=num_classes).double())
        check_present(self.counts)
        self.n = float(self.counts.sum())
        # Whatever is taken off is put back in the end: the mean need not be exact.
        mean = (ranks.sum(features.sum(0, dtype=work).double()) / self.n).to(work).double()
        self.x = torch.empty_like(features, dtype=work)
        squares = torch.zeros_like(mean)
        rows = self._rows()
        for part, out in zip(torch.split(features, rows), torch.split(self.x, rows), strict=True):
            torch.sub(part, mean.to(work), out=out)
            squares += (out * out).sum(0)
        spread = (ranks.sum(squares) / self.n).sqrt()
        varies = spread > 4 * torch.finfo(work).eps * mean.abs()
        self.scale = spread.where(varies, 1.0) if standardize else torch.ones_like(spread)
        self.mean = mean if center else torch.zeros_like(mean)
        if not center:
            self.x += mean.to(work)
        if standardize:
            self.x *= (1 / self.scale).to(work)
        self.moment = self._moment()
        self.directions, self.largest = self._leading()

    def _rows(self) -> int:
        chunk = CHUNK.get(self.x.device.type, CHUNK["cuda"])
        return max(64, chunk // max(self.num_classes, self.x.shape[1] // 2))

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised features and targets, as many rows as keep the logits small."""
        rows = self._rows()
        return zip(torch.split(self.x, rows), torch.split(self.targets, rows), strict=True)

    def _moment(self) -> Tensor:
        """Second moments of every stride-th example."""
        part = self.x[:: max(1, len(self.x) // (SAMPLE * self.x.shape[1]))]
        taken = self.ranks.sum(torch.tensor(float(len(part)), device=self.x.device))
        lower = part.new_zeros(part.shape[1], part.shape[1])
        for start in range(0, len(lower), 256):  # half the work: below the diagonal
            columns = slice(start, start + 256)
            lower[start:, columns] = part[:, start:].T @ part[:, columns]
        return self.ranks.sum(lower.tril() + lower.tril(-1).T) / taken

    def _leading(self) -> tuple[Tensor, float]:
        """The moment's first eigenvectors by subspace iteration, close enough for a guess."""
        width, most = len(self.moment), UNKNOWNS // self.num_classes
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(width, max(1, min(width, most - 1)), generator=generator).to(
            self.moment
        )
        for _ in range(ROUNDS):
            basis = torch.linalg.qr(self.moment @ basis).Q
        values, turn = torch.linalg.eigh(basis.T @ self.moment @ basis)
        leads = (values > LEADING * self.moment.diagonal().mean()) & (most >= FEWEST)
        return basis @ turn[:, leads], float(values[-1])
