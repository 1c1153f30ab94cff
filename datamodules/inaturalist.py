"""iNaturalist 2018 and 2021: species, or any level above them."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

from firstlight.datamodules.coco_json import read_coco
from firstlight.datamodules.image_files import ImageFiles, LabelledFiles, class_folders
from firstlight.datamodules.image_files_datamodule import ImageFilesDataModule
from firstlight.datamodules.inaturalist_files import (
    NAMES,
    Version,
    by_folders,
    by_json,
    by_lists,
    read_categories,
)
from firstlight.datamodules.lists import find_lists
from firstlight.datamodules.preprocessing import IMAGENET_PREPROCESSING
from firstlight.datamodules.splits import Sources
from firstlight.datamodules.subsets import take_fraction
from firstlight.datamodules.taxonomy import (
    LEVELS,
    Lineage,
    groups_above,
    lineage_of_category,
    lineage_of_folder,
    taxa,
)

_INAT_2018 = dataclasses.replace(
    IMAGENET_PREPROCESSING, mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192)
)
"""Mean and std as the long-tail papers have them (classifier-balancing, MiSLAS)."""


class INaturalistDataModule(ImageFilesDataModule):
    """iNaturalist 2018 (8,142 species, long-tailed), 2021 (10,000) and 2021 mini (50 of each).

    2018 is ``root/train_val2018/<Super>/<id>/*.jpg`` with ``train2018.json`` and ``val2018.json``
    in ``root`` or ``annotations``: the folders hold both sets and only the JSON (or the text lists
    of the long-tail papers) tells them apart. 2021 is ``root/train/<number_Kingdom_..._species>/``
    (or ``train_mini``) and ``root/val/...``, by its folders; by its JSON where ``annotations`` is
    given. Classes are numbered by category id.

    The labels of the test sets are not published, so the validation images (three a species in
    2018, ten in 2021) are what papers report on: they are ``test`` here. Under
    ``protocol="honest"`` validation and hold-out are cut from the training images.

    Args:
        root: the folder.
        version: which release.
        target_level: what is learned: ``species``, a rank above it, or ``supercategory``. Shot
            groups then follow the sizes of these classes.
        annotations: folder of the JSON files.
        categories: 2018's ``categories.json``, which tells names and ranks: until it is given (or
            lies beside the JSON) species bear the obfuscated names of the competition, and there is
            no level but ``supercategory``.
        lists: instead of JSON: the folder of ``iNaturalist18_{train,val}.txt``, or files by split.
        fraction: for development: the share of every species' training images to keep.
        **kwargs: the arguments of `ImageFilesDataModule` and `ImageDataModule`.
    """

    def __init__(
        self,
        root: str = "data/inaturalist",
        version: Version = "2018",
        target_level: str = "species",
        annotations: str | None = None,
        categories: str | None = None,
        lists: str | dict[str, str] | None = None,
        fraction: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if version not in get_args(Version):
            raise ValueError(f"version is one of {get_args(Version)}, got {version!r}")
        if target_level not in LEVELS:
            raise ValueError(f"target_level is one of {LEVELS}, got {target_level!r}")
        take_fraction(LabelledFiles([], [], []), fraction)  # refuses before data is read
        self.root = Path(root)
        self.version: Version = version
        self.target_level, self.fraction, self.lists = target_level, fraction, lists
        self._json = annotations is not None or (version == "2018" and lists is None)
        self.annotations = self._folder_of_json(annotations)
        beside = self.annotations / "categories.json"
        self.categories = Path(categories) if categories else beside if beside.is_file() else None
        self._lineages: list[Lineage] = []
        self._numbers: list[int] = []
        self._settle_preprocessing(_INAT_2018 if version == "2018" else IMAGENET_PREPROCESSING)

    def _folder_of_json(self, given: str | None) -> Path:
        if given is not None:
            return Path(given)
        within = self.root / "annotations"
        return within if within.is_dir() else self.root

    @property
    def class_groups(self) -> dict[str, list[str]]:
        """The taxon of each class, by the levels above ``target_level``: for means by group."""
        self._ready  # noqa: B018  # raises before setup
        return groups_above(self._lineages, self._numbers)

    def _find(self) -> dict[str, LabelledFiles]:
        told = read_categories(self.categories)
        if self.lists is not None:
            sets, lineages = by_lists(self.root, find_lists(self.lists), told)
        elif self._json:
            sets, lineages = by_json(self.root, self.annotations, self.version, told)
        else:
            sets, lineages = by_folders(self.root, self.version)
        trained = set(sets["train"].targets)
        if len(trained) < len(lineages):
            absent = min(set(range(len(lineages))) - trained)
            raise ValueError(f"{self.root}: {lineages[absent]['species']} has no training image")
        sets["train"] = take_fraction(sets["train"], self.fraction)
        self._lineages = lineages
        self._numbers, names = taxa(lineages, self.target_level)
        return {
            split: LabelledFiles(files.paths, [self._numbers[t] for t in files.targets], names)
            for split, files in sets.items()
        }

    def _divide(self, sets: dict[str, ImageFiles]) -> Sources[ImageFiles]:
        notes = []
        if self.fraction < 1:
            notes.append(f"{self.fraction:g} of the training images of every species")
        if self.target_level != "species":
            notes.append(f"classes are the {self.target_level} of {len(self._lineages)} species")
        if "kingdom" not in self._lineages[0]:
            notes.append("names and ranks of species are unknown: pass categories=categories.json")
        if "test" not in sets:
            notes.append("no validation images, so there is no test set")
        return dataclasses.replace(super()._divide(sets), notes=["; ".join(notes)] if notes else [])

    def _names_for_prediction(self) -> list[str] | None:
        train, val = (name for name in NAMES[self.version])
        lineages: list[Lineage] | None = None
        if self.categories is not None:
            told = read_categories(self.categories)
            lineages = [lineage_of_category(c) for _, c in sorted(told.items())]
        elif self._json and (self.annotations / f"{val}.json").is_file():
            found = read_coco(self.annotations / f"{val}.json")  # the smaller of the two
            lineages = [lineage_of_category(c) for c in found.categories.values()]
        elif not self._json and (self.root / train).is_dir():
            lineages = [lineage_of_folder(name) for name in class_folders(self.root / train)]
        return None if lineages is None else taxa(lineages, self.target_level).names
