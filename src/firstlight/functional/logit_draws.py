"""Random directions in logit space whose second moment is the Fisher matrix of a softmax.

With p = softmax(z) and ``Lambda = diag(p) - p p^T``, any random u with ``E[u u^T] = Lambda`` makes
``|J^T u|^2`` an unbiased estimate of the trace of the Fisher matrix. All in float64, and without
the cancellation in ``1 - p_c`` that would round to zero where the network is confident.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


class Draw(NamedTuple):
    """Directions, one an example.

    Attributes:
        unit: (B, K), each row of norm 1 (or 0), float64.
        weight: (B,), the squared norm taken out, float64, so that no gradient underflows.
    """

    unit: Tensor
    weight: Tensor


Draws = Callable[[Tensor, Generator], list[Draw]]
"""Logits (B, K) to one or more draws whose estimates add up."""


def importance(logits: Tensor, generator: Generator) -> list[Draw]:
    """Draw a label c with probability proportional to ``p_c |e_c - p|^2`` (our own estimator).

    ``u = sqrt(p_c / r_c) (e_c - p)`` has the same norm, ``sqrt(1 - |p|^2)``, whatever c: no heavy
    tail, and no variance at all for two classes or a linear head.
    """
    softmax = _Softmax(logits)
    label = _categorical(softmax.p * softmax.squared_distances, generator)
    return [Draw(_unit(softmax.residuals(label)), softmax.trace)]


def label(logits: Tensor, generator: Generator) -> list[Draw]:
    """Draw a label from the model itself, ``u = e_y - p``: the definition, by Monte Carlo."""
    softmax = _Softmax(logits)
    drawn = _categorical(softmax.p, generator)
    weight = softmax.squared_distances.gather(1, drawn.unsqueeze(1)).squeeze(1)
    return [Draw(_unit(softmax.residuals(drawn)), weight)]


def rademacher(logits: Tensor, generator: Generator) -> list[Draw]:
    """Draw signs, ``u = sqrt(p) eps - p <sqrt(p), eps>``."""
    softmax = _Softmax(logits)
    signs = torch.randint(0, 2, softmax.p.shape, generator=generator).double() * 2 - 1
    root = softmax.p.sqrt()
    # <sqrt(p), eps> = +-1 +- ... : subtracted from the top class in the form without cancellation.
    u = root * signs - softmax.p * (root * signs).sum(1, keepdim=True)
    u.scatter_(1, softmax.top, softmax.at_top(root * signs))
    weight = u.square().sum(1)
    return [Draw(_unit(u), weight)]


def exact(logits: Tensor, generator: Generator) -> list[Draw]:
    """Return every ``sqrt(p_c) (e_c - p)``: K draws, whose sum has no variance."""
    softmax = _Softmax(logits)
    weights = softmax.p * softmax.squared_distances
    labels = range(softmax.p.shape[1])
    return [Draw(_unit(softmax.residuals(softmax.every(c))), weights[:, c]) for c in labels]


def along_first_class(logits: Tensor, generator: Generator) -> list[Draw]:
    """Return the first axis with the trace of ``Lambda``: exact where ``J J^T`` is isotropic.

    It is under a linear head, whose trace is ``(|h|^2 + 1) (1 - |p|^2)``, the 1 for a bias.
    """
    softmax = _Softmax(logits)
    return [Draw(F.one_hot(softmax.every(0), softmax.p.shape[1]).double(), softmax.trace)]


def sampled_labels(logits: Tensor, generator: Generator) -> Tensor:
    """Return labels (B,) drawn from the softmax of logits, on their device."""
    return _categorical(_Softmax(logits).p, generator).to(logits.device)


class _Softmax:
    """Probabilities in float64 on the CPU, and sums that leave out the largest of them."""

    def __init__(self, logits: Tensor) -> None:
        self.p = logits.detach().cpu().double().softmax(1)
        self.top = self.p.argmax(1, keepdim=True)
        self._rest = self.p.scatter(1, self.top, 0.0)
        squares = self._rest.square().sum(1, keepdim=True)
        # For c other than the top class nothing cancels: p_c <= 1/2.
        self.others = (1 - self.p).scatter(1, self.top, self._rest.sum(1, keepdim=True))
        total = self.p.square().sum(1, keepdim=True)
        other_squares = (total - self.p.square()).scatter(1, self.top, squares)
        self.squared_distances = self.others.square() + other_squares

    @property
    def trace(self) -> Tensor:
        """``1 - |p|^2`` (B,)."""
        return (self.p * self.others).sum(1)

    def every(self, c: int) -> Tensor:
        return torch.full((len(self.p),), c)

    def residuals(self, labels: Tensor) -> Tensor:
        """Return ``e_c - p`` (B, K)."""
        at = labels.unsqueeze(1)
        return (-self.p).scatter(1, at, self.others.gather(1, at))

    def at_top(self, v: Tensor) -> Tensor:
        """Return the top class's entry of ``v - p <1, v>``: ``v_top (1 - p_top) - p_top rest``."""
        rest = v.scatter(1, self.top, 0.0).sum(1, keepdim=True)
        p, others = self.p.gather(1, self.top), self.others.gather(1, self.top)
        return v.gather(1, self.top) * others - p * rest


def _categorical(weights: Tensor, generator: Generator) -> Tensor:
    """Draw a column a row, with probability proportional to weights, by inverting the sums."""
    sums = weights.cumsum(1)
    points = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64) * sums[:, -1:]
    labels = torch.searchsorted(sums, points, right=True).squeeze(1)
    return labels.clamp(max=weights.shape[1] - 1)


def _unit(u: Tensor) -> Tensor:
    # Scaled first: squares of what is left after a large logit gap underflow.
    scaled = u / u.abs().amax(1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length.clamp_min(torch.finfo(u.dtype).tiny)


ESTIMATORS: dict[str, Draws] = {
    "importance": importance,
    "label": label,
    "rademacher": rademacher,
    "exact": exact,
}
"""By name; all unbiased."""
