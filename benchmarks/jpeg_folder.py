"""Training input from a folder of JPEGs: torchvision and timm against firstlight's decoders.

All sides make the same thing: shuffled batches of float32 images, randomly cropped, resized
(bicubic), flipped, normalised. Rates are images per second of processor time, in one process
without workers: per core, and little disturbed by what else the machine does.

    python benchmarks/jpeg_folder.py [--images data/imagenet-samples] [--rounds 7] [--tree FOLDER]
"""

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from side_by_side import in_turn, publish, ratio
from timm.data import ImageDataset, create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from firstlight.datamodules import ImageFolderDataModule
from firstlight.datamodules.jpeg_regions import SimpleJpeg, best_decoder
from firstlight.datamodules.preprocessing import IMAGENET_PREPROCESSING as HOW
from firstlight.datamodules.random_crops import RandomCrops

BATCH, PASSES = 64, 2
SETTINGS = {
    "as they are, 224 px": (224, None),
    "as they are, 160 px": (160, None),
    "as they are, 128 px": (128, None),
    "as they are, 112 px": (112, None),
    "800 x 600, 224 px": (224, (800, 600)),
}
DECODERS = ("PIL", "simplejpeg", "libturbojpeg")


def resized_copy(images: Path, size: tuple[int, int], folder: Path) -> Path:
    """Encode the images anew at another size, quality 90."""
    for file in images.rglob("*.JPEG"):
        copy = folder / file.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(file).convert("RGB")
        image.resize(size, Image.Resampling.BICUBIC).save(copy, "JPEG", quality=90)
    return folder


def peers(images: Path, size: int, workers: int = 0) -> dict[str, Iterable]:
    """Torchvision's and timm's loaders, as they are used."""
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(HOW.mean, HOW.std),
        ]
    )
    timms = create_transform(
        size, is_training=True, color_jitter=None, auto_augment=None, interpolation="bicubic"
    )
    how = {"shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}
    return {
        "torchvision": DataLoader(ImageFolder(str(images), theirs), BATCH, **how),
        "timm": DataLoader(ImageDataset(str(images), transform=timms), BATCH, **how),
    }


def ours(images: Path, size: int, decoder: str, workers: int = 0) -> Iterable:
    """Our own loader with one of its decoders."""
    data = ImageFolderDataModule(
        str(images), img_size=size, batch_size=BATCH, num_workers=workers, decoder="pil",
        val=0, holdout=0, test=0, verify=False,
    )  # fmt: skip
    data.setup("fit")
    loader = data.train_dataloader()
    chosen = {"PIL": None, "simplejpeg": SimpleJpeg(), "libturbojpeg": best_decoder()}[decoder]
    crops = RandomCrops(size, data.scale, data.ratio, data.preprocessing.interpolation, chosen)
    loader.dataset._read._crops = crops
    return loader


def rate(loader: Iterable, clock: Callable[[], float]) -> float:
    """Images per second of some epochs."""
    start, count = clock(), 0
    for _ in range(PASSES):
        for images, _ in loader:
            count += len(images)
    return count / (clock() - start)


def loaders_table(images: Path, rounds: int, scratch: Path) -> list[dict[str, str]]:
    """Rates in one process, setting by setting, and with two workers by the clock on the wall."""
    rows = []
    for name, (size, shape) in SETTINGS.items():
        folder = images if shape is None else resized_copy(images, shape, scratch / "resized")
        rows += loader_rows(name, folder, size, 0, rounds)
    return rows + loader_rows("as they are, 224 px, two workers", images, 224, 2, rounds)


def loader_rows(name: str, images: Path, size: int, workers: int, rounds: int) -> list:
    """One setting: every side's rate, and its ratio to torchvision's and timm's by round."""
    sides = peers(images, size, workers)
    sides |= {f"firstlight, {d}": ours(images, size, d, workers) for d in DECODERS}
    clock = time.perf_counter if workers else time.process_time
    rates = in_turn({n: partial(rate, loader, clock) for n, loader in sides.items()}, rounds)
    return [
        {
            "images": name,
            "side": side,
            "images a second": f"{statistics.median(values):,.0f}",
            "times torchvision's": ratio(values, rates["torchvision"]),
            "times timm's": ratio(values, rates["timm"]),
        }
        for side, values in rates.items()
    ]


OPENING = """
import time
from pathlib import Path
from firstlight.datamodules.image_files import scan_classes
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith(key)).split()[1]) / 1024
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
start = time.perf_counter()
files = scan_classes(Path({root!r}))
end = time.perf_counter()
print(len(files.paths), end - start, status("VmHWM") - before)
"""


def index_rows(root: Path, files: int) -> list[dict[str, str]]:
    """Opening a large tree of empty files, in new processes: without and with a kept index."""
    train = root / "train"
    if not train.is_dir():
        for label in range(1000):
            folder = train / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(files // 1000):
                os.close(os.open(folder / f"{folder.name}_{number:05d}.JPEG", os.O_CREAT))
        time.sleep(3)  # a tree that has just changed is not kept
    rows = []
    for side in ("listed", "opened from the kept index", "opened from the kept index, again"):
        done = subprocess.run(
            [sys.executable, "-c", OPENING.format(root=str(train))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        count, took, memory = done.stdout.split()
        rows.append(
            {
                "images": f"{int(count):,} empty files, 1,000 folders",
                "side": f"{side}: {float(took):.2f} s, {float(memory):.0f} MiB",
                "images a second": "",
                "times torchvision's": "",
                "times timm's": "",
            }
        )
    return rows


def main() -> None:
    """Measure in turn and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path("data/imagenet-samples"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tree", type=Path, help="where the tree of empty files is, or is to be")
    parser.add_argument("--files", type=int, default=1_281_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "cache")
        rows = loaders_table(arguments.images, arguments.rounds, Path(scratch))
        rows += index_rows(arguments.tree or Path(scratch) / "tree", arguments.files)
    publish(
        "jpeg_folder",
        "Training input from JPEG files: random crops, resized, flipped, normalised",
        rows,
        f"{len(list(arguments.images.rglob('*.JPEG')))} images, {PASSES} passes a round, "
        f"{arguments.rounds} rounds in turn; per second of processor time in one process, with "
        "two workers per second on the wall. Ratio by round: median, lowest and highest.",
    )


if __name__ == "__main__":
    main()
