"""The gradient of a batch under the model's own labels: an estimator, and a term of a loss."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.functional.logit_draws import sampled_labels
from firstlight.functional.measuring import (
    chosen_parameters,
    logits_of,
    measuring,
    number_of_examples,
    original,
)
from firstlight.functional.seeding import keyed_generator


class BatchGradient:
    """The squared norm of a batch's gradient, times its examples, for every parameter.

    Args:
        model: maps inputs to logits; in the state of `firstlight.functional.measuring`.
        chosen: parameters by name.

    Attributes:
        estimator: its name.
        slow: no parameter takes a slow path.
    """

    estimator = "batch"

    def __init__(self, model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> None:
        self.model, self.chosen = model, list(chosen.values())
        self.slow: dict[str, str] = {}

    def __call__(self, inputs: Any, count: int, seed: int, number: int) -> Tensor:
        """Return (parameters, 1) for one batch; labels are keyed by (seed, number)."""
        logits = logits_of(self.model, inputs, count)
        gradients = _mean_gradient(logits, self.chosen, keyed_generator(seed, number))
        norms = [0.0 if g is None else float(torch.linalg.vector_norm(g)) for g in gradients]
        return count * torch.tensor(norms, dtype=torch.float64).square().unsqueeze(1)


def fisher_penalty(
    model: nn.Module,
    inputs: Any,
    *,
    params: Iterable[str] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the Fisher trace of a batch as a term of a loss, differentiable once more.

    ``B |grad of the mean loss|^2`` with labels drawn from the model: the estimator ``batch``,
    unbiased for the trace. arXiv 2012.14193 and 2211.15853 penalise ``|grad|^2`` itself: their
    coefficient is B times the one to use here. They also draw it through BatchNorm in train mode,
    where examples are coupled and it estimates no Fisher trace; here the model is in eval mode.

    Cost: one forward and one backward pass, and about twice as much again when the loss is
    differentiated. Noisy: a relative error of about ``sqrt(2 / r)`` a batch, r the effective rank.

    Args:
        model: called as ``model(inputs) -> logits (n, K)``; its mode is left as it was.
        inputs: a tensor or any nesting of tensors, examples along the first axis.
        params: names of the parameters whose trace is penalised; default: all that require
            gradients. The gradient of the penalty reaches all that do.
        generator: a CPU generator that draws the labels; default: torch's own.

    Raises:
        ValueError: on an unknown name, no trainable parameter, or logits that are none or not
            finite.

    Example:
        >>> net, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
        >>> loss = F.cross_entropy(net(x), y) + 0.01 * fisher_penalty(net, x)
    """
    model = original(model)
    count = number_of_examples(inputs)
    chosen = [p for p in chosen_parameters(model, params).values() if p.requires_grad]
    if not chosen:
        raise ValueError("there is no trainable parameter whose Fisher trace could be penalised")
    generator = torch.default_generator if generator is None else generator
    with measuring(model, double_backward=True):
        logits = logits_of(model, inputs, count)
        gradients = _mean_gradient(logits, chosen, generator, create_graph=True)
    norms = [g.square().sum() for g in gradients if g is not None]
    return count * torch.stack(norms).sum() if norms else logits.sum() * 0


def _mean_gradient(
    logits: Tensor,
    parameters: list[nn.Parameter],
    generator: torch.Generator,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradient of the mean loss with labels drawn from the model."""
    if not parameters or not logits.requires_grad:
        return (None,) * len(parameters)
    loss = F.cross_entropy(logits, sampled_labels(logits, generator))
    return torch.autograd.grad(loss, parameters, allow_unused=True, create_graph=create_graph)
