"""Average sharpness: variance of the default noise along a training run."""

import copy
import math
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from rich.progress import track
from side_by_side import publish
from sklearn.datasets import load_digits
from torch import Tensor, nn

from firstlight.functional.probe_loss import ProbeLoss
from firstlight.functional.sharpness import average_sharpness

STEPS = (0, 5, 20, 50, 100, 200, 500)
REPEATS = 500
EXAMPLES = 128
DRAWS = 15
LOSS = nn.CrossEntropyLoss()


def digits_run() -> Iterator[tuple[int, nn.Module, Tensor, Tensor]]:
    """A CNN with BatchNorm trained on the digits: step, model, training examples, labels."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:1437, None] / 16
    y = torch.tensor(digits.target)[:1437]
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            yield step, copy.deepcopy(model), x, y
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        LOSS(model.train()(x[rows]), y[rows]).backward()
        optimizer.step()


def variances() -> None:
    """Variance over the noise: of the default and of pairs, over that of independent draws."""
    rows = []
    for step, model, x, y in track(digits_run(), "variance", total=len(STEPS)):
        x, y = x[:EXAMPLES], y[:EXAMPLES]
        for rho in (0.01, 0.05):
            found = [average_sharpness(model, x, y, rho=rho, seed=i) for i in range(REPEATS)]
            default = moments([r.value for r in found])
            alone, pairs = (told(model, x, y, rho, kind) for kind in (False, True))
            safety = statistics.fmean(r.se**2 for r in found) / default[0]
            rows.append(
                {
                    "step": str(step),
                    "loss": f"{found[0].loss:.3g}",
                    "rho": str(rho),
                    "sharpness": f"{statistics.fmean(r.value for r in found):.3g}",
                    "linear / even": f"{linear_share(model, x, y, rho):.2g}",
                    "default / independent": over(default, alone),
                    "pairs / independent": over(pairs, alone),
                    "told / true": f"{safety:.2f}",
                }
            )
    publish(
        "sharpness",
        "Variance of average sharpness, equal forward passes",
        rows,
        f"CNN on 8 x 8 digits, {EXAMPLES} training examples in one batch, {DRAWS} draws: variances "
        "relative to those of independent draws, with standard errors. linear / even: rho²‖g‖² "
        "over the variance of the loss's even part, the condition for pairs. told / true: mean "
        "squared standard error of the default over its variance; above 1 it errs to the safe "
        "side. The default takes one backward pass more, for its standard error, about two forward "
        "passes: 18 for 16.",
    )


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Variance and its standard error."""
    data = np.array(values)
    squares = (data - data.mean()) ** 2
    return squares.sum() / (len(data) - 1), squares.std() / len(data) ** 0.5


def told(
    model: nn.Module, x: Tensor, y: Tensor, rho: float, antithetic: bool
) -> tuple[float, float]:
    """Variance of the mean of DRAWS, and its standard error, from twice the draws many times."""
    squares = [
        average_sharpness(
            model, x, y, rho=rho, draws=2 * DRAWS, antithetic=antithetic, seed=-1 - i
        ).se
        ** 2
        * 2
        for i in range(REPEATS // 5)
    ]
    return statistics.fmean(squares), statistics.stdev(squares) / len(squares) ** 0.5


def over(one: tuple[float, float], other: tuple[float, float]) -> str:
    """Ratio of two variances with its standard error."""
    value = one[0] / other[0]
    return f"{value:.3f} ± {value * math.hypot(one[1] / one[0], other[1] / other[0]):.3f}"


def linear_share(model: nn.Module, x: Tensor, y: Tensor, rho: float) -> float:
    """Square of the linear term over the variance of the even part, of 200 pairs."""
    pairs = average_sharpness(model, x, y, rho=rho, draws=400, antithetic=True, seed=-1)
    probe = ProbeLoss(model, x, y, params=None, batch_size=EXAMPLES, normalize_logits=False)
    with probe.measuring():
        _, gradient = probe.loss_and_gradient(probe.batches[0], probe.weights)
    return rho**2 * float(gradient @ gradient) / (pairs.se**2 * 200)


if __name__ == "__main__":
    variances()
