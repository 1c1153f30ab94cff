"""The Fisher trace by its definition: every class of every example, one autograd pass each."""

import torch
from torch import Tensor, nn


def exact_by_parameter(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return ``sum_c p_c |grad log p_c|^2`` for every parameter: (n,) each.

    Each example is passed twice: torch's BatchNorm has a wrong backward pass for some batches of
    one (`test_measuring`).
    """
    model.eval()
    chosen = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: torch.zeros(len(inputs), dtype=torch.float64) for name in chosen}
    for i in range(len(inputs)):
        log_p = model(inputs[[i, i]]).log_softmax(1)[0]
        for log_likelihood in log_p:
            gradients = torch.autograd.grad(
                log_likelihood, list(chosen.values()), retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(chosen, gradients, strict=True):
                if gradient is not None:
                    weight = log_likelihood.detach().exp()
                    found[name][i] += weight * gradient.square().sum()
    return found


def exact(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the trace of every example (n,)."""
    return torch.stack(list(exact_by_parameter(model, inputs).values())).sum(0)
