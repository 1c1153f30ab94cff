"""A guess of the logistic objective's second derivative, with which its gradient is divided."""

import torch
from torch import Tensor

from firstlight.functional.head_features import SAMPLE, HeadFeatures

STALE = 2.5
"""Factor by which the mean curvature changes before the covariance is factorised again."""
FIRST_LOOK = 8
"""Iteration of the first look along the leading directions; then at every doubling."""


class HeadCurvature:
    """A preconditioner for heads (K, d + 1), biases last.

    The Hessian is the mean of ``w (diag p - p p^T)`` times ``x x^T``, and the ridge. Two guesses
    of it share the space. Along the features' leading directions and the bias, where most of the
    coupling of classes lies, it is computed, from a sample: ``K (q + 1)`` unknowns, at most 640
    (with more than 40 classes there are no such directions). Across them, each class has the
    features' covariance times its mean curvature ``s_k``, plus one ridge, which is one Cholesky
    factor for all; halfway (geometrically) between ``s_k`` and their mean took fewest iterations.

    On 5,103 features of a pretrained network (d = 1,280) the leading directions took 27 and 36
    iterations where the covariance alone took 61 and 67 (ridge 0.01 and 0.001). Seen from a start
    without weights they make it worse: hence the wait.

    Cost: two triangular solves (d, d) by (d, K) an application; d^3/3 a factorisation.

    Args:
        data: the examples.
        weights: (K,), of the classes.
        ridge: (K, d + 1), of every unknown.
        offset: (K,), added to the logits.
        intercept: whether there are biases; their gradient is 0 otherwise.
    """

    def __init__(
        self, data: HeadFeatures, weights: Tensor, ridge: Tensor, offset: Tensor, intercept: bool
    ) -> None:
        self.data, self.intercept = data, float(intercept)
        self.weights, self.ridge, self.offset = (v.to(data.x) for v in (weights, ridge, offset))
        self.classes = torch.ones_like(self.weights)
        self._mean: Tensor | None = None
        self._factor: Tensor | None = None
        self._leading: tuple[Tensor, Tensor] | None = None

    def update(self, classes: Tensor) -> None:
        """Take (K,) each class's mean curvature, of a new point."""
        self.classes, mean = classes, classes.mean()
        if self._mean is None or not 1 / STALE < mean / self._mean < STALE:
            self._mean = mean
            eps = torch.finfo(mean.dtype).eps
            shift = max(float(self.ridge[:, 0].mean() / mean), 8 * eps * self.data.largest, 1e-30)
            penalised = self.data.moment.clone()
            penalised.diagonal().add_(shift)
            self._factor = torch.linalg.cholesky(penalised)

    def look(self, point: Tensor, iteration: int) -> None:
        """Compute the leading directions' part at a point where it is time to. Collective."""
        directions = self.data.directions
        due = iteration >= FIRST_LOOK and iteration.bit_count() == 1
        if not due or not directions.shape[1]:
            return
        k, q = len(point), directions.shape[1] + 1
        basis = _blocks(directions, directions.new_ones(1, 1))
        total = torch.zeros(k * q, k * q, dtype=torch.float64, device=point.device)
        rows, share = self._sample(2 * SAMPLE * k * q)
        for part in torch.split(rows, 4096):
            x, mass = self.data.x[part], (share[part] * self.weights[self.data.targets[part]])
            p = torch.addmm(point[:, -1] + self.offset, x, point[:, :-1].T).softmax(1)
            p *= mass.sqrt()[:, None]
            t = torch.cat([x @ directions, x.new_full((len(x), 1), self.intercept)], 1)
            terms = p[:, :, None] * t[:, None, :]
            flat = terms.flatten(1)
            total -= flat.T @ flat
            own = torch.einsum("nkq,nr->kqr", terms * mass.sqrt()[:, None, None], t)
            total += _blocks(*own)
        total = self.data.ranks.sum(total) / self.data.n
        penalty = torch.cat([self.ridge[:, :1].expand(k, q - 1), self.ridge[:, -1:]], 1)
        # Of adding a vector to all classes the loss does not depend: that must not divide by 0.
        floor = 64 * torch.finfo(point.dtype).eps * total.diagonal().max()
        total.diagonal().add_(penalty.flatten() + floor)
        factor, failed = torch.linalg.cholesky_ex(total)
        if not failed:  # where all is fitted there is no curvature left to see
            self._leading = basis, factor.to(point.dtype)

    def _sample(self, most: int) -> tuple[Tensor, Tensor]:
        """Rows spread over every class's examples, and how many each (N,) stands for."""
        targets = self.data.targets
        counts = targets.bincount(minlength=self.data.num_classes)
        taken = counts.clamp(max=max(1, most // len(counts)))
        order = targets.argsort(stable=True)
        own = targets[order]
        place = torch.arange(len(own), device=own.device) - (counts.cumsum(0) - counts)[own]
        chosen = order[place * taken[own] % counts[own] < taken[own]]
        return chosen, (counts / taken.clamp(min=1)).to(self.data.x)[targets]

    def __call__(self, gradient: Tensor) -> Tensor:
        """Divide (K, d + 1) by the guess."""
        assert self._mean is not None and self._factor is not None
        s = (self.classes * self._mean).sqrt()[:, None]
        if self._leading is None:
            bias = gradient[:, -1:] / (s + self.ridge[:, -1:])
            return torch.cat([self._across(gradient[:, :-1]) / s, bias], 1)
        basis, factor = self._leading
        along = gradient @ basis
        rest = (gradient - along @ basis.T)[:, :-1]
        step = torch.nn.functional.pad(self._across(rest) / s, (0, 1))
        step -= step @ basis @ basis.T
        solved = torch.cholesky_solve(along.reshape(-1, 1), factor).reshape(along.shape)
        return step + solved @ basis.T

    def _across(self, gradient: Tensor) -> Tensor:
        assert self._factor is not None
        solved: Tensor = torch.cholesky_solve(gradient.T, self._factor).T
        return solved


def _blocks(*parts: Tensor) -> Tensor:
    """Matrices along a diagonal."""
    whole: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]  # untyped in torch
    return whole
