"""The logistic last-layer solve beside scikit-learn's lbfgs, in float32, to the same gradient."""

import argparse
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import in_turn, publish, ratio
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from firstlight.functional import (
    RULES,
    HeadFeatures,
    class_weights,
    fit_logistic_head,
    retrain_last_layer,
)

ROUNDS = 2
LARGE = 11_585
"""Of ImageNet-LT's 115,846 examples: with all, one evaluation takes half a minute of one core."""
Examples = tuple[NDArray[np.float32], NDArray[np.int64]]


def synthetic(n: int, d: int, k: int, decay: float) -> Examples:
    """Gaussian classes of long-tailed sizes; standard deviations fall by 10**decay."""
    generator = np.random.default_rng(0)
    counts = 0.01 ** (np.arange(k) / (k - 1))
    y = generator.choice(k, n, p=counts / counts.sum())
    y[:k] = np.arange(k)
    x = 0.12 * generator.standard_normal((k, d))[y] + generator.standard_normal((n, d))
    if decay:
        turn = np.linalg.qr(generator.standard_normal((d, d)))[0]
        x = x * 10.0 ** np.linspace(0, -decay, d) @ turn
        x /= x.std()
    return x.astype(np.float32), y


def pretrained(images: Path, weights: Path) -> Examples:
    """Features of tf_efficientnet_lite0 on a folder of images by class, long-tailed, 96 px."""
    import timm
    from PIL import Image

    overlay = {"file": str(weights)}
    model = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    folders = sorted(path for path in images.iterdir() if path.is_dir())
    share = 0.05 ** (np.arange(len(folders)) / (len(folders) - 1))
    files = [
        (file, label)
        for label, folder in enumerate(folders)
        for file in sorted(folder.iterdir())[: int(1500 * share[label])]
    ]
    found = []
    for start in range(0, len(files), 64):
        opened = [
            Image.open(file).convert("RGB").resize((96, 96))
            for file, _ in files[start : start + 64]
        ]
        pixels = torch.stack([torch.from_numpy(np.array(image)) for image in opened])
        with torch.no_grad():
            features = model.forward_features(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
            found.append(model.forward_head(features, pre_logits=True))
    x = torch.cat(found).numpy()
    return (x - x.mean(0)) / x.std(0), np.array([label for _, label in files])


def gradient(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, ridge: float) -> float:
    """Largest component of the objective's gradient, in float64, the same for both sides."""
    p = (x.double() @ weight.double().T + bias.double()).softmax(1)
    p[torch.arange(len(y)), y] -= 1
    by_weight = p.T @ x.double() / len(y) + ridge * weight.double()
    return max(float(by_weight.abs().max()), float(p.mean(0).abs().max()))


def against_scikit_learn(
    name: str, data: Examples, ridge: float, tol: float, rounds: int = ROUNDS
) -> dict[str, str]:
    """Seconds of both to the gradient at which scikit-learn stops."""
    x, y = data
    features, targets = torch.from_numpy(x), torch.from_numpy(y)
    k = int(y.max()) + 1
    plain = class_weights(np.bincount(y).tolist(), "none")
    reached: dict[str, tuple[int, float]] = {}

    def theirs() -> float:
        start = time.process_time()
        model = LogisticRegression(C=1 / (len(y) * ridge), tol=tol, max_iter=5000).fit(x, y)
        seconds = time.process_time() - start
        assert model.coef_.dtype == np.float32
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        reached["theirs"] = int(model.n_iter_[0]), gradient(features, targets, weight, bias, ridge)
        return seconds

    def ours() -> float:
        start = time.process_time()
        examples = HeadFeatures(features, targets, k, standardize=False)
        head = fit_logistic_head(examples, plain, ridge=ridge, tolerance=reached["theirs"][1])
        seconds = time.process_time() - start
        norm = gradient(features, targets, head.weight, head.bias, ridge)
        reached["ours"] = head.iterations, norm
        return seconds

    found = in_turn({"scikit-learn": theirs, "firstlight": ours}, rounds)
    return {
        "features": name,
        "ridge": f"{ridge:g}",
        "gradient, theirs": f"{reached['theirs'][1]:.1e}",
        "ours": f"{reached['ours'][1]:.1e}",
        "iterations, theirs": str(reached["theirs"][0]),
        "ours ": str(reached["ours"][0]),
        "seconds, theirs": f"{np.median(found['scikit-learn']):.2f}",
        "ours  ": f"{np.median(found['firstlight']):.2f}",
        "theirs / ours": ratio(found["scikit-learn"], found["firstlight"]),
    }


def several_rules(name: str, data: Examples, rules: list[str]) -> dict[str, str]:
    """Seconds of several rules in one call over those of their first alone."""
    x, y = (torch.from_numpy(part) for part in data)

    def fit(names: list[str]) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            retrain_last_layer(x, y, names)
            return time.process_time() - start

        return run

    found = in_turn({"all": fit(rules), "one": fit(rules[:1])}, ROUNDS)
    empty = dict.fromkeys(
        ("gradient, theirs", "ours", "iterations, theirs", "ours ", "seconds, theirs"), ""
    )
    return {
        "features": f"{name}: {len(rules)} rules over one ({rules[0]})",
        "ridge": "0.01",
        **empty,
        "ours  ": f"{np.median(found['all']):.2f}",
        "theirs / ours": f"all / one {ratio(found['all'], found['one'])}",
    }


def main() -> None:
    """Run and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of class folders of images")
    parser.add_argument("--weights", type=Path, help="tf_efficientnet_lite0.safetensors")
    parser.add_argument("--features", type=Path, help="file to keep their features in")
    arguments = parser.parse_args()
    if torch.get_num_threads() != 1:
        parser.error("CPU seconds compare on one thread only: set OMP_NUM_THREADS=1")
    warnings.simplefilter("error", ConvergenceWarning)
    well, ill = synthetic(20_000, 512, 100, 0), synthetic(20_000, 512, 100, 2)
    rows = [
        against_scikit_learn("20,000 x 512 x 100, well-conditioned", well, 1e-3, 1e-4),
        against_scikit_learn("20,000 x 512 x 100, well-conditioned", well, 1e-3, 1e-5),
        against_scikit_learn("20,000 x 512 x 100, ill-conditioned", ill, 1e-3, 1e-5),
    ]
    if arguments.images:
        kept = arguments.features
        if kept and kept.exists():
            x, y = torch.load(kept)
            real = x.numpy(), y.numpy()
        else:
            real = pretrained(arguments.images, arguments.weights)
            if kept:
                torch.save([torch.from_numpy(part) for part in real], kept)
        shape = f"{len(real[1]):,} x {real[0].shape[1]:,} x {int(real[1].max()) + 1}"
        for ridge in (1e-2, 1e-3):
            name = f"{shape}, tf_efficientnet_lite0 on CIFAR-10"
            rows.append(against_scikit_learn(name, real, ridge, 1e-5))
    large = synthetic(LARGE, 2_048, 1_000, 0)
    name = f"{LARGE:,} x 2,048 x 1,000 (a tenth of 115,846), well-conditioned"
    rows += [against_scikit_learn(name, large, 1e-3, tol, rounds=1) for tol in (1e-4, 1e-5)]
    eight = list(RULES)[:8]
    small = synthetic(12_000, 64, 10, 0)
    rows.append(several_rules("12,000 x 64 x 10", small, eight))
    publish(
        "last_layer_solver",
        "Last-layer solve beside scikit-learn's lbfgs, float32",
        rows,
        "Both in float32, from the same data, on the same threads; ours is stopped at the gradient "
        "(largest component, recomputed in float64) that scikit-learn reached at its tolerance. "
        "CPU seconds of one thread, so that other work on the machine hardly counts; ours include "
        "the copy of the features, their covariance, and the certificate in float64. Medians of "
        "two rounds in turn (one for the largest); ratios of each round, lowest to highest. "
        f"scikit-learn {version('scikit-learn')}. Ill-conditioned: standard deviations over two "
        "decades, rotated. The pretrained rows need --images and --weights.",
    )


if __name__ == "__main__":
    main()
