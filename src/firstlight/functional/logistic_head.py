"""Multinomial logistic heads: weighted, with offsets and scales, to a certified gradient."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from firstlight.functional.class_weights import ClassWeights
from firstlight.functional.head_curvature import HeadCurvature
from firstlight.functional.head_features import HeadFeatures
from firstlight.functional.preconditioned_lbfgs import minimise
from firstlight.functional.retrained_head import RetrainedHead, check_per_class, check_ridge

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-8}


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
            z -= z.amax(1, keepdim=True)
            true = z.gather(1, targets[:, None])[:, 0]
            correct += (true == 0).sum()
            loss = (self.smoothing - 1) * true
            if self.smoothing:
                loss -= self.smoothing * z.mean(1)
            p = z.exp_()
            mass = p.sum(1)
            total += torch.dot(loss + mass.log(), w).double()
            p *= (w / mass)[:, None]  # times the example's weight from here on
            first += p.sum(0)
            second += (1 / w) @ (p * p)
            if self.smoothing:
                p -= (self.smoothing / classes) * w[:, None]
            p[torch.arange(len(targets), device=p.device), targets] -= (1 - self.smoothing) * w
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
    curvature = HeadCurvature(data, problem.weights, problem.ridge, problem.offset, intercept)

    free = intercept and bias_ridge == 0

    def centred(step: Tensor) -> Tensor:
        """Without a constant for all biases, on which nothing depends: division magnifies it."""
        step[:, -1] -= step[:, -1].mean() if free else 0.0
        return step

    def precondition(gradient: Tensor) -> Tensor:
        assert problem.curvature is not None
        curvature.update(problem.curvature)
        return centred(curvature(centred(gradient.clone())))

    begin = _start(data, weights, o, a, start, intercept)
    tolerance = TOLERANCE[work] if tolerance is None else tolerance
    found = minimise(
        problem,
        begin.to(device, work),
        precondition,
        look=curvature.look,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    point = found.point.double()
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
