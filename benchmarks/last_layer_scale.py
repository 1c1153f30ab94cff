"""What the last-layer stage costs: iNaturalist's size by streaming, CIFAR's with its feature pass.

    OMP_NUM_THREADS=1 python benchmarks/last_layer_scale.py --images DIR --checkpoint CKPT

DIR holds CIFAR-10, CKPT is an ImageClassifier's on it (`cifar10_lt_methods.py` trains some).
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from side_by_side import in_turn, publish, ratio
from torch import Tensor

from firstlight.callbacks.retraining import DEFAULT_RULES
from firstlight.datamodules import CIFAR10DataModule
from firstlight.functional import (
    RULES,
    LastLayerStatistics,
    class_weights,
    fit_squared_head,
    retrain_last_layer,
    score_classifier,
)
from firstlight.lightning_modules import ImageClassifier

INATURALIST = 437_513, 2_048, 8_142
ROWS = 8_192
ROUNDS = 2


def chunks(n: int, d: int, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Classes of long-tailed sizes, their means in random directions, never all in memory."""
    generator = torch.Generator().manual_seed(0)
    share = 0.002 ** (torch.arange(k) / (k - 1))
    means = 0.2 * torch.randn(k, d, generator=generator)
    rest = torch.multinomial(share, n - k, replacement=True, generator=generator)
    targets = torch.cat([torch.arange(k), rest])
    for y in track(torch.split(targets, ROWS), "streaming"):
        yield means[y] + torch.randn(len(y), d, generator=generator), y


def streaming(n: int) -> dict[str, str]:
    """Two weightings of squared loss from one pass over features that are made as they go."""
    _, d, k = INATURALIST
    counts = torch.zeros(k)
    for _, y in chunks(n, 1, k):
        counts += torch.bincount(y, minlength=k)
    plain, inverse = (class_weights(counts.tolist(), rule) for rule in ("none", "square_root"))
    before, start = _peak(), time.process_time()
    statistics = LastLayerStatistics(d, k, torch.stack([plain.weights, inverse.weights]))
    spent = 0.0
    for x, y in chunks(n, d, k):
        begun = time.process_time()
        statistics.update(x, y)
        spent += time.process_time() - begun
    made = time.process_time() - start - spent
    begun = time.process_time()
    heads = [fit_squared_head(statistics, weights, ridge=0.1) for weights in (plain, inverse)]
    solved = time.process_time() - begun
    x, y = next(chunks(n, d, k))
    right = int((heads[1].logits(x).argmax(1) == y).sum())
    return {
        "what": f"{n:,} x {d:,} x {k:,} in chunks of {ROWS:,}, two weightings, squared loss",
        "CPU seconds": f"{spent:.0f} for the sums, {solved:.0f} for both heads (and {made:.0f} to "
        "make the features)",
        "result": f"peak memory {_peak():.1f} GiB ({before:.1f} before); all features would be "
        f"{4 * n * d / 2**30:.1f} GiB, all logits {4 * n * k / 2**30:.1f}; {right / len(y):.0%} of "
        "the first chunk right",
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def features_of(module: ImageClassifier, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """What the head takes, and targets: one pass in eval mode."""
    found: list[Tensor] = []
    head = module.model.get_classifier()
    hook = head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    targets = []
    with torch.no_grad():
        for images, y in loader:
            module(images)
            targets.append(y)
    hook.remove()
    return torch.cat(found), torch.cat(targets)


def cifar(images: str, checkpoint: str) -> list[dict[str, str]]:
    """Eight rules over one, each with its feature pass; and the stage beside the passes."""
    module = ImageClassifier.load_from_checkpoint(checkpoint, weights_only=True).eval()
    data = CIFAR10DataModule(images, imbalance_factor=100, val=0, holdout=0, eval_batch_size=250)
    data.setup("fit")
    eight, seconds = list(RULES)[:8], {}

    def timed(name: str, rules: list[str]) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            x, y = features_of(module, data.plain_train_dataloader())
            passed = time.process_time()
            retrain_last_layer(x, y, rules, num_classes=10)
            seconds[name] = passed - start, time.process_time() - passed
            return time.process_time() - start

        return run

    sides = {"eight": timed("eight", eight), "one": timed("one", eight[:1])}
    found = in_turn(sides, ROUNDS)
    loaders = data.plain_train_dataloader(), data.test_dataloader()
    train, test = (features_of(module, loader) for loader in loaders)
    start = time.process_time()
    heads, _ = retrain_last_layer(*train, list(DEFAULT_RULES), num_classes=10)
    for head in heads.values():
        score_classifier(
            [(head.logits(test[0]), test[1])], 10, probabilities=head.loss != "squared"
        )
    stage = time.process_time() - start
    size = f"{len(train[1]):,} x {train[0].shape[1]} x 10"
    return [
        {
            "what": f"{size}, ResNet-32: eight rules with a feature pass, over one with its own",
            "CPU seconds": f"pass {seconds['one'][0]:.1f}, one rule {seconds['one'][1]:.2f}, eight "
            f"{seconds['eight'][1]:.2f}",
            "result": f"{ratio(found['eight'], found['one'])} times as long (1.5 asked)",
        },
        {
            "what": f"{size}: the callback's rules fitted, scored on {len(test[1]):,} images",
            "CPU seconds": f"{stage:.2f}",
            "result": "beside the feature passes (20 asked)",
        },
    ]


def main() -> None:
    """Run and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=INATURALIST[0], help="of the streaming")
    options = parser.parse_args()
    if torch.get_num_threads() != 1:
        parser.error("CPU seconds are of one thread: set OMP_NUM_THREADS=1")
    rows = [streaming(options.examples), *cifar(options.images, str(options.checkpoint))]
    publish(
        "last_layer_scale",
        "The last-layer stage at the sizes of iNaturalist 2018 and of CIFAR-10-LT",
        rows,
        "Seconds of one thread's processor time. The streamed features are synthetic: Gaussian "
        "classes, float32, summed in float64.",
    )


if __name__ == "__main__":
    main()
