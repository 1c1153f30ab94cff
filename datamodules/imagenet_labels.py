"""ImageNet's class names, and the labels of its flat validation folder."""

import csv
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
SOLUTION = "LOC_val_solution.csv"

_UNDERSTOOD = (
    f"the devkit's {GROUND_TRUTH} and {META} (also within ILSVRC2012_devkit_t12/data or the "
    f"untouched ILSVRC2012_devkit_t12.tar.gz), or Kaggle's {SOLUTION}"
)


def validation_labels(place: Path) -> dict[str, str]:
    """Find the class of every validation image.

    Args:
        place: a folder with what the error below lists, or one of those files.

    Returns:
        WordNet ids by the image's name without suffix, ``ILSVRC2012_val_00000001``...

    Raises:
        FileNotFoundError: where there is no ground truth, saying what is understood.
        ValueError: for one that is damaged.
    """
    folder = place if place.is_dir() else place.parent
    for read, file in (
        (_from_solution, folder / SOLUTION),
        (_from_folder, folder / GROUND_TRUTH),
        (_from_folder, folder / "data" / GROUND_TRUTH),
        (_from_folder, folder / "ILSVRC2012_devkit_t12/data" / GROUND_TRUTH),
        (_from_archive, folder / "ILSVRC2012_devkit_t12.tar.gz"),
    ):
        if file.is_file():
            return read(file)
    raise FileNotFoundError(
        f"no labels for the flat validation images under {place.absolute()}. Understood are "
        f"{_UNDERSTOOD}. Put one there, or say where it lies with devkit (--data.devkit)"
    )


def _from_solution(file: Path) -> dict[str, str]:
    rows = csv.DictReader(StringIO(file.read_text()))
    try:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{file} has no ImageId and PredictionString in every row") from error


def _from_folder(file: Path) -> dict[str, str]:
    if not file.with_name(META).is_file():
        raise FileNotFoundError(f"{file} needs {META} beside it, which says what its numbers mean")
    return _from_devkit(file.read_bytes(), file.with_name(META).read_bytes(), file)


def _from_archive(file: Path) -> dict[str, str]:
    wanted: dict[str, bytes] = {}
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name in (GROUND_TRUTH, META) and (content := tar.extractfile(member)):
                    wanted[name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read ({error}): load it again") from error
    if len(wanted) < 2:
        raise ValueError(f"{file} holds no {GROUND_TRUTH} with {META}: is it the devkit's archive?")
    return _from_devkit(wanted[GROUND_TRUTH], wanted[META], file)


def _from_devkit(truth: bytes, meta: bytes, file: Path) -> dict[str, str]:
    from scipy.io import loadmat

    try:
        synsets = loadmat(BytesIO(meta), squeeze_me=True)["synsets"]
        wnids = {str(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
    except Exception as error:  # loadmat has many for a damaged file
        raise ValueError(f"{META} beside or in {file} is damaged ({error!r})") from error
    labels = {}
    for number, line in enumerate(truth.decode(errors="replace").split(), 1):
        if line not in wnids:
            raise ValueError(f"{file}, line {number}: {META} knows no class {line}")
        labels[f"ILSVRC2012_val_{number:08d}"] = wnids[line]
    return labels


def readable_names(wnids: Sequence[str]) -> list[str]:
    """Names for WordNet ids, from the synsets that timm ships; unknown ids stay as they are.

    A synset's first word where no other class begins with it, then all its words; classes that
    share even these (the two cranes) get their id.
    """
    from timm.data import ImageNetInfo

    infos = [ImageNetInfo(subset) for subset in ("imagenet-1k", "imagenet-22k")]
    known = {wnid: info for info in reversed(infos) for wnid in info.label_names()}
    words = [known[w].label_name_to_description(w) if w in known else w for w in wnids]
    names = _where_unique([each.split(",")[0] for each in words], lambda i: words[i])
    return _where_unique(names, lambda i: f"{words[i]} ({wnids[i]})")


def _where_unique(names: Sequence[str], otherwise: Callable[[int], str]) -> list[str]:
    count = Counter(names)
    return [name if count[name] == 1 else otherwise(i) for i, name in enumerate(names)]
