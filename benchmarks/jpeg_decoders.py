"""Which decoder reads training crops fastest, and how near its crops are to PIL's.

Every side reads the same files from memory and the same crops, and resizes them to 224 px. All but
the first two end in torch's antialiased resize of uint8. Decoders that are not installed are left
out.

    python benchmarks/jpeg_decoders.py [--images data/imagenet-samples] [--weights FILE]

``--weights`` is a file of tf_efficientnet_lite0: its top-1 on the crops is given too.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from side_by_side import in_turn, publish, ratio
from timm.data import ImageNetInfo
from torch import Tensor

from firstlight.datamodules.jpeg_regions import SimpleJpeg, best_decoder
from firstlight.datamodules.random_crops import RandomCrops
from firstlight.functional import augment

SIZE, SEEDS = 224, 2
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
Whole = Callable[[bytes], np.ndarray]


def whole_decoders() -> dict[str, Whole]:
    """Functions that decode all of a file, of the libraries that are installed."""
    found: dict[str, Whole] = {}

    def offer(name: str, make: Callable[[], Whole]) -> None:
        try:
            found[name] = make()
        except ImportError:
            print(f"{name} is not installed")

    def torchvision_io() -> Whole:
        from torchvision.io import ImageReadMode, decode_jpeg

        def decode(content: bytes) -> np.ndarray:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_jpeg(data, ImageReadMode.RGB).permute(1, 2, 0).numpy()

        return decode

    def opencv() -> Whole:
        import cv2

        cv2.setNumThreads(1)
        return lambda b: cv2.imdecode(np.frombuffer(b, np.uint8), cv2.IMREAD_COLOR_RGB)

    def kornia() -> Whole:
        from kornia_rs.io import decode_image_jpeg

        return lambda content: np.asarray(decode_image_jpeg(content))

    def imagecodecs_() -> Whole:
        import imagecodecs

        return lambda content: imagecodecs.jpeg8_decode(content, outcolorspace="RGB")

    def ajpegli_() -> Whole:
        import ajpegli

        return lambda content: ajpegli.imdecode(content)

    offer("torchvision.io", torchvision_io)
    offer("OpenCV", opencv)
    offer("kornia-rs", kornia)
    offer("imagecodecs", imagecodecs_)
    offer("ajpegli", ajpegli_)
    return found


class Sides:
    """Readers of crops, all of the same signature."""

    def __init__(self) -> None:
        self._pil = RandomCrops(SIZE, SCALE, RATIO, "bicubic")

    def pil(self, content: bytes) -> Tensor:
        """All of the image by PIL: the reference."""
        image = Image.open(io.BytesIO(content)).convert("RGB")
        return self._pil._reference(image, self._pil.draw(image.height, image.width))

    def pil_draft(self, content: bytes) -> Tensor:
        """PIL at a reduced size where the crop allows, and a resize of the part."""
        image = Image.open(io.BytesIO(content))
        full = image.width
        box = self._pil.draw(image.height, image.width)
        by = min(box.height, box.width) // SIZE
        if by >= 2:
            image.draft("RGB", (image.width // by, image.height // by))
        scale = image.width / full
        part = (box.left, box.top, box.left + box.width, box.top + box.height)
        resized = image.convert("RGB").resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC, box=tuple(side * scale for side in part)
        )
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def whole(self, decode: Whole, content: bytes) -> Tensor:
        """All of the image by another library, cut and resized by torch."""
        pixels = decode(content)
        if pixels.size == pixels.shape[0] * pixels.shape[1]:  # grey stays grey in some libraries
            pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
        top, left, height, width = self._pil.draw(*pixels.shape[:2])
        part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        images = torch.from_numpy(part).unsqueeze(0).permute(0, 3, 1, 2)
        return augment.resize(images, (SIZE, SIZE), "bicubic")[0]

    def fast(self, crops: RandomCrops, content: bytes) -> Tensor:
        """Our own decoders."""
        jpeg = crops._decoder.header(content)
        pixels = crops._region(jpeg, crops.draw(jpeg.height, jpeg.width))
        return crops._resized(pixels)


def all_sides() -> dict[str, Callable[[bytes], Tensor]]:
    """Name and reader of every side."""
    sides = Sides()
    found = {"PIL (reference)": sides.pil, "PIL, draft and box": sides.pil_draft}
    found |= {name: partial(sides.whole, decode) for name, decode in whole_decoders().items()}
    for decoder in (SimpleJpeg(), best_decoder()):
        crops = RandomCrops(SIZE, SCALE, RATIO, "bicubic", decoder)
        found[decoder.name] = partial(sides.fast, crops)
    return found


def crops_of(read: Callable[[bytes], Tensor], files: list[bytes], seed: int) -> Tensor:
    """The same crops for every reader."""
    torch.manual_seed(seed)
    return torch.stack([read(content) for content in files])


def top1(model: torch.nn.Module, images: Tensor, targets: Tensor) -> int:
    """Number of images whose class has the largest logit."""
    mean = std = (0.5, 0.5, 0.5)
    with torch.inference_mode():
        parts = augment.normalize(images, mean, std).split(50)
        return int((torch.cat([model(part).argmax(1) for part in parts]) == targets).sum())


def enlarged(content: bytes) -> bytes:
    """The image at 800 x 600, quality 90."""
    file = io.BytesIO()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.resize((800, 600), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def table(
    name: str, files: list[bytes], rounds: int, weights: Path | None, targets: Tensor
) -> list[dict[str, str]]:
    """Speed and fidelity of every side on some files."""
    sides = all_sides()

    def measure(read: Callable[[bytes], Tensor]) -> float:
        start = time.process_time()
        crops_of(read, files, 0)
        return time.process_time() - start

    times = in_turn({n: partial(measure, read) for n, read in sides.items()}, rounds)
    model = None
    if weights is not None:
        model = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(weights)).eval()
    rows, reference = [], [crops_of(sides["PIL (reference)"], files, s) for s in range(SEEDS)]
    judged = ("PIL (reference)", SimpleJpeg.name, best_decoder().name)
    for side, read in sides.items():
        crops = [crops_of(read, files, seed) for seed in range(SEEDS)]
        away = torch.stack(
            [(a.int() - b.int()).abs() for a, b in zip(crops, reference, strict=True)]
        )
        rows.append(
            {
                "images": name,
                "decoder": side,
                "ms a crop": f"{1000 * statistics.median(times[side]) / len(files):.2f}",
                "times PIL's speed": ratio(times["PIL (reference)"], times[side]),
                "mean difference": f"{away.float().mean():.2f}",
                "top-1 of crops": ""
                if model is None or side not in judged
                else f"{sum(top1(model, c, targets) for c in crops)} of {SEEDS * len(files)}",
            }
        )
    return rows


def main() -> None:
    """Measure in turn and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path("data/imagenet-samples"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(arguments.images.rglob("*.JPEG"))
    files = [path.read_bytes() for path in paths]
    wnids = ImageNetInfo().label_names()
    targets = torch.tensor([wnids.index(path.parent.name) for path in paths])
    how = arguments.rounds, arguments.weights, targets
    rows = table("as they are", files, *how)
    rows += table("800 x 600", [enlarged(content) for content in files], *how)
    publish(
        "jpeg_decoders",
        f"Random crops of JPEG files, resized to {SIZE} px, by decoder",
        rows,
        f"{len(files)} images; time on one core, {arguments.rounds} rounds in turn; ratio by "
        "round: median, lowest and highest. Mean difference: absolute, in grey levels, to PIL's "
        "pixels of the same crops, two of each image; top-1 of tf_efficientnet_lite0 on them.",
    )


if __name__ == "__main__":
    main()
