"""What noise in one layer and in all costs a wide linear network: loss and gradient noise by width.

    python benchmarks/weight_noise_width.py [--draws 1000]

Two linear layers W2 W1 of fixed product and balanced norm that fit their data exactly, in float64:
every loss under noise is the noise's. The formulas are exact (square loss, S = XᵀX / n):
``E L = (σ²/4) Q`` for one layer a step and ``(σ²/4) Q + (σ⁴/8) k m tr S`` for both with σ/√2 each,
``Q = ‖W2‖² tr S + k tr(W1 S W1ᵀ)``.
"""

import argparse
import math
from typing import Any

import torch
from side_by_side import publish
from torch import nn

from firstlight.functional import NoiseRule, noise_groups, perturb_weights

INPUTS, OUTPUTS, EXAMPLES, SIGMA = 10, 3, 64, 0.1
WIDTHS = (10, 100, 1_000, 10_000)
RULES = {"all": NoiseRule("all", scale="absolute"), "layer": NoiseRule(scale="absolute")}


class TwoLayers:
    """The network of a width, its data and its exact penalties."""

    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(EXAMPLES, INPUTS, generator=generator, dtype=torch.float64)
        product = torch.randn(OUTPUTS, INPUTS, generator=generator, dtype=torch.float64)
        u, s, v = torch.linalg.svd(product / product.norm(), full_matrices=False)
        basis = torch.randn(width, OUTPUTS, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(basis).Q  # (width, k), columns orthonormal
        self.model = nn.Sequential(
            nn.Linear(INPUTS, width, bias=False), nn.Linear(width, OUTPUTS, bias=False)
        ).double()
        with torch.no_grad():
            self.model[0].weight.copy_(basis @ s.sqrt().diag() @ v)
            self.model[1].weight.copy_(u @ s.sqrt().diag() @ basis.T)
            self.y = self.model(self.x)
        self.width = width

    def expected(self, mode: str) -> float:
        """E L by the formula."""
        w1, w2 = (layer.weight.detach() for layer in self.model)
        s = self.x.T @ self.x / EXAMPLES
        q = w2.square().sum() * s.trace() + OUTPUTS * (w1 @ s @ w1.T).trace()
        extra = SIGMA**4 / 8 * OUTPUTS * self.width * s.trace() if mode == "all" else 0.0
        return float(SIGMA**2 / 4 * q + extra)

    def measured(self, mode: str, draws: int) -> tuple[float, float, float]:
        """Mean loss under noise, its standard error, and the root mean square of the gradient."""
        groups, losses, squares = noise_groups(self.model), [], 0.0
        for step in range(draws):
            with perturb_weights(groups, SIGMA, step, RULES[mode], seed=1):
                loss = (self.model(self.x) - self.y).square().sum() / (2 * EXAMPLES)
                gradients = torch.autograd.grad(loss, list(self.model.parameters()))
            losses.append(loss.item())
            squares += sum(float(g.square().sum()) for g in gradients)
        found = torch.tensor(losses, dtype=torch.float64)
        error = float(found.std()) / math.sqrt(draws)
        if mode == "layer":  # each half of the steps perturbs a layer of its own
            halves = found[0::2], found[1::2]
            error = math.sqrt(sum(float(half.var()) / len(half) for half in halves)) / 2
        return float(found.mean()), error, math.sqrt(squares / draws)


def main() -> None:
    """Measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    rows: list[dict[str, Any]] = []
    for width in WIDTHS:
        network, row = TwoLayers(width), {"width": f"{width:,}"}
        for mode in RULES:
            mean, error, gradient = network.measured(mode, draws)
            row[f"E L, {mode}: formula"] = f"{network.expected(mode):.4f}"
            row[f"E L, {mode}: measured"] = f"{mean:.4f} ± {error:.4f}"
            row[f"gradient noise, {mode}"] = f"{gradient:.2f}"
        rows.append(row)
    publish(
        "weight_noise_width",
        "Two linear layers at zero loss: what noise of the same sigma does to wide networks",
        rows,
        f"sigma {SIGMA} absolute ({SIGMA} / √2 in each layer for all), {draws} draws, ± standard "
        "error; gradient noise: root mean square of the gradient's norm, which is 0 without noise.",
    )


if __name__ == "__main__":
    main()
