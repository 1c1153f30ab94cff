"""The Fisher trace by its definition, one autograd pass a class and example; what to try it on."""

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


def network(width=6, classes=4, scale=1.0, seed=0):
    """Two hidden layers and a BatchNorm with statistics of its own; `scale` makes it confident."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(5, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
        nn.Linear(width, classes),
    ).double()  # fmt: skip
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    with torch.no_grad():
        net[-1].weight *= scale
    return net.eval()


def probe(n=12, seed=1):
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
