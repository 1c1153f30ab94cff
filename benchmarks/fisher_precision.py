"""How much a Fisher trace owes to chance: the estimators along a training run.

    python benchmarks/fisher_precision.py

A small ResNet learns scikit-learn's digits until it knows all but a few of them. On 256 fixed
examples each estimator is drawn 64 times at the cost of one forward and one backward pass each (the
batch gradient: of the same 256 examples in batches of 32); the spread between draws owes nothing to
the choice of examples. Beside it: the exact value, and the distance of the mean from it in standard
errors.
"""

import torch
from rich.progress import Progress
from side_by_side import publish
from sklearn.datasets import load_digits
from torch.nn import functional as F

from firstlight.functional import fisher_trace, keyed_generator
from firstlight.lightning_modules import ImageClassifier

DRAWS, EXAMPLES, BATCH = 64, 256, 64
STEPS = (0, 20, 100, 400)
ESTIMATORS = ("importance", "rademacher", "label", "batch")


def spread(
    model: torch.nn.Module, x: torch.Tensor, estimator: str, want: float
) -> dict[str, float]:
    """Relative standard deviation, and the mean's distance from the truth in standard errors."""
    draws = torch.tensor(
        [
            fisher_trace(model, x, estimator=estimator, generator=keyed_generator(1, i)).value
            for i in range(DRAWS)
        ],
        dtype=torch.float64,
    )
    deviation = float(draws.std())
    return {
        "relative": deviation / want,
        "distance": (float(draws.mean()) - want) / (deviation / DRAWS**0.5),
    }


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """In eval mode."""
    model.eval()
    return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, measure at the steps named, publish."""
    torch.manual_seed(0)
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1).expand(-1, 3, -1, -1)
    x = F.interpolate((x / 16 - 0.3) / 0.4, size=16, mode="bilinear")
    y = torch.tensor(bunch.target)
    model = ImageClassifier("resnet20_cifar", num_classes=10).model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    generator, rows = torch.Generator().manual_seed(0), []
    with Progress() as progress:
        task = progress.add_task("training and measuring", total=len(STEPS))
        for step in range(max(STEPS) + 1):
            if step in STEPS:
                rows.append(row(model, x, y, step))
                progress.advance(task)
            model.train()
            batch = torch.randint(len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    last = rows[-1]
    publish(
        "fisher_precision",
        f"Spread of the Fisher trace of {EXAMPLES} examples between draws, relative to its value: "
        f"{last['label / importance']} times smaller than by drawn labels at the end",
        rows,
        "In brackets: distance of the mean of 64 draws from the exact value in standard errors. "
        "Where a spread is below the rounding of float32 (0.0000), the distance says nothing.",
    )


def row(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, step: int) -> dict[str, str]:
    """Measure all estimators at one step."""
    probe = x[:EXAMPLES]
    want = fisher_trace(model, probe, estimator="exact")
    found = {name: spread(model, probe, name, want.value) for name in ESTIMATORS}
    return {
        "step": str(step),
        "accuracy": f"{accuracy(model, x, y):.3f}",
        "exact": f"{want.value:.4g}",
        "between examples": f"{want.se / want.value:.3f}",
        **{n: f"{v['relative']:.4f} ({v['distance']:+.1f})" for n, v in found.items()},
        "label / importance": f"{found['label']['relative'] / found['importance']['relative']:.1f}",
    }


if __name__ == "__main__":
    main()
