"""The two-stage baselines that last-layer retraining is compared with.

Published rules of Kang et al., arXiv 1910.09217, and label over-smoothing, arXiv 2403.00250, with
their defaults. Stochastic ones are trained as published, by SGD with momentum and a rate that falls
by a cosine each epoch; where one is the minimum of a convex loss, the docstring says which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.functional.class_weights import PUBLISHED
from firstlight.functional.retrained_head import RetrainedHead, check_examples, check_present
from firstlight.functional.seeding import keyed_generator

TAUS = tuple(tenths / 10 for tenths in range(21))
"""The paper's candidates for tau."""


def class_balanced_retraining(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    epochs: int = 10,
    lr: float = 0.2,
    batch_size: int = 512,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
) -> RetrainedHead:
    """cRT: a new head, cross-entropy, classes drawn uniformly (arXiv 1910.09217).

    Defaults are the paper's for ImageNet-LT; iNaturalist: 30 epochs, decay 1e-4. An epoch draws N
    examples with replacement, a class first, then one of its examples. The limit of long training
    is the logistic head with inverse-frequency weights and ``weight_decay`` for ridge of weights
    and bias, without standardisation.

    Args:
        features: floating, (N, d).
        targets: integers in [0, K), (N,).
        num_classes: K.
        epochs: of N draws.
        lr: at first.
        batch_size: examples of a step.
        momentum: of SGD.
        weight_decay: of weights and bias.
        seed: of the new head and the draws.

    Raises:
        ValueError: on bad examples, or a class without any.
    """
    x, y, _ = _examples(features, targets, num_classes)
    bound = x.shape[1] ** -0.5
    generator = keyed_generator(seed, 0)
    new = torch.empty(num_classes, x.shape[1] + 1).uniform_(-bound, bound, generator=generator)
    weight = nn.Parameter(new[:, :-1].to(x))
    bias = nn.Parameter(new[:, -1].to(x))
    training = _Training(epochs, lr, batch_size, momentum, weight_decay, balanced=True, seed=seed)
    steps = training.run([weight, bias], lambda part: F.linear(part, weight, bias), x, y)
    return _head(weight, bias, "cRT", weight_decay, steps)


def label_over_smoothing(
    head: RetrainedHead,
    features: Tensor,
    targets: Tensor,
    *,
    smoothing: float = 0.98,
    epochs: int = 20,
    lr: float = 5e-4,
    batch_size: int = 64,
    momentum: float = 0.9,
    seed: int = 0,
) -> RetrainedHead:
    """LOS: go on from the head with cross-entropy on labels smoothed nearly flat.

    arXiv 2403.00250 and its repository's defaults; examples drawn as they come, no decay.

    Args:
        head: to start from.
        features: floating, (N, d).
        targets: integers in [0, K), (N,).
        smoothing: share of the label spread over all classes, in [0, 1).
        epochs: over the examples.
        lr: at first.
        batch_size: examples of a step.
        momentum: of SGD.
        seed: of the order.

    Raises:
        ValueError: on bad examples, or a class without any.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), not {smoothing}")
    x, y, _ = _examples(features, targets, len(head.bias))
    weight, bias = (nn.Parameter(part.to(x, copy=True)) for part in (head.weight, head.bias))
    training = _Training(epochs, lr, batch_size, momentum, 0.0, False, seed, smoothing)
    steps = training.run([weight, bias], lambda part: F.linear(part, weight, bias), x, y)
    return _head(weight, bias, "label over-smoothing", 0.0, steps)


def learnable_weight_scaling(
    head: RetrainedHead,
    features: Tensor,
    targets: Tensor,
    *,
    epochs: int = 5,
    lr: float = 0.2,
    batch_size: int = 512,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
) -> RetrainedHead:
    """LWS: one factor for each class's logit, learnt with classes drawn uniformly (1910.09217).

    The head's weight and bias are multiplied by the factors. Convex in them.

    Args:
        head: whose logits are scaled.
        features: floating, (N, d).
        targets: integers in [0, K), (N,).
        epochs: of N draws.
        lr: at first.
        batch_size: examples of a step.
        momentum: of SGD.
        weight_decay: of the factors, towards 0.
        seed: of the draws.

    Raises:
        ValueError: on bad examples, or a class without any.
    """
    x, y, _ = _examples(features, targets, len(head.bias))
    logits = F.linear(x, head.weight.to(x), head.bias.to(x))
    scale = nn.Parameter(torch.ones(len(head.bias)).to(x))
    training = _Training(epochs, lr, batch_size, momentum, weight_decay, balanced=True, seed=seed)
    steps = training.run([scale], lambda part: part * scale, logits, y)
    found = scale.detach().double().cpu()
    weight, bias = head.weight * found[:, None], head.bias * found
    return _head(weight, bias, "learnable weight scaling", weight_decay, steps)


def tau_normalise(head: RetrainedHead, tau: float = 1.0) -> RetrainedHead:
    """Divide each class's weights by their norm to the power tau; no bias (arXiv 1910.09217).

    Args:
        head: trained as usual.
        tau: 0 leaves the weights, 1 makes all norms 1; see `best_tau`.

    Raises:
        ValueError: where a class's weights are all 0, or tau is not finite.
    """
    if not abs(tau) < float("inf"):
        raise ValueError(f"tau must be finite, not {tau}")
    norms = head.weight.norm(dim=1, keepdim=True)
    zero = (norms[:, 0] == 0).nonzero()[:, 0].tolist()
    if zero:
        raise ValueError(f"weights of class {zero[0]} are all 0: their norm cannot be scaled")
    return replace(
        head,
        weight=head.weight / norms**tau,
        bias=torch.zeros_like(head.bias),
        rule=f"tau-normalised, tau={tau:g}",
        degrees_of_freedom=None,
        provenance=PUBLISHED,
    )


def best_tau(
    head: RetrainedHead,
    features: Tensor,
    targets: Tensor,
    grid: Sequence[float] = TAUS,
) -> float:
    """Choose tau by mean accuracy over classes, the smaller one on a tie.

    The trap: choose it on data that neither trained the head nor test it.

    Args:
        head: trained as usual.
        features: held out, (N, d).
        targets: (N,).
        grid: candidates.
    """
    _, y, counts = _examples(features, targets, len(head.bias))
    scores = []
    for tau in sorted(grid):
        right = (tau_normalise(head, tau).logits(features).argmax(1) == y).double()
        by_class = torch.zeros_like(counts).index_add_(0, y, right) / counts
        scores.append((float(by_class.mean()), -tau))
    return -max(scores)[1]


@dataclass(frozen=True)
class NearestClassMean:
    """Classify by the nearest mean of centred, length-normalised features (arXiv 1910.09217).

    No linear head: the length of a feature vector takes part.

    Attributes:
        center: (d,) float64, mean of all features.
        means: (K, d) float64, of the classes.
    """

    center: Tensor = field(repr=False)
    means: Tensor = field(repr=False)

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, num_classes: int) -> "NearestClassMean":
        """Take the means of features (N, d) with targets (N,).

        Raises:
            ValueError: on bad examples, or a class without any.
        """
        x, y, counts = _examples(features.double(), targets, num_classes)
        center = x.mean(0)
        sums = torch.zeros(num_classes, x.shape[1], dtype=x.dtype, device=x.device)
        means = sums.index_add_(0, y, F.normalize(x - center, dim=1)) / counts[:, None]
        return cls(center.cpu(), means.cpu())

    def logits(self, features: Tensor) -> Tensor:
        """Negative squared distances (N, K), float64."""
        x = features.double()
        x = F.normalize(x - self.center.to(x), dim=1)
        means = self.means.to(x)
        return 2 * x @ means.T - (means**2).sum(1) - (x**2).sum(1, keepdim=True)


@dataclass(frozen=True)
class _Training:
    """SGD with momentum, the rate falling by a cosine each epoch."""

    epochs: int
    lr: float
    batch_size: int
    momentum: float
    weight_decay: float
    balanced: bool
    seed: int
    smoothing: float = 0.0

    def run(
        self,
        parameters: list[nn.Parameter],
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
    ) -> int:
        """Train in place; return the steps."""
        optimizer = torch.optim.SGD(
            parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        members = [(y == k).nonzero()[:, 0].cpu() for k in range(int(y.max()) + 1)]
        sizes = torch.tensor([len(part) for part in members])
        flat, first = torch.cat(members), sizes.cumsum(0) - sizes
        steps = 0
        with torch.enable_grad():
            for epoch in range(self.epochs):
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * (1 + cos(pi * epoch / self.epochs)) / 2
                generator = keyed_generator(self.seed, 1, epoch)
                if self.balanced:
                    k = torch.randint(len(members), (len(y),), generator=generator)
                    place = (torch.rand(len(y), generator=generator) * sizes[k]).long()
                    order = flat[first[k] + place.minimum(sizes[k] - 1)]
                else:
                    order = torch.randperm(len(y), generator=generator)
                for part in torch.split(order.to(y.device), self.batch_size):
                    loss = F.cross_entropy(logits(x[part]), y[part], label_smoothing=self.smoothing)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
                    optimizer.step()
                    steps += 1
        return steps


def _examples(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features in a type to compute in, targets beside them, counts (K,) float64."""
    check_examples(features, targets, num_classes)
    y = targets.to(features.device).long()
    counts = torch.bincount(y, minlength=num_classes).double()
    check_present(counts)
    return features if features.dtype == torch.float64 else features.float(), y, counts


def _head(weight: Tensor, bias: Tensor, rule: str, ridge: float, steps: int) -> RetrainedHead:
    weight, bias = weight.detach().double().cpu(), bias.detach().double().cpu()
    return RetrainedHead(
        weight,
        bias,
        rule=rule,
        loss="logistic",
        class_weights=torch.ones_like(bias),
        ridge=ridge,
        converged=False,
        gradient_norm=float("nan"),
        iterations=steps,
        provenance=PUBLISHED,
        notes=("trained by a fixed number of stochastic steps: no certificate",),
    )
