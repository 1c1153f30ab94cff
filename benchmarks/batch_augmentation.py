"""What is done to training crops once they are cut: in batches against image by image.

torchvision's transforms take one PIL image each on the CPU, and the results are stacked; firstlight
takes the stacked uint8 batch on the training device. Time is the processor's on the CPU.

    python benchmarks/batch_augmentation.py [--rounds 7] [--device cpu]
"""

import argparse
import statistics
import time
from functools import partial

import torch
from PIL import Image
from side_by_side import in_turn, publish, ratio, seconds
from torchvision.transforms import v2

from firstlight.datamodules.batch_augmentation import BatchAugmentation
from firstlight.datamodules.preprocessing import IMAGENET_PREPROCESSING as HOW


def rows_of(device: torch.device, rounds: int, size: int, count: int) -> list[dict[str, str]]:
    """What is done to crops: image by image on the CPU against in batches, on this device."""
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    pictures = [Image.fromarray(crop.numpy()) for crop in crops]
    batch = crops.permute(0, 3, 1, 2)
    tail = [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(HOW.mean, HOW.std),
    ]
    rows = []
    for name, jitter, erasing in (
        ("flip, normalise", 0, 0),
        ("flip, normalise, erase 0.25", 0, 0.25),
        ("flip, colours 0.4, normalise, erase 0.25", 0.4, 0.25),
    ):
        steps = [v2.RandomHorizontalFlip(), *[v2.ColorJitter(*(jitter,) * 3)] * (jitter > 0), *tail]
        single = v2.Compose([*steps, *[v2.RandomErasing(erasing)] * (erasing > 0)])
        augmentation = BatchAugmentation(HOW, device, 0.5, jitter, erasing)

        def one_by_one(single: v2.Compose = single) -> None:
            torch.stack([single(picture) for picture in pictures])

        def together(augmentation: BatchAugmentation = augmentation) -> None:
            augmentation(batch, augmentation.draw(count, (size, size), generator))
            if device.type == "cuda":
                torch.cuda.synchronize()

        sides = {"torchvision": one_by_one, "firstlight": together}
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        times = in_turn({n: partial(seconds, f, 5, clock) for n, f in sides.items()}, rounds)

        def rate(values: list[float]) -> str:
            return f"{count / statistics.median(values):,.0f}"

        rows.append(
            {
                "operations": name,
                "torchvision, images a second": rate(times["torchvision"]),
                "firstlight, images a second": rate(times["firstlight"]),
                "times faster": ratio(times["torchvision"], times["firstlight"]),
            }
        )
    return rows


def main() -> None:
    """Measure in turn and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size, count = 224, 32
    rows = rows_of(torch.device(arguments.device), arguments.rounds, size, count)
    publish(
        "batch_augmentation",
        f"Augmentation of batches of {count} crops of {size} px",
        rows,
        f"{arguments.rounds} rounds of five batches in turn; device {arguments.device}, one "
        "thread. Ratio by round: median, lowest and highest.",
    )


if __name__ == "__main__":
    main()
