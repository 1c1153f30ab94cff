"""Minimise a smooth convex function, given a good guess of its curvature."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[float, Tensor]]
SUFFICIENT, CURVATURE = 1e-4, 0.9
TRIALS = 40
RESCALED = 2
"""Iterations between looks at the scale of the preconditioner, once it has settled."""


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        point: the best one found, as the start in shape and type.
        value: of the function there.
        gradient: there.
        iterations: steps taken.
        evaluations: of the function and its gradient.
        converged: whether the gradient's largest component is within the tolerance.
    """

    point: Tensor
    value: float
    gradient: Tensor
    iterations: int
    evaluations: int
    converged: bool


def minimise(
    objective: Objective,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    look: Callable[[Tensor, int], None],
    tolerance: float,
    max_iterations: int,
    memory: int = 10,
) -> Minimum:
    """L-BFGS whose initial inverse Hessian is a given one, scaled, instead of the identity's.

    The same as L-BFGS in coordinates in which ``precondition`` is the identity, but the function
    keeps its own, so that nothing in it (a ridge) has to be rewritten. Steps satisfy the weak
    Wolfe conditions, found by bisection, or end before the minimum along them.

    Args:
        objective: point -> value and gradient; convex.
        start: any shape.
        precondition: a linear, symmetric, positive map near the inverse Hessian, up to scale; it
            may change from one point to the next. Applied 1.5 times an iteration.
        look: called with every point that a step starts from, and its number.
        tolerance: of the largest absolute component of the gradient.
        max_iterations: steps at most.
        memory: pairs kept.
    """
    slack, scale = torch.finfo(start.dtype).eps, 1.0
    x, (f, g) = start, objective(start)
    evaluations, iteration = 1, 0
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=memory)
    while float(g.abs().max()) > tolerance and iteration < max_iterations:
        look(x, iteration)
        if pairs and (iteration <= RESCALED or iteration % RESCALED == 0):
            _, change, product = pairs[-1]
            scale = product / _dot(change, precondition(change))
        direction = -_two_loops(g, pairs, precondition, scale)
        slope = _dot(g, direction)
        if not slope < 0:  # rounding has spoilt the pairs
            pairs.clear()
            direction = -precondition(g)
            slope = _dot(g, direction)
        t, low, high = 1.0, 0.0, float("inf")
        for _ in range(TRIALS):
            point = x + t * direction
            value, gradient = objective(point)
            evaluations += 1
            along, enough = _dot(gradient, direction), f + SUFFICIENT * t * slope + slack * abs(f)
            # A convex function that still falls at the point has fallen on the way there: that
            # holds where the decrease is lost in the value's rounding.
            if not along <= 0 and not value <= enough:
                high = t
            elif along < CURVATURE * slope:
                low = t
            else:
                break
            t = 2 * low if high == float("inf") else (low + high) / 2
        else:
            break
        step, change = point - x, gradient - g
        product = _dot(step, change)
        if product > 0:
            pairs.append((step, change, product))
        x, f, g = point, value, gradient
        iteration += 1
    return Minimum(x, f, g, iteration, evaluations, float(g.abs().max()) <= tolerance)


def _two_loops(
    gradient: Tensor,
    pairs: deque[tuple[Tensor, Tensor, float]],
    precondition: Callable[[Tensor], Tensor],
    scale: float,
) -> Tensor:
    """Nocedal and Wright, algorithm 7.4, with the given map, scaled, in the middle."""
    q, parts = gradient, []
    for step, change, product in reversed(pairs):
        parts.append(_dot(step, q) / product)
        q = q - parts[-1] * change
    q = precondition(q) * scale
    for step, change, product in pairs:
        q = q + (parts.pop() - _dot(change, q) / product) * step
    return q


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten(), other.flatten()))
