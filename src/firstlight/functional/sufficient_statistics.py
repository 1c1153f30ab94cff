"""All that a squared-loss head needs to know of the features, without the features."""

import torch
from torch import Tensor

from firstlight.functional.ranks import Ranks
from firstlight.functional.retrained_head import check_examples, check_present

LARGEST = 1 << 30
"""Bytes that second moments of every single class may take, 1 GiB."""


class LastLayerStatistics:
    """Counts, sums and second moments of features by class, accumulated in float64.

    For class k: ``n_k``, ``S_k = sum x_i`` and ``G_k = sum x_i x_i^T``, about a shift near the
    mean, so that nothing cancels. With them any class weights and any ridge are a solve away.
    Where K moments (d, d) are more than 1 GiB, say beforehand which weightings are wanted: one
    moment of each is kept instead, and any combination of them can be solved for (but not a
    class's own degrees of freedom, which need its own moment).

    Cost: ``N d^2`` multiply-adds in float64 for all classes together, as much again for each
    weighting given. Memory: ``8 d^2`` bytes for each class or weighting, and ``8 K d``.

    Args:
        num_features: d.
        num_classes: K, at least 2.
        weightings: (R, K), rows of class weights at any scale; None keeps every class.
        device: where the sums live.

    Attributes:
        counts: (K,) float64.

    Raises:
        ValueError: where every class is to be kept and that takes more than 1 GiB.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        weightings: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_classes < 2 or num_features < 1:
            raise ValueError(f"K={num_classes} must be at least 2, and d={num_features} at least 1")
        size = 8 * num_classes * num_features**2
        if weightings is None and size > LARGEST:
            raise ValueError(
                f"second moments of {num_classes} classes with {num_features} features take "
                f"{size / 2**30:.1f} GiB: pass the weightings to be solved for, (R, K) rows of "
                "class weights, of each of which one moment is kept"
            )
        basis = torch.eye(num_classes) if weightings is None else weightings
        self.basis = basis.to(device, torch.float64)
        if self.basis.shape[1:] != (num_classes,) or not self.basis.isfinite().all():
            raise ValueError(f"weightings must be finite, (R, {num_classes})")
        self.by_class = weightings is None
        self.num_features, self.num_classes = num_features, num_classes
        self.counts = self.basis.new_zeros(num_classes)
        self.sums = self.basis.new_zeros(num_classes, num_features)
        self.squares = self.basis.new_zeros(num_features)
        self.moments = self.basis.new_zeros(len(self.basis), num_features, num_features)
        self.shift: Tensor | None = None

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add a chunk of examples; any chunking gives the same sums.

        Args:
            features: floating, (N, d); never kept.
            targets: integers in [0, K), (N,).

        Raises:
            ValueError: on other shapes, values that are not finite, labels out of range; nothing
                is added then.
        """
        check_examples(features, targets, self.num_classes, int(self.counts.sum()))
        if features.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} features, got {features.shape[1]}")
        if not len(targets):
            return
        x = features.to(self.counts)
        targets = targets.to(x.device)
        if self.shift is None:
            self.shift = x.mean(0)
        x = x - self.shift
        self.counts += torch.bincount(targets, minlength=self.num_classes)
        self.sums.index_add_(0, targets, x)
        self.squares += (x * x).sum(0)
        # Examples in the order of classes: a row of the basis then picks few, contiguous pieces.
        order = targets.argsort()
        x, by_example = x[order], self.basis[:, targets[order]]
        for moment, weight in zip(self.moments, by_example, strict=True):
            used = weight.nonzero()[:, 0]
            if len(used):
                rows = slice(int(used[0]), int(used[-1]) + 1)
                part = x[rows]
                moment.addmm_((part * weight[rows, None]).T, part)

    def merge(self, other: "LastLayerStatistics") -> None:
        """Add the examples of another accumulator of the same shape."""
        if other.shift is None:
            return
        if self.shift is None:
            self.shift = other.shift.clone()
        moved = other._about(self.shift)
        for mine, theirs in zip(self._parts(), moved, strict=True):
            mine += theirs

    def reduce(self, ranks: Ranks) -> None:
        """Add up over all ranks, on all of them; a rank without examples takes part. Collective."""
        seen = torch.zeros_like(self.squares) if self.shift is None else self.shift
        has = torch.full_like(self.squares, float(self.shift is not None))
        holders = ranks.sum(has)
        if not holders.any():
            return
        common = ranks.sum(seen * has) / holders
        parts = self._parts() if self.shift is None else self._about(common)
        self.shift = common
        for mine, part in zip(self._parts(), parts, strict=True):
            mine.copy_(ranks.sum(part))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.counts, self.sums, self.squares, self.moments

    def _about(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same sums about another point."""
        assert self.shift is not None
        move = self.shift - shift
        total, n = self.sums.sum(0), self.counts.sum()
        squares = self.squares + 2 * move * total + n * move**2
        linear = (self.basis @ self.sums)[:, :, None] * move
        mass = (self.basis @ self.counts)[:, None, None]
        moments = self.moments + linear + linear.mT + mass * torch.outer(move, move)
        return self.counts, self.sums + self.counts[:, None] * move, squares, moments

    def scale(self, standardize: bool = True) -> Tensor:
        """Standard deviations (d,) of all examples alike; 1 where a feature is constant or unasked.

        Raises:
            ValueError: where a class has no examples.
        """
        check_present(self.counts)
        if not standardize:
            return torch.ones_like(self.squares)
        n = self.counts.sum()
        mean = self.sums.sum(0) / n
        variance = self.squares / n - mean**2
        constant = variance <= 1e-14 * (self.squares / n)
        scale: Tensor = variance.sqrt().where(~constant, 1.0)
        return scale

    def mean(self, weights: Tensor) -> Tensor:
        """Weighted mean (d,) of the features about the shift, for class weights (K,)."""
        mean: Tensor = (weights @ self.sums) / (weights @ self.counts)
        return mean

    def covariance(self, weights: Tensor) -> Tensor:
        """Weighted covariance (d, d) about the weighted mean, divided by the sum of the weights.

        Raises:
            ValueError: where the weights are no combination of the weightings kept.
        """
        if self.by_class:
            moment = torch.einsum("k,kij->ij", weights, self.moments)
        else:
            found = torch.linalg.lstsq(self.basis.T, weights[:, None]).solution[:, 0]
            left = (found @ self.basis - weights).abs().max()
            if left > 1e-9 * weights.abs().max():
                raise ValueError(
                    "these class weights are no combination of the weightings that the statistics "
                    "were kept for: accumulate again with them among the weightings"
                )
            moment = torch.einsum("r,rij->ij", found, self.moments)
        mean = self.mean(weights)
        covariance: Tensor = moment / (weights @ self.counts) - torch.outer(mean, mean)
        return covariance
