"""An epoch of ResNet-32 through ImageClassifier and the Trainer against a bare loop.

    python benchmarks/trainer_overhead.py [--batches 20] [--rounds 7] [--device cpu]

Both sides take the same batches from the same loader through the same steps (cross-entropy, SGD
with momentum); the Trainer's also accumulates loss, top-1, top-5 and macro accuracy and logs.
Epochs alternate.
"""

import argparse
import tempfile
import time
import warnings
from typing import Any

import lightning.pytorch as L
import timm
import torch
from lightning.pytorch.loggers import CSVLogger
from side_by_side import in_turn, publish, ratio
from torch.nn import functional as F

from firstlight.datamodules.loaders import ResidentLoader
from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.resident import ResidentImages, TrainingPipeline
from firstlight.datamodules.samplers import ShuffledSampler
from firstlight.lightning_modules import ImageClassifier

BATCH = 128
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4}


def loader(batches: int, device: torch.device) -> ResidentLoader:
    """Random images of CIFAR's size on the device."""
    count = batches * BATCH
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = ResidentImages(images, (torch.arange(count) % 10).tolist(), list("abcdefghij"))
    how = Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    pipeline = TrainingPipeline(images, how, device, padding=4, horizontal_flip=True, erasing=0.0)
    return ResidentLoader(data, pipeline, ShuffledSampler(data, seed=0), BATCH)


def finished(device: torch.device) -> float:
    """The time, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class BareLoop:
    """What one would write without a framework."""

    def __init__(self, batches: int, device: torch.device) -> None:
        self.model = timm.create_model("resnet32_cifar", num_classes=10).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD)
        self.loader, self.device = loader(batches, device), device

    def __call__(self) -> float:
        """Seconds of one epoch."""
        self.model.train()
        start = finished(self.device)
        for images, targets in self.loader:
            loss = F.cross_entropy(self.model(images), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return finished(self.device) - start


class Clock(L.Callback):
    """Seconds from an epoch's first hook to its last."""

    def on_train_epoch_start(self, *_: Any) -> None:
        """First."""
        self.start = finished(self.device)

    def on_train_end(self, *_: Any) -> None:
        """Last, after the epoch's metrics were computed and logged."""
        self.seconds = finished(self.device) - self.start

    def __init__(self, device: torch.device) -> None:
        self.device = device


class ThroughTrainer:
    """The same through ImageClassifier and Lightning."""

    def __init__(self, batches: int, device: torch.device) -> None:
        optimizer = {"class_path": "torch.optim.SGD", "init_args": SGD}
        self.module = ImageClassifier("resnet32_cifar", num_classes=10, optimizer=optimizer)
        self.loader, self.device = loader(batches, device), device

    def __call__(self) -> float:
        """Seconds of one epoch."""
        clock = Clock(self.device)
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                max_epochs=1,
                accelerator=self.device.type,
                devices=1,
                logger=CSVLogger(folder),
                callbacks=[clock],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(self.module, self.loader)
        return clock.seconds


def main() -> None:
    """Measure in turn and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    sides = {
        "trainer": ThroughTrainer(arguments.batches, device),
        "bare loop": BareLoop(arguments.batches, device),
    }
    times = in_turn(sides, arguments.rounds)
    per_step = {name: 1e3 * min(values) / arguments.batches for name, values in times.items()}
    row = {
        "device": device.type,
        "bare loop, ms a step": f"{per_step['bare loop']:.2f}",
        "Trainer, ms a step": f"{per_step['trainer']:.2f}",
        "Trainer / bare": ratio(times["trainer"], times["bare loop"]),
        "of the fastest": f"{min(times['trainer']) / min(times['bare loop']):.3f}",
    }
    publish(
        "trainer_overhead",
        f"ResNet-32, batch {BATCH}: epochs of {arguments.batches} steps through ImageClassifier",
        [row],
        f"{arguments.rounds} epochs each, in turn; ratios by round: median, lowest and highest.",
    )


if __name__ == "__main__":
    main()
