"""``firstlight init``: a commented YAML file that fine-tunes a backbone on these images."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from jsonargparse import auto_cli

from firstlight.data.given import images_at
from firstlight.data.init_file import Found, init_file
from firstlight.datamodules import ImageFolderDataModule
from firstlight.datamodules.examination import examine
from firstlight.datamodules.image_files import for_each_file
from firstlight.runfolder import replacing
from firstlight.terminal import console

EXAMINED = 2_000
"""Images that are decoded, evenly over the training data: all of a small set, a part of a large."""

UPDATES = 2_000
"""Optimiser steps that the number of epochs, 10 to 50, is chosen for (our choice)."""


def init(
    source: Path,
    output: Path | None = None,
    model_name: str = "resnet50",
    checkpoint_path: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Count classes, look at the images, and write a YAML file for ``firstlight fit``.

    Args:
        source: a folder of images by class, or a manifest (.csv, .parquet).
        output: the file to write; default: the source's name with .yaml, in this folder.
        model_name: the timm backbone to fine-tune.
        checkpoint_path: a local file of its weights; default: timm's published ones, fetched.
        overwrite: replace an existing file.

    Returns:
        The file written. Cost: up to 2,000 images decoded.

    Raises:
        FileExistsError: where the file exists and ``overwrite`` is False.
        OSError: for missing data, or a folder that cannot be written.
        ValueError: for data that a run would refuse, as it would; an unknown backbone.
    """
    source = source.absolute()
    target = Path(f"{source.stem}.yaml") if output is None else output
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: pass --output FILE, or --overwrite true")
    data = images_at(source, model_name=model_name)
    data.setup("fit")
    found = _look_at(data)
    text = init_file(data, found, source, target, checkpoint_path)
    yaml.safe_load(text)  # a name that breaks the file would be our fault: say so here
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    console.print(
        f"Wrote {target}: {found.epochs} epochs of {found.trained:,} images, {data.num_classes} "
        f"classes. Next:\n  firstlight data show --config {shlex.quote(str(target))}\n"
        f"  firstlight fit --config {shlex.quote(str(target))}",
        soft_wrap=True,
    )
    return target


def command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight init``; the source may be given by position."""
    if not arguments:
        sys.exit("usage: firstlight init IMAGES_OR_MANIFEST [--output FILE] [--model_name NAME]")
    auto_cli(init, args=list(arguments), prog="firstlight init")


def _look_at(data: ImageFolderDataModule) -> Found:
    paths = data.parts["train"].paths
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), EXAMINED)).astype(int)
    facts = list(for_each_file(examine, [paths[i] for i in chosen], "Looking at images"))
    readable = [fact for fact in facts if fact.problem is None]
    if not readable:
        raise ValueError(f"none of {len(facts)} images can be read; the first: {facts[0].problem}")
    width, height = np.median([(f.width, f.height) for f in readable], axis=0)
    counts = dict(zip(data.class_names, data.full_class_counts, strict=True))
    batch_size = min(64, max(8, len(paths) // 20))
    epochs = -(-UPDATES * batch_size // len(paths))
    return Found(
        len(paths),
        counts,
        max(counts.values()) / min(counts.values()),
        [fact for fact in facts if fact.problem is not None],
        len(facts),
        (int(width), int(height)),
        batch_size,
        min(50, max(10, epochs)),
    )
