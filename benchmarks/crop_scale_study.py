"""A crop-scale study that has to find a planted effect: CIFAR-10, three arms by three seeds, CPU.

    python benchmarks/crop_scale_study.py --images DIR [--out FOLDER] [--plain]

The study that ships, study/crop_scale_cifar10_cpu, on images whose cats and dogs only a mark in the
corner tells apart (see planted_corner.py): random resized crops mostly cut it away. What is to be
found is known: these two classes lose beyond what all lose. Nine runs of two minutes on one core
that is not shared; called again with the same --out it goes on, or writes the table only.
DIR holds train/<class>/*.jpg and test/<class>/*.jpg of CIFAR-10.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copy

import numpy as np
import pyarrow.parquet as pq
from planted_corner import PlantedCIFAR10DataModule
from side_by_side import RESULTS, publish

from firstlight.cli import resolve_config
from firstlight.study import study
from firstlight.study.file import read_study
from firstlight.studyfolder import StudyFolder

NAME = "crop_scale_study"
PLANTED = ("cat", "dog")


def rows_of(folder: StudyFolder, planted: Sequence[str]) -> list[dict[str, str]]:
    """Every class's accuracy by arm, and its effects, the planted classes first."""
    where = folder.path / str(folder.study["comparison"])
    effects = pq.read_table(where / "class_effects.parquet").to_pylist()
    accuracy = pq.read_table(where / "accuracies.parquet").to_pylist()
    effects = [row for row in effects if " against " in row["comparison"]]
    names = dict.fromkeys(row["name"] for row in effects)
    rows = []
    for name in sorted(names, key=lambda one: one not in planted):
        row = {"class": f"{name} (planted)" if name in planted else name}
        for arm in folder.study["arms"]:
            found = [one["accuracy"] for one in accuracy
                     if (one["name"], one["arm"]) == (name, arm["arm"])]  # fmt: skip
            row[f"lower bound {arm['strength']:g}"] = f"{100 * np.mean(found):.1f}"
        for one in (one for one in effects if one["name"] == name):
            low, high = 100 * one["low"], 100 * one["high"]
            row[one["comparison"]] = f"{100 * one['effect']:+.1f} ({low:.1f} to {high:.1f})"
            row["q" + " " * (one["comparison"] == effects[-1]["comparison"])] = f"{one['q']:.1g}"
        rows.append(row)
    return rows


def taken_for_one_another(folder: StudyFolder) -> str:
    """How often the planted classes are taken for each other, weakest and strongest crop."""
    where = folder.path / str(folder.study["comparison"])
    shifts = pq.read_table(where / "confusion_shifts.parquet").to_pylist()
    last = shifts[-1]["comparison"]
    found = [one for one in shifts if one["comparison"] == last
             and {one["target_name"], one["pred_name"]} == set(PLANTED)]  # fmt: skip
    said = "{target_name}s for {pred_name}s: {before:.1%}, then {after:.1%}"
    return "; ".join(said.format(**one) for one in found)


def planted(images: str) -> dict[str, str]:
    """Settings under which the study reads images whose cats and dogs only a mark tells apart."""
    folder = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path[1:]])  # of the runs
    module = f"{PlantedCIFAR10DataModule.__module__}.{PlantedCIFAR10DataModule.__qualname__}"
    return {"data.root": images, "data": module}


def main(images: str, out: Path, plain: bool) -> None:
    """Run the study, or what is missing of it; write the table and the figure."""
    marked = () if plain else PLANTED
    settings = {"data.root": images} if plain else planted(images)
    file = read_study(resolve_config("firstlight:study/crop_scale_cifar10_cpu"))
    done = study(replace(file, settings={**file.settings, **settings}), out, sequential=True)
    assert done is not None
    name = f"{NAME}_plain" if plain else NAME
    title = "What a crop-scale sweep does to ten classes"
    said = (
        "the control (--plain) of the study with two planted classes."
        if plain
        else "the planted two lose far more, because the mark that tells them apart is in few "
        f"crops. Taken for one another, {taken_for_one_another(done)}; the rest of what they lose "
        "goes to other classes."
    )
    publish(
        name,
        f"{title}{', two of them planted' if marked else ''}: CIFAR-10 at 16 px",
        rows_of(done, marked),
        "Accuracies and effects in % of 1,000 test images a class, mean of three seeds (95 % "
        "confidence interval). ResNet-20, two epochs: so short a training underfits with strong "
        f"crops, and every class loses; {said}",
    )
    figures = done.path / str(done.study["comparison"]) / "figures"
    copy(figures / "accuracy_by_strength.png", RESULTS / f"{name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plain", action="store_true", help="the images as they are: the control")
    given = parser.parse_args()
    out = given.out or Path("studies", f"{NAME}_plain" if given.plain else NAME)
    main(given.images, out, given.plain)
