"""Largest Hessian eigenvalue beside PyHessian and curvlinops, which the extra `bench` installs."""

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import curvlinops
import numpy as np
import pyhessian
import timm
import torch
from scipy.sparse.linalg import eigsh
from sharpness import LOSS, digits_run
from side_by_side import in_turn, publish, ratio, seconds
from torch import Tensor, nn

from firstlight.functional.hessian import hessian_top_eigenvalue


def dense_row() -> dict[str, str]:
    """Against the explicit Hessian of a small network in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).double()
    x, y = torch.randn(64, 12).double(), torch.randint(8, (64,))
    operator = curvlinops.HessianLinearOperator(
        model, LOSS, list(model.parameters()), [(x, y)], check_deterministic=False
    )
    size = sum(p.numel() for p in model.parameters())
    exact = torch.linalg.eigvalsh(operator @ torch.eye(size).double())[-1].item()
    found = hessian_top_eigenvalue(model, x, y)
    return {
        "model": f"tanh net, {size} parameters",
        "side": "dense Hessian, float64",
        "value": f"{exact:.8g}",
        "products": str(size),
        "firstlight's value": f"{found.value:.8g}",
        "its products": str(found.steps),
        "relative difference": f"{found.value / exact - 1:.1e}",
        "time / firstlight's": "",
    }


def peers_rows(name: str, model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> list[dict]:
    """Against PyHessian's power iteration and SciPy's Lanczos on curvlinops' operator."""
    model.eval()
    params = [p for p in model.parameters() if p.requires_grad]
    # The value all should reach: Lanczos without early stop.
    exact = hessian_top_eigenvalue(model, x, y, max_steps=60, tolerance=1e-6)
    found: dict[str, tuple[float, int]] = {}

    def ours() -> None:
        top = hessian_top_eigenvalue(model, x, y)
        found["firstlight"] = top.value, top.steps

    def power() -> None:
        torch.manual_seed(0)
        count = counted(sys.modules["pyhessian.hessian"], "hessian_vector_product")
        side = pyhessian.hessian(model, LOSS, (x, y), cuda=False)
        values, _ = side.eigenvalues(tol=1e-3)
        found["PyHessian"] = values[0], count()
        for p in params:
            p.grad = None  # its gradients hold their graph

    def lanczos() -> None:
        operator = curvlinops.HessianLinearOperator(
            model, LOSS, params, [(x, y)], check_deterministic=False
        ).to_scipy()
        products = 0

        def product(vector: np.ndarray) -> np.ndarray:
            nonlocal products
            products += 1
            return operator @ vector

        counting = type(operator)(operator.shape, matvec=product, dtype=operator.dtype)
        start = np.random.default_rng(0).normal(size=operator.shape[0]).astype(operator.dtype)
        (value,) = eigsh(counting, 1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)
        found["curvlinops"] = float(value), products

    times = in_turn(
        {
            n: lambda r=r: seconds(r, 1)
            for n, r in {"firstlight": ours, "PyHessian": power, "curvlinops": lanczos}.items()
        },
        rounds,
    )
    mine, steps = found.pop("firstlight")
    return [
        {
            "model": name,
            "side": side,
            "value": f"{value:.6g} ({value / exact.value - 1:+.1e})",
            "products": str(products),
            "firstlight's value": f"{mine:.6g} ({mine / exact.value - 1:+.1e})",
            "its products": str(steps),
            "relative difference": f"{mine / value - 1:.1e}",
            "time / firstlight's": ratio(times[side], times["firstlight"]),
        }
        for side, (value, products) in found.items()
    ]


def counted(module: Any, name: str) -> Callable[[], int]:
    """Count the calls of a module's function from now on."""
    original = getattr(getattr(module, name), "counted", getattr(module, name))
    calls = 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    counting.counted = original  # type: ignore[attr-defined]  # for the next call of this
    setattr(module, name, counting)
    return lambda: calls


def eigenvalues() -> None:
    """lambda_max at the start and, on the digits, along training."""
    rows = [dense_row()]
    for step, model, x, y in digits_run():
        if step in (0, 20, 200):
            rows += peers_rows(f"digits CNN, step {step}", model, x[:64], y[:64], 3)
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=10)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    rows += peers_rows("resnet18, 32 px, start", resnet, x, y, 3)
    optimizer = torch.optim.SGD(resnet.parameters(), lr=0.01, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        LOSS(resnet.train()(x), y).backward()
        optimizer.step()
    rows += peers_rows("resnet18, 32 px, 20 steps", resnet, x, y, 3)
    publish(
        "sharpness_eigenvalue",
        "Largest Hessian eigenvalue, tolerance 1e-3",
        rows,
        "64 examples (resnet18: 16), one batch, float32. In brackets: relative difference from "
        "firstlight's Lanczos run to a residual of 1e-6 in at most 60 steps. PyHessian: power "
        "iteration (largest magnitude, of either sign), stopped where two values in a row agree to "
        "1e-3; curvlinops: its operator under SciPy's eigsh. Ratio of times by round: median, "
        f"lowest and highest. PyHessian {version('pyhessian')}, curvlinops "
        f"{version('curvlinops-for-pytorch')}.",
    )


if __name__ == "__main__":
    eigenvalues()
