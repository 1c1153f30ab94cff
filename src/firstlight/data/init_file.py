"""The text of the file that ``firstlight init`` writes."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from firstlight.data.given import kind_of
from firstlight.datamodules import ImageFolderDataModule
from firstlight.datamodules.examination import ImageFacts

SKEWED = 5.0
"""Imbalance factor from which a remedy is switched on; between 2 and this it is a comment."""


class Found(NamedTuple):
    """What was found, and what was chosen for it.

    Attributes:
        trained: images trained on.
        counts: training images by class, before validation and hold-out.
        factor: the largest of them over the smallest.
        unreadable: those of the examined that cannot be decoded.
        examined: how many were looked at.
        size: median width and height of those.
        batch_size: images a step.
        epochs: passes over the training data.
    """

    trained: int
    counts: dict[str, int]
    factor: float
    unreadable: list[ImageFacts]
    examined: int
    size: tuple[int, int]
    batch_size: int
    epochs: int


TEMPLATE = """\
# {model_name} fine-tuned on {name}; written by `firstlight init`, yours to change.
# Look:     firstlight data check --config {target}
#           firstlight data show --config {target}
# Try:      firstlight fit --config {target} --trainer.fast_dev_run true
# Command:  firstlight fit --config {target}
# Then:     firstlight test --config {target} --ckpt_path .../last.ckpt
# Found:    {sizes}
#           {classes}
#           images of about {width} x {height} pixels
{refused}
seed_everything: 0
model:
  model_name: {model_name}  # any name of timm.list_models()
  {weights}
  layer_decay: 0.75  # the learning rate falls by this factor from block to block towards the stem
  optimizer:
    class_path: torch.optim.AdamW
    init_args: {{lr: 5.0e-4, weight_decay: 0.05}}
  lr_scheduler:
    class_path: firstlight.lightning_modules.WarmupCosineLR
    init_args: {{warmup: 1, total: {epochs}}}
data:
  class_path: ImageFolderDataModule
  init_args:
    {kind}: {source}
    batch_size: {batch_size}
    num_workers: 2  # processes that decode images: about one for each core
    # Images are prepared as {model_name} was trained: {how};
    # img_size, crop_pct, interpolation, mean and std say otherwise.
    {size_hint}
trainer:
  max_epochs: {epochs}  # about {steps} steps
  # precision: bf16-mixed  # on a GPU: half the memory, about twice the speed
  callbacks:
    - class_path: PerClassMonitor  # what every evaluation does to every class
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{{checkpoints}}}
    {remedy}
    # The head first, then a block at a time; keeps more of what the backbone knows:
    # - class_path: GradualUnfreezing
    # Fisher trace and sharpness over the first hundreds of steps:
    # - class_path: FisherTraceMonitor
"""


def init_file(
    data: ImageFolderDataModule, found: Found, source: Path, target: Path, weights: Path | None
) -> str:
    """Return the file's text.

    Args:
        data: of these images, set up.
        found: what its images and classes are like.
        source: the folder or manifest.
        target: the file to be written.
        weights: a local file to start from; None for timm's published weights.
    """
    how, parts = data.preprocessing, data.parts
    validated = bool(parts.get("val"))
    return TEMPLATE.format(
        model_name=data.hparams["model_name"],
        name=_one_line(source.name),
        target=shlex.quote(str(target)),
        sizes=", ".join(f"{part} {len(images):,}" for part, images in parts.items()),
        classes=_classes(found),
        width=found.size[0],
        height=found.size[1],
        refused="\n".join(
            f"# {'Refused:' if number == 0 else '        '}  {line}"
            for number, line in enumerate([*_refusals(data, found)] or ["nothing that was found"])
        ),
        weights="pretrained: true  # fetched once; from a local file instead: checkpoint_path: FILE"
        if weights is None
        else f"checkpoint_path: {_quoted(weights.absolute())}  # the weights to start from",
        epochs=found.epochs,
        kind=kind_of(source),
        source=_quoted(source),
        batch_size=found.batch_size,
        how=f"{how.img_size} px, crop {how.crop_pct:g}, {how.interpolation}",
        size_hint=_size_hint(found, how.img_size, validated),
        steps=f"{found.epochs * found.trained // found.batch_size:,}",
        checkpoints="monitor: val/macro_accuracy, mode: max, save_last: true"
        if validated
        else "save_last: true",
        remedy="\n    ".join(_remedy(data, found)),
    )


def _classes(found: Found) -> str:
    largest, smallest = (f(found.counts, key=found.counts.__getitem__) for f in (max, min))
    if found.factor == 1:
        return f"{len(found.counts):,} classes, {found.counts[largest]:,} training images each"
    return (
        f"{len(found.counts):,} classes, from {found.counts[largest]:,} training images "
        f"({_one_line(largest)}) to {found.counts[smallest]:,} ({_one_line(smallest)})"
    )


def _size_hint(found: Found, img_size: int, validated: bool) -> str:
    if not validated:
        return "# No class has enough images for a validation set: add a folder or split 'val'."
    if 2 * min(found.size) <= img_size:
        return f"# img_size: {max(32, 2 * min(found.size))}  # faster: these images are small"
    return "# val, holdout: shares of the training data for selection and for the last layer"


def _held_out_classes(data: ImageFolderDataModule) -> set[int]:
    return set(data.parts["holdout"].targets if "holdout" in data.parts else ())


def _remedy(data: ImageFolderDataModule, found: Found) -> Iterator[str]:
    if found.factor < 2:
        yield "# The classes are about equally frequent: no prior to correct."
        return
    whole = len(_held_out_classes(data)) == data.num_classes
    mark = "" if found.factor >= SKEWED else "# "
    yield f"# The largest class has {found.factor:.0f} times the images of the smallest. Test and"
    yield "# predict without the prior learned from that; costs frequent classes some accuracy:"
    yield f"{mark}- class_path: PriorCorrection"
    yield f"{mark}  init_args: {{data: {'holdout' if whole else 'train'}}}"


def _refusals(data: ImageFolderDataModule, found: Found) -> Iterator[str]:
    """What would stop a run with this file, or with an obvious change of it."""
    if "test" not in data.parts:
        yield "`firstlight test`: there is no test set, and none could be cut"
    held = _held_out_classes(data)
    missing = [name for label, name in enumerate(data.class_names) if label not in held]
    if missing:
        names = _one_line(", ".join(missing[:3])) + (", ..." if len(missing) > 3 else "")
        yield f"LastLayerRetraining on the hold-out, which lacks {names}: give it data: train"
    for fact in found.unreadable[:3]:
        yield f"training, at {_one_line(fact.path)} ({_one_line(str(fact.problem))})"
    if len(found.unreadable) > 3:
        yield (
            f"training, at {len(found.unreadable) - 3} more of {found.examined:,} images looked at"
        )
    if found.factor >= 2:
        yield "not, but warned of: a loss by class counts beside sampling: class_balanced"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quoted(path: Path) -> str:
    text: str = yaml.safe_dump(str(path), default_style='"', width=10_000, allow_unicode=True)
    return text.strip()
