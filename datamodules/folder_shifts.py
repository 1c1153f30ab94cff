"""Further test sets of image files: ImageNet-C, -R, -A, -V2, Sketch, and other domains."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.datamodules.image_files import (
    ImageFiles,
    LabelledFiles,
    Transformed,
    class_folders,
    scan_classes,
)
from firstlight.datamodules.preprocessing import evaluation_transform
from firstlight.datamodules.shifts import (
    PublishedCorruptions,
    Setting,
    Shift,
)
from firstlight.functional.corruptions import PUBLISHED
from firstlight.functional.shifts import ALEXNET_ERRORS


class ShiftedFiles(ImageFiles):
    """Image files of a further test set, prepared as the DataModule's.

    Args:
        files: by section.
        setting: says how.
        scored_classes: see `Shift`; None: all.

    Raises:
        ValueError: where the DataModule shows one channel: files are read in colour.
    """

    baseline_errors: dict[str, float] | None = None

    def __init__(
        self,
        files: Mapping[str, LabelledFiles],
        setting: Setting,
        scored_classes: list[int] | None = None,
    ) -> None:
        if len(setting.how.mean) != 3:
            raise ValueError("image files are read in colour, but the DataModule has one channel")
        joined = LabelledFiles(
            [path for one in files.values() for path in one.paths],
            [target for one in files.values() for target in one.targets],
            list(setting.classes),
        )
        super().__init__(joined, Transformed(evaluation_transform(setting.how)))
        self.scored_classes = scored_classes
        self.sections: list[str] = list(files) if len(files) > 1 else []
        self.section_numbers: NDArray[np.int64] = np.repeat(
            np.arange(len(files)), [len(one.paths) for one in files.values()]
        )


@dataclasses.dataclass(frozen=True)
class ImageFolderShift(Shift):
    """Images in a folder per class: another domain, ImageNet-R, -A, -V2, Sketch.

    Attributes:
        root: folder of class folders, called as the DataModule calls its classes (``class_names``
            or ``class_ids``, ImageNet's wnids). Classes may be missing, unknown ones are refused.
        numbered: folders are called by class number, as ImageNet-V2's ``0`` to ``999``, which
            are not in the order of their names.
        class_map: class by folder, where they are called otherwise.
        restrict: seek the largest logit among this set's classes only, as ImageNet-R and
            ImageNet-A are scored, each over its 200.
    """

    root: str
    numbered: bool = False
    class_map: dict[str, str] | None = None
    restrict: bool = False

    def __post_init__(self) -> None:
        """Refuse two spellings at once."""
        if self.numbered and self.class_map is not None:
            raise ValueError("class_map names the classes, numbered numbers them: give one of them")

    def check(self) -> None:
        """Look for the folder."""
        if not Path(self.root).is_dir():
            raise FileNotFoundError(f"no folder {Path(self.root).absolute()} of a further test set")

    def loader(self, setting: Setting) -> Any:
        """Find the files and return the loader; see `Shift`."""
        self.check()
        root = Path(self.root)
        files = _scan(root, self._numbers(class_folders(root), setting))
        scored = sorted(set(files.targets)) if self.restrict else None
        return setting.file_loader(ShiftedFiles({root.name: files}, setting, scored))

    def _numbers(self, folders: Sequence[str], setting: Setting) -> dict[str, int]:
        if self.numbered:
            return {str(number): number for number in range(len(setting.classes))}
        if self.class_map is None:
            return numbers_by_name(folders, setting)
        known = numbers_by_name(list(self.class_map.values()), setting)
        if unknown := sorted(set(self.class_map.values()) - set(known)):
            raise ValueError(
                f"class_map: the DataModule has no class {unknown[0]!r}; it has "
                f"{', '.join(list(known)[:10])}"
            )
        return {folder: known[name] for folder, name in self.class_map.items()}


@dataclasses.dataclass(frozen=True)
class ImageNetC(PublishedCorruptions):
    """ImageNet-C: the validation images under 19 corruptions in five severities.

    One set whose sections are ``<corruption>/<severity>``. The images are 224 x 224: evaluate with
    ``img_size=224, crop_pct=1``, or they are enlarged and cropped once more, and state it.

    Attributes:
        root: folder of ``<corruption>/<severity>/<wnid>/*.JPEG``, with or without the archives'
            folders noise, blur, weather, digital and extra above.
        corruptions: names, or groups: benchmark, noise, blur, weather, digital, extra, all.
        severities: 1 to 5.
    """

    def check(self) -> None:
        """Look for the folders."""
        self._folders()

    def _folders(self) -> dict[str, Path]:
        names, levels = self._chosen()
        groups = {name: group for group, members in PUBLISHED.items() for name in members}
        found = {}
        for name in names:
            places = [Path(self.root, name), Path(self.root, groups[name], name)]
            home = next((place for place in places if place.is_dir()), places[0])
            for level in levels:
                if not (home / str(level)).is_dir():
                    raise FileNotFoundError(
                        f"no {home / str(level)}: ImageNet-C lies as <corruption>/<severity>/"
                        f"<wnid>/*.JPEG, or with {groups[name]}/ above, in {self.root}. Unpack "
                        "the archive there, or choose fewer corruptions"
                    )
                found[f"{name}/{level}"] = home / str(level)
        return found

    def loader(self, setting: Setting) -> Any:
        """Find the files and return the loader; see `Shift`."""
        sections = {}
        for name, folder in self._folders().items():
            sections[name] = _scan(folder, numbers_by_name(class_folders(folder), setting))
        (first, one), *others = sections.items()
        for name, other in others:
            if other.targets != one.targets:
                raise ValueError(
                    f"{self.root}: {name} has {len(other.targets)} images, {first} has "
                    f"{len(one.targets)}, or of other classes: the archive is not complete"
                )
        data = ShiftedFiles(sections, setting)
        data.baseline_errors = ALEXNET_ERRORS
        return setting.file_loader(data)


def numbers_by_name(folders: Sequence[str], setting: Setting) -> dict[str, int]:
    """Class numbers by what folders are called: names or ids, whichever knows more of them."""
    spellings = [
        {name: number for number, name in enumerate(names)}
        for names in (setting.classes, setting.class_ids)
    ]
    return max(spellings, key=lambda known: len(known.keys() & set(folders)))


def _scan(root: Path, numbers: Mapping[str, int]) -> LabelledFiles:
    """List a tree of class folders; refuses unknown and empty ones."""
    found = scan_classes(root, list(numbers))
    by_folder = list(numbers.values())
    return found._replace(targets=[by_folder[target] for target in found.targets])
