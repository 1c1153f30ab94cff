"""Deep feature reweighting: sparse heads on group-balanced subsets, averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor

from firstlight.functional.class_weights import PUBLISHED
from firstlight.functional.retrained_head import RetrainedHead, check_examples, check_present
from firstlight.functional.seeding import keyed_generator

STEPS = 20_000


def deep_feature_reweighting(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    groups: Tensor | None = None,
    strengths: Sequence[float] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01),
    subsets: int = 20,
    seed: int = 0,
) -> RetrainedHead:
    """DFR (Kirichenko et al., arXiv 2204.02937): L1 logistic heads on balanced subsets, averaged.

    Features are standardised; C is chosen on one half of the examples for heads fitted on a
    balanced subset of the other, by the worst group's accuracy (the smaller C on a tie); then heads
    are fitted on ``subsets`` balanced subsets of all, and their coefficients averaged. Defaults are
    the official repository's for a held-out set; it takes 10 subsets of training data. Unlike its
    liblinear, the intercept is not penalised here.

    Args:
        features: floating, (N, d); held out from the backbone's training.
        targets: integers in [0, K), (N,).
        num_classes: K.
        groups: integers (N,), what is balanced and whose worst accuracy counts; default: classes.
        strengths: candidates for C, the weight of the summed loss beside ``|W|_1``.
        subsets: averaged.
        seed: of halves and subsets.

    Raises:
        ValueError: on bad examples, a class or group without any, or a group of a single example,
            which cannot be in both halves.
    """
    check_examples(features, targets, num_classes)
    y = targets.to(features.device).long()
    check_present(torch.bincount(y, minlength=num_classes))
    g = y if groups is None else groups.to(y.device).long()
    if g.shape != y.shape:
        raise ValueError(f"groups must be {tuple(y.shape)}, not {tuple(g.shape)}")
    members = [(g == k).nonzero()[:, 0] for k in torch.unique(g).tolist()]
    least = min(map(len, members))
    if least < 2:
        alone = next(int(g[part[0]]) for part in members if len(part) < 2)
        raise ValueError(
            f"group {alone} has a single example, and one is needed in either half to choose C: "
            "hold out more, or leave the group out"
        )
    x = features if features.dtype == torch.float64 else features.float()
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    scale = scale.where(scale > 1e-6 * mean.abs(), 1.0)
    x = (x - mean) / scale
    generator = keyed_generator(seed, 0)
    shuffled = [
        part[torch.randperm(len(part), generator=generator).to(part.device)] for part in members
    ]
    fitted = [part[: len(part) // 2] for part in shuffled]
    judged = [part[len(part) // 2 :] for part in shuffled]
    rows = _balanced(fitted, generator)
    scores = []
    for strength in sorted(strengths):
        weight, bias, _ = fit_l1_logistic(x[rows], y[rows], num_classes, strength)
        right = (x @ weight.T + bias).argmax(1) == y
        scores.append((min(float(right[part].double().mean()) for part in judged), -strength))
    strength = -max(scores)[1]
    weights, biases, converged, steps = [], [], True, 0
    for _ in range(subsets):
        rows = _balanced(members, generator)
        weight, bias, taken = fit_l1_logistic(x[rows], y[rows], num_classes, strength)
        weights.append(weight)
        biases.append(bias)
        steps += taken
        converged = converged and taken < STEPS
    weight = torch.stack(weights).mean(0) / scale
    bias = torch.stack(biases).mean(0) - weight @ mean
    return RetrainedHead(
        weight.double().cpu(),
        bias.double().cpu(),
        rule=f"DFR, C={strength:g}",
        loss="logistic",
        class_weights=torch.ones(num_classes, dtype=torch.float64),
        ridge=0.0,
        converged=converged,
        gradient_norm=float("nan"),
        iterations=steps,
        provenance=PUBLISHED,
        notes=(f"mean of {subsets} L1 heads on {least} examples of each group",),
    )


def fit_l1_logistic(
    x: Tensor, y: Tensor, num_classes: int, strength: float, tolerance: float = 1e-5
) -> tuple[Tensor, Tensor, int]:
    """Minimise ``|W|_1 + C sum_i CE(W x_i + b, y_i)`` by restarted FISTA.

    Args:
        x: (n, d).
        y: (n,).
        num_classes: K.
        strength: C.
        tolerance: of a step's largest component over the rate, relative to the largest gradient.

    Returns:
        Weight (K, d), bias (K,), and steps taken.
    """
    ones = torch.ones(len(x), 1).to(x)
    a = torch.cat([x, ones], 1)
    # The softmax's Hessian is at most 1/2.
    rate = 2 / (strength * float(torch.linalg.matrix_norm(a, 2)) ** 2)
    point = torch.zeros(num_classes, a.shape[1]).to(x)
    ahead, t = point, 1.0
    for step in range(STEPS):
        p = (a @ ahead.T).softmax(1)
        p[torch.arange(len(y), device=y.device), y] -= 1
        gradient = strength * p.T @ a
        moved = ahead - rate * gradient
        weight = moved[:, :-1]
        shrunk = weight.sign() * (weight.abs() - rate).clamp(min=0)
        moved = torch.cat([shrunk, moved[:, -1:]], 1)
        size = float((moved - ahead).abs().max()) / rate
        if float(((ahead - moved) * (moved - point)).sum()) > 0:
            t = 1.0
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = moved + (t - 1) / following * (moved - point)
        point, t = moved, following
        if size <= tolerance * max(1.0, float(gradient.abs().max())):
            return point[:, :-1], point[:, -1], step + 1
    return point[:, :-1], point[:, -1], STEPS


def _balanced(members: list[Tensor], generator: torch.Generator) -> Tensor:
    """As many examples of each group as the smallest has."""
    least = min(map(len, members))
    drawn = [torch.randperm(len(part), generator=generator)[:least] for part in members]
    return torch.cat(
        [part[rows.to(part.device)] for part, rows in zip(members, drawn, strict=True)]
    )
