"""``firstlight data check``, ``show`` and ``pack``: look at data before training; pack them."""

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from firstlight.data.check import data_check
from firstlight.data.given import add_data_arguments, given_data, spelt_out
from firstlight.data.pack import data_pack
from firstlight.datamodules.base import ImageDataModule
from firstlight.figures.training_images import training_images_figure
from firstlight.terminal import console

_USAGE = """\
usage: firstlight data check SOURCE   unreadable files, duplicates, missing classes; a report
       firstlight data show SOURCE    a grid of augmented training images with their labels
       firstlight data pack SOURCE OUT   the images in large files, to be streamed; with --data or
                                      --config in place of SOURCE, OUT alone

SOURCE is a folder of images by class, a manifest, or what fit takes: --data CLASS --data.OPTION,
--config FILE. More: firstlight data check --help"""


def data_show(
    data: "ImageDataModule[Any]", output: str | Path = "training_images.png", count: int = 48
) -> Path:
    """Save a grid of the first training images of epoch 0, augmented, with their labels.

    Args:
        data: set up here if it is not.
        output: the PNG; an SVG of the same name stands beside it.
        count: images at most.

    Raises:
        ValueError: for a count below 1.
    """
    if count < 1:
        raise ValueError(f"--count is at least 1, got {count}")
    data.setup("fit")
    batches = islice(data.train_dataloader(), -(-count // data.batch_size))
    pairs = [data.on_after_batch_transfer(batch, 0) for batch in batches]
    images, targets = (torch.cat(part)[:count] for part in zip(*pairs, strict=True))
    file = Path(output).with_suffix(".png")
    return training_images_figure(images, targets, data.class_names, data.mean, data.std, file)


def command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight data`` and one of its actions; a check that finds an error exits with 1."""
    action, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if action not in _DESCRIPTIONS:
        sys.exit(_USAGE if action in ("", "-h", "--help") else f"no {action!r}:\n{_USAGE}")
    parser = ArgumentParser(prog=f"firstlight data {action}", description=_DESCRIPTIONS[action])
    add_data_arguments(parser)
    if action == "check":
        parser.add_argument("--output", default="data_check", help="folder of the report")
        options = parser.parse_args(spelt_out(rest))
        output = options.pop("output")
        errors = [
            f for f in data_check(given_data(options, parser), output) if f.severity == "error"
        ]
        if errors:
            sys.exit(f"firstlight data check: {len(errors)} kind(s) of error, see above")
        return
    if action == "pack":
        parser.add_argument("output", help="folder to write")
        options = parser.parse_args(spelt_out(rest))
        output = options.pop("output")
        data_pack(given_data(options, parser), output)
        return
    parser.add_argument("--output", default="training_images.png", help="the PNG to write")
    parser.add_argument("--count", type=int, default=48, help="images at most")
    options = parser.parse_args(spelt_out(rest))
    output, count = options.pop("output"), options.pop("count")
    console.print(data_show(given_data(options, parser), output, count), soft_wrap=True)


_DESCRIPTIONS = {
    "check": "Decode every image once and look for what spoils training or its evaluation.",
    "show": "Save training images as the network sees them: cropped, augmented, with labels.",
    "pack": "Write the splits of image files as litdata chunks, which StreamedDataModule reads.",
}
