"""Parts of a data set: some of its classes, a share of its images."""

from collections.abc import Sequence

from firstlight.datamodules.image_files import LabelledFiles
from firstlight.functional.long_tail import stratified_split
from firstlight.functional.seeding import fold_in

_FRACTION = 5  # beside the keys of the cuts in splits.py


def take(files: LabelledFiles, index: Sequence[int]) -> LabelledFiles:
    """Return the files at ``index``, in that order, of the same classes."""
    return files._replace(
        paths=[files.paths[i] for i in index], targets=[files.targets[i] for i in index]
    )


def number_by(files: LabelledFiles, classes: list[str]) -> LabelledFiles:
    """Number by the place in ``classes``; files of other classes are left out."""
    if files.classes == classes:
        return files
    place = {name: number for number, name in enumerate(classes)}
    new = [place.get(name, -1) for name in files.classes]
    kept = take(files, [i for i, target in enumerate(files.targets) if new[target] >= 0])
    return LabelledFiles(kept.paths, [new[target] for target in kept.targets], classes)


def take_fraction(files: LabelledFiles, fraction: float) -> LabelledFiles:
    """Keep about ``fraction`` of every class and at least one image, the same whatever the seed.

    Raises:
        ValueError: for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is a share of the training images in (0, 1], got {fraction}")
    if fraction == 1:
        return files
    kept, _ = stratified_split(files.targets, 1 - fraction, fold_in(0, _FRACTION))
    return take(files, kept.tolist())


def evenly_spaced(names: Sequence[str], count: int) -> list[str]:
    """Choose ``count`` names, evenly over the order, so that no branch of it is left out.

    Raises:
        ValueError: for more than there are, or fewer than two.
    """
    if not 2 <= count <= len(names):
        raise ValueError(f"classes is a number from 2 to {len(names)}, got {count}")
    return [names[i * len(names) // count] for i in range(count)]
