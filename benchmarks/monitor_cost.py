"""What the default monitors cost of a run: seconds of a real one, scaled to 10,000 steps.

    python benchmarks/monitor_cost.py

A ResNet-20 on images of CIFAR's size (noise, in memory), batch 128, through the Trainer. One
measurement of each monitor in its default configuration is timed against one step of the same run;
the share is that of the default schedule over 10,000 steps.
"""

import tempfile
from statistics import median
from time import perf_counter

import torch
from lightning.pytorch import Callback, Trainer
from side_by_side import publish
from torch.utils.data import DataLoader, TensorDataset

from firstlight.callbacks import FisherTraceMonitor, SharpnessMonitor
from firstlight.functional.measurement_schedule import MeasurementSchedule
from firstlight.lightning_modules import ImageClassifier
from firstlight.runfolder import RunFolder

STEPS, BATCH, RUN = 40, 128, 10_000


class Clock(Callback):
    """Seconds from the start of a training batch, after the monitors', to its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        """Start; the last callback of the list, so that the monitors have measured."""
        self.start = perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        """Stop."""
        self.seconds.append(perf_counter() - self.start)


def main() -> None:
    """Train, read the seconds from the run folder, publish."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS * BATCH, 3, 32, 32, generator=generator)
    targets = torch.randint(10, (len(images),), generator=generator)
    data = TensorDataset(images, targets)
    model = ImageClassifier("resnet20_cifar", num_classes=10, seed=0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"probe": (images[:256], targets[:256]), "run_dir": f"{folder}/run"}
        monitors = [
            kind(every_n_train_steps=10, **settings)
            for kind in (FisherTraceMonitor, SharpnessMonitor)
        ]
        Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_model_summary=False, callbacks=[*monitors, clock],
        ).fit(model, DataLoader(data, BATCH))  # fmt: skip
        opened = monitors[0].records.folder
        assert opened is not None
        seconds = {
            name: [r["seconds"] for r in RunFolder.open(opened.path).read(name).to_pylist()
                   if not r["block"]]
            for name in ("fisher_trace", "sharpness")
        }  # fmt: skip
    step = median(clock.seconds[5:])
    times = MeasurementSchedule.parse([[0, 10], [500, 500]]).count(RUN)
    publish(
        "monitor_cost",
        "Time of the default monitors in a real run",
        [
            {
                "monitor": name,
                "one measurement / one training step": f"{median(found[1:]) / step:.1f}",
                "measurements in 10,000 steps": str(times),
                "share of the training's time": f"{times * median(found[1:]) / (RUN * step):.2%}",
            }
            for name, found in seconds.items()
        ],
        "256 examples; medians over the run, the first measurement left out, in which the kernels "
        "are checked once.",
    )


if __name__ == "__main__":
    main()
