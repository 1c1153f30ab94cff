"""Training input for CIFAR-sized images: batched on the device against one image at a time.

Both sides produce the same thing: shuffled batches of 128 float32 images, randomly cropped out of
zero padding, flipped, normalised. The peer is torchvision's transforms in a DataLoader with two
workers; the other is the loader of firstlight's small data sets.

    python benchmarks/input_pipeline.py [--rounds 7] [--device cpu]
"""

import argparse
import statistics
import time
from collections.abc import Iterable
from functools import partial

import torch
from PIL import Image
from side_by_side import in_turn, publish, ratio
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from firstlight.datamodules.loaders import ResidentLoader
from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.resident import ResidentImages, TrainingPipeline
from firstlight.datamodules.samplers import ShuffledSampler

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
EXAMPLES, BATCH, WORKERS = 50_000, 128, 2


class PerImage(Dataset):
    """torchvision's CIFAR10 as it is used: an array in memory, one PIL image per item."""

    def __init__(self, images: torch.Tensor, targets: list[int]) -> None:
        self.images, self.targets = images.permute(0, 2, 3, 1).contiguous().numpy(), targets
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


def images_per_second(loader: Iterable, device: torch.device) -> float:
    """Run one epoch, each batch moved to the device, and return the rate."""
    start, count = time.perf_counter(), 0
    for images, targets in loader:
        count += len(images.to(device))
        targets.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def loaders(device: torch.device) -> dict[str, Iterable]:
    """Both loaders over the same random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (EXAMPLES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    targets = (torch.arange(EXAMPLES) % 10).tolist()
    data = ResidentImages(images, targets, [str(c) for c in range(10)])
    how = Preprocessing(32, 1.0, "bilinear", MEAN, STD)
    pipeline = TrainingPipeline(images, how, device, padding=4, horizontal_flip=True, erasing=0.0)
    peer = DataLoader(
        PerImage(images, targets),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    ours = ResidentLoader(data, pipeline, ShuffledSampler(data, seed=0), BATCH)
    return {f"torchvision, {WORKERS} workers": peer, "firstlight, batched": ours}


def main() -> None:
    """Measure in turn and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sides = loaders(device)
    measures = {n: partial(images_per_second, load, device) for n, load in sides.items()}
    rates = in_turn(measures, arguments.rounds)
    peer, ours = rates.values()
    rows = [
        {"side": name, "images a second": f"{statistics.median(values):,.0f}", "times faster": ""}
        for name, values in rates.items()
    ]
    rows[-1]["times faster"] = ratio(ours, peer)
    publish(
        "input_pipeline",
        f"Training input: {EXAMPLES:,} images of 3 x 32 x 32, crop, flip, normalise",
        rows,
        f"{arguments.rounds} epochs each, in turn; device {device.type}. Ratio by round: median, "
        "lowest and highest.",
    )


if __name__ == "__main__":
    main()
