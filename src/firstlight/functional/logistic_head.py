"""Multinomial logistic heads: weighted, with offsets and scales, to a certified gradient."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from firstlight.functional.class_weights import ClassWeights
from firstlight.functional.preconditioned_lbfgs import minimise
from firstlight.functional.ranks import ALONE, Ranks
from firstlight.functional.retrained_head import (
    RetrainedHead,
    check_examples,
    check_per_class,
    check_present,
    check_ridge,
)

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Most logits held at once."""

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-8}
SAMPLE = 4
"""Examples for each feature from which the preconditioner's covariance is taken."""


class HeadFeatures:
    """Examples to fit logistic heads to: standardised once, with the spectrum of the features.

    Any number of heads share it. Memory: one copy of the features, in float32 (float64 where they
    are), and ``2 d^2``. Cost: passes over the copy, and about ``10 d^3`` for the spectrum.

    Args:
        features: floating, (N, d).
        targets: integers in [0, K), (N,).
        num_classes: K.
        standardize: scale to a standard deviation of 1.
        center: about the mean; without it an intercept is that of the features as they are.
        ranks: processes that hold a part of the examples each. Collective.

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
        self.x = features.to(work, copy=True)
        self.x -= mean.to(work)
        squares = torch.zeros_like(mean)
        for part, _ in self.chunks():
            squares += (part**2).sum(0, dtype=torch.float64)
        variance = ranks.sum(squares) / self.n
        spread = variance.sqrt()
        varies = spread > 4 * torch.finfo(work).eps * mean.abs()
        self.scale = spread.where(varies, 1.0) if standardize else torch.ones_like(spread)
        self.mean = mean if center else torch.zeros_like(mean)
        if not center:
            self.x += mean.to(work)
        self.x /= self.scale.to(work)
        # Every stride-th example: a guess of the curvature needs no more.
        stride = max(1, len(self.x) // (SAMPLE * self.x.shape[1]))
        part = self.x[::stride]
        taken = ranks.sum(torch.tensor(float(len(part)), device=self.x.device))
        moment = ranks.sum(part.T @ part) / taken
        values, self.directions = torch.linalg.eigh(moment)
        least = 8 * torch.finfo(work).eps * float(values[-1])
        self.spectrum = values.clamp(min=max(least, 1e-30))

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised features and targets, as many rows as keep the logits small."""
        rows = max(64, CHUNK.get(self.x.device.type, CHUNK["cuda"]) // self.num_classes)
        return zip(torch.split(self.x, rows), torch.split(self.targets, rows), strict=True)


@dataclass
class _Problem:
    """The objective over ``(K, d + 1)``: scaled weights, and scaled bias without the offset."""

    data: HeadFeatures
    weights: Tensor
    ridge: Tensor  # (K, d + 1)
    offset: Tensor  # (K,)
    smoothing: float
    intercept: bool
    curvature: Tensor | None = None
    correct: float = 0.0

    def __call__(self, point: Tensor) -> tuple[float, Tensor]:
        data, work = self.data, point.dtype
        weight, constant = point[:, :-1], point[:, -1] + self.offset.to(work)
        by_class = self.weights.to(work)
        classes = data.num_classes
        total = torch.zeros((), dtype=torch.float64, device=point.device)
        gradient = torch.zeros_like(point)
        first, second = (torch.zeros(classes, dtype=work, device=point.device) for _ in range(2))
        correct = torch.zeros_like(total)
        for features, targets in data.chunks():
            features = features.to(work)
            w = by_class[targets]
            z = torch.addmm(constant, features, weight.T)
            level = z.logsumexp(1)
            true = z.gather(1, targets[:, None])[:, 0]
            loss = level - (1 - self.smoothing) * true
            if self.smoothing:
                loss = loss - self.smoothing * z.mean(1)
            total += torch.dot(loss, w).double()
            if work == torch.float64:  # the certificate's evaluation looks at predictions too
                correct += (true >= z.max(1).values).sum()
            p = z.sub_(level[:, None]).exp_()
            first += w @ p
            second += w @ (p * p)
            p -= self.smoothing / classes
            p[torch.arange(len(targets), device=p.device), targets] -= 1 - self.smoothing
            p *= w[:, None]
            gradient[:, :-1].addmm_(p.T, features)
            gradient[:, -1] += p.sum(0)
        ranks = data.ranks
        gradient = ranks.sum(gradient) / data.n
        self.curvature = (ranks.sum(first - second) / data.n).clamp(min=1e-8)
        self.correct = float(ranks.sum(correct)) / data.n
        ridge = self.ridge.to(work)
        gradient += ridge * point
        if not self.intercept:
            gradient[:, -1] = 0
        penalty = float((ridge * point**2).sum(dtype=torch.float64)) / 2
        return float(ranks.sum(total)) / data.n + penalty, gradient

    def precondition(self, gradient: Tensor) -> Tensor:
        """Divide by the features' covariance times each class's curvature, plus its ridge.

        The Hessian's block of class k is the covariance weighted by ``w p_k (1 - p_k)``. Halfway
        (geometrically) between its mean and that of all classes took fewest iterations.
        """
        assert self.curvature is not None
        data, s = self.data, self.curvature
        s = (s * s.mean()).sqrt()[:, None]
        ridge = self.ridge.to(gradient)
        turned = (gradient[:, :-1] @ data.directions) / (s * data.spectrum + ridge[:, :1])
        bias = gradient[:, -1:] / (s + ridge[:, -1:])
        return torch.cat([turned @ data.directions.T, bias], 1)


def fit_logistic_head(
    data: HeadFeatures,
    weights: ClassWeights,
    *,
    ridge: float = 1e-3,
    bias_ridge: float = 0.0,
    intercept: bool = True,
    offsets: Tensor | None = None,
    scales: Tensor | None = None,
    label_smoothing: float = 0.0,
    start: RetrainedHead | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
    rule: str | None = None,
) -> RetrainedHead:
    """Fit a multinomial logistic head to a certified gradient norm.

    Minimises ``(1/n) sum_i w_{y_i} CE(scales * (W x_i + b) + offsets, y_i) + r/2 |W|^2``, by L-BFGS
    preconditioned with the features' covariance: the ridge stays exact, and ill-conditioned
    features cost little more than others. Offsets make it logit-adjusted (arXiv 2007.07314),
    offsets and scales vector scaling (arXiv 2103.01550); the head returned is W and b, to be used
    on their own.

    A free intercept absorbs the offsets: the head is then the unweighted one with ``offsets``
    taken from its bias, to the last digit. Of adding a constant to all biases nothing depends;
    they come centred (``scales * bias + offsets`` sums to 0).

    Cost: two products (N, d) by (d, K) an evaluation, one evaluation an iteration as a rule, and
    one in float64 at the end. Memory: features and 20 times ``K d``.

    Args:
        data: the examples.
        weights: of the classes.
        ridge: r, 0 or more, of standardised features where they were.
        bias_ridge: of the bias likewise; above 0 the data must not be centred, for it is the bias
            of the features as they are that decays in training.
        intercept: fit a bias at all (uncentred data otherwise).
        offsets: (K,), added to the logits in the loss.
        scales: (K,), above 0, times the logits in the loss.
        label_smoothing: in [0, 1).
        start: begin at this head.
        tolerance: of the largest component of the gradient; default 1e-5 in float32, 1e-8 in
            float64.
        max_iterations: at most.
        rule: name of the result.

    Returns:
        The head. ``converged`` is False, with a warning, where the tolerance was not reached, or
        the classes are separable and nothing penalises: then no minimum exists.

    Raises:
        ValueError: on bad arguments.
    """
    classes, work, device = data.num_classes, data.x.dtype, data.x.device
    check_ridge(ridge)
    check_ridge(bias_ridge)
    if data.centered and (bias_ridge > 0 or not intercept):
        raise ValueError(
            "a penalised or missing bias needs HeadFeatures(..., center=False): centring would "
            "move part of the weights into the bias, unpenalised"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
    none, ones = torch.zeros(classes).double(), torch.ones(classes).double()
    o = none if offsets is None else check_per_class(offsets, classes, "offsets")
    a = ones if scales is None else check_per_class(scales, classes, "scales", positive=True)
    check_per_class(weights.weights, classes, "class weights", positive=True)
    width = data.x.shape[1]
    penalties = torch.tensor([ridge] * width + [bias_ridge]).double() / a[:, None] ** 2
    problem = _Problem(
        data, weights.weights.to(device), penalties.to(device), o.to(device), label_smoothing,
        intercept,
    )  # fmt: skip
    begin = _start(data, weights, o, a, start, intercept)
    tolerance = TOLERANCE[work] if tolerance is None else tolerance
    found = minimise(
        problem,
        begin.to(device, work),
        problem.precondition,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    point = found.point.double()
    free = intercept and bias_ridge == 0
    if free:
        point[:, -1] -= (point[:, -1] + o.to(device)).mean()
    inverse = 1 / a.to(device) ** 2
    # A vector added to all classes changes no probability: only the ridge sees it.
    point[:, :-1] -= inverse @ point[:, :-1] / inverse.sum()
    _, gradient = problem(point)
    norm = float(gradient.abs().max())
    notes = [weights.note] if weights.note else []
    separable = ridge == 0 and problem.correct == 1
    if separable:
        notes.append(
            "every example is classified correctly and nothing penalises the weights: no minimum "
            "exists, the fit grows for ever towards the largest margin, and class weights do "
            "nothing to it. Pass ridge > 0"
        )
    elif norm > 2 * tolerance:
        notes.append(
            f"not converged: the gradient is {norm:.2g} after {found.iterations} iterations, "
            f"{tolerance:.2g} was asked for; raise max_iterations or the ridge, or fit in float64"
        )
    for note in notes[bool(weights.note) :]:
        warnings.warn(note, stacklevel=2)
    scaled = point / a.to(device)[:, None]
    weight = scaled[:, :-1] / data.scale
    bias = scaled[:, -1] - weight @ data.mean
    return RetrainedHead(
        weight=weight.cpu(),
        bias=bias.cpu(),
        rule=rule or f"logistic, {weights.rule}",
        loss="logistic",
        class_weights=weights.weights,
        ridge=ridge,
        converged=not separable and norm <= 2 * tolerance,
        gradient_norm=norm,
        iterations=found.iterations,
        evaluations=found.evaluations,
        provenance=weights.provenance,
        notes=tuple(notes),
    )


def _start(
    data: HeadFeatures,
    weights: ClassWeights,
    offsets: Tensor,
    scales: Tensor,
    start: RetrainedHead | None,
    intercept: bool,
) -> Tensor:
    """A head given, or no weights and the classes' weighted frequencies."""
    width = data.x.shape[1]
    point = torch.zeros(data.num_classes, width + 1, dtype=torch.float64)
    if start is not None:
        if start.weight.shape != (data.num_classes, width):
            raise ValueError(
                f"start is a head of shape {tuple(start.weight.shape)}, the data ask for "
                f"{(data.num_classes, width)}"
            )
        point[:, :-1] = start.weight * data.scale.cpu()
        point[:, -1] = start.bias + start.weight @ data.mean.cpu()
        point *= scales[:, None]
    elif intercept:
        share = (data.counts.cpu() * weights.weights).log()
        point[:, -1] = share - share.mean() - offsets
    if not intercept:
        point[:, -1] = 0
    return point
