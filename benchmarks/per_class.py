"""Counting classes: PerClassCounts against torchmetrics, batch 256, on the CPU.

    python benchmarks/per_class.py

Times alternate in one process; memory is the growth of the peak resident set of a process of its
own. The collection gives accuracy, precision, recall, F1, top-5 accuracy and calibration error;
PerClassCounts gives those and confidence, log-likelihood and Brier score.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from side_by_side import in_turn, publish, ratio, seconds
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from firstlight.callbacks.batches import LogitsTap
from firstlight.callbacks.evaluation import Evaluation
from firstlight.functional import PerClassCounts

BATCH, ROUNDS = 256, 15
SIZES = {10: 300, 1000: 60, 8142: 1}
"""Classes, and updates in a round."""


def collection(classes: int) -> MetricCollection:
    """What a user of torchmetrics would put together."""
    kinds = (MulticlassAccuracy, MulticlassPrecision, MulticlassRecall, MulticlassF1Score)
    metrics = {kind.__name__: kind(classes, average=None) for kind in kinds}
    metrics["top5"] = MulticlassAccuracy(classes, average=None, top_k=5)
    metrics["calibration"] = MulticlassCalibrationError(classes)
    return MetricCollection(metrics)


class Monitored:
    """A batch's whole way through PerClassMonitor: the caught logits, counts, kept predictions."""

    def __init__(self, classes: int) -> None:
        self.module = torch.nn.Identity()
        self.tap = LogitsTap(self.module)
        self.evaluation = Evaluation("val", None, classes, None)

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """What the hooks of one batch do."""
        self.tap.armed = True
        self.module(logits)
        self.evaluation.update(self.module, (logits, targets), self.tap, None)


SIDES: dict[str, Callable[[int], Any]] = {
    "accuracy, torchmetrics": lambda c: MulticlassAccuracy(c, average=None),
    "accuracy, firstlight": lambda c: PerClassCounts(c, top_k=None, calibration_bins=None),
    "all, torchmetrics": collection,
    "all, firstlight": PerClassCounts,
    "all, PerClassMonitor": Monitored,
}


def updater(side: str, classes: int) -> Callable[[], None]:
    """One update of a side on a fixed batch; MetricCollection finds its groups beforehand."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, classes, generator=generator)
    targets = torch.randint(0, classes, (BATCH,), generator=generator)
    metric = SIDES[side](classes)
    metric.update(logits, targets)
    return partial(metric.update, logits, targets)


def peak_growth(side: str, classes: int) -> float:
    """MiB by which ten updates raise the peak of a fresh process that has made its inputs."""
    run = subprocess.run(
        [sys.executable, __file__, side, str(classes)], capture_output=True, text=True, check=True
    )
    return float(run.stdout)


def report_peak(side: str, classes: int) -> None:
    """The other end of `peak_growth`."""
    logits, targets = torch.randn(BATCH, classes), torch.randint(0, classes, (BATCH,))
    SIDES[side](classes).update(logits, targets)  # lazily loaded code does not count
    metric = SIDES[side](classes)
    # ru_maxrss would start from the parent's; Linux lets a process reset its own peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    for _ in range(10):
        metric.update(logits, targets)
    print(peak() - before)


def peak() -> float:
    """Peak resident MiB of this process."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Measure all sizes and publish the table."""
    rows = []
    for classes, updates in SIZES.items():
        sides = {side: updater(side, classes) for side in SIDES}
        times = in_turn({s: partial(seconds, run, updates) for s, run in sides.items()}, ROUNDS)
        for ours in [side for side in SIDES if "torchmetrics" not in side]:
            peer = f"{ours.partition(',')[0]}, torchmetrics"
            memory = {side: peak_growth(side, classes) for side in (peer, ours)}
            rows.append(
                {
                    "classes": f"{classes:,}",
                    "what": ours.replace(", firstlight", ", PerClassCounts"),
                    "torchmetrics, ms": f"{1e3 * sorted(times[peer])[ROUNDS // 2]:.3f}",
                    "firstlight, ms": f"{1e3 * sorted(times[ours])[ROUNDS // 2]:.3f}",
                    "times faster": ratio(times[peer], times[ours]),
                    "torchmetrics, MiB": f"{memory[peer]:.1f}",
                    "firstlight, MiB": f"{memory[ours]:.1f}",
                }
            )
    publish(
        "per_class",
        f"One update of per-class counts, batch {BATCH}, CPU",
        rows,
        'Ratios are the median of rounds measured in turn, lowest and highest in brackets. "all": '
        "accuracy, precision, recall, F1, top-5, calibration error.",
    )


if __name__ == "__main__":
    report_peak(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
