"""Small copies of published data sets in their real layouts and file formats."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = {"n01440764": 14, "n02012849": 9, "n03126707": 4}
"""Training images by class: a tench and the two cranes, which share all their words."""

VAL_EACH = 3

SPECIES = [
    ("Aves", "Animalia Chordata Aves Suliformes Sulidae Morus bassanus", 12),
    ("Plantae", "Plantae Tracheophyta Magnoliopsida Rosales Moraceae Morus alba", 7),
    ("Plantae", "Plantae Tracheophyta Magnoliopsida Rosales Moraceae Ficus carica", 3),
]
"""Supercategory, lineage and training images; Morus is a gannet and a mulberry."""

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")


def save_image(file: Path, label: int, number: int) -> None:
    random = np.random.default_rng([label, number])
    pixels = random.integers(0, 60, (30, 40, 3), dtype=np.uint8)
    pixels[..., label % 3] += 150
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, format="JPEG")


def val_classes() -> list[str]:
    """Class of the validation images 1, 2, ... (mixed, as in ImageNet)."""
    return sorted(WNIDS) * VAL_EACH


def write_imagenet(root: Path, flat: bool = False) -> Path:
    for label, (wnid, count) in enumerate(WNIDS.items()):
        for number in range(count):
            save_image(root / f"train/{wnid}/{wnid}_{number * 7}.JPEG", label, number)
    for number, wnid in enumerate(val_classes(), 1):
        folder = root / "val" if flat else root / "val" / wnid
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        save_image(folder / name, list(WNIDS).index(wnid), 100 + number)
    return root


def write_devkit(folder: Path) -> Path:
    """The ground truth by the devkit's own numbers, which do not follow the sorted WordNet ids."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"n03126707": 1, "n01440764": 2, "n02012849": 3}
    rows = [(i, w, f"{w}, words", "gloss", 0.0, 0.0, 0.0, 9.0) for w, i in numbers.items()]
    rows.append((4, "n00001740", "entity", "gloss", 2.0, 0.0, 3.0, 0.0))  # no leaf
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children",
              "wordnet_height", "num_train_images")  # fmt: skip
    synsets = np.array(rows, dtype=[(name, object) for name in fields])
    savemat(folder / "meta.mat", {"synsets": synsets[:, None]})
    truth = "".join(f"{numbers[wnid]}\n" for wnid in val_classes())
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return folder


def write_archives(tree: Path, root: Path) -> Path:
    """The tar files of ImageNet: of tars for training, flat for validation, and the devkit's."""
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in WNIDS:
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as inner:
                for file in sorted((tree / "train" / wnid).iterdir()):
                    inner.add(file, file.name)
            info = tarfile.TarInfo(f"{wnid}.tar")
            info.size = content.tell()
            content.seek(0)
            outer.addfile(info, content)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for file in sorted((tree / "val").rglob("*.JPEG"), key=lambda f: f.name):
            tar.add(file, f"./{file.name}")
    kit = write_devkit(root.parent / "kit")
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(kit, "ILSVRC2012_devkit_t12/data")
    return root


def write_imagenet_lt(folder: Path, nested_val: bool = True, newline: bool = True) -> Path:
    """Lists of parts of ``train``, of others for validation, and of all of ``val``; shuffled."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, (wnid, count) in enumerate(WNIDS.items()):
        for number in range(count):
            split = "val" if number % 4 == 3 else "train"
            lines[split].append(f"train/{wnid}/{wnid}_{number * 7}.JPEG {label}")
    for number, wnid in enumerate(val_classes(), 1):
        above = f"val/{wnid}" if nested_val else "val"
        label = list(WNIDS).index(wnid)
        lines["test"].append(f"{above}/ILSVRC2012_val_{number:08d}.JPEG {label}")
    for split, listed in lines.items():
        order = np.random.default_rng(1).permutation(len(listed))
        text = "\n".join(listed[i] for i in order) + ("\n" if newline else "")
        (folder / f"ImageNet_LT_{split}.txt").write_text(text)
    return folder


def inat_categories(ranks: bool) -> list[dict[str, object]]:
    categories = []
    for number, (super_, lineage, _) in enumerate(SPECIES):
        parts = lineage.split()
        own: dict[str, object] = {"id": number, "supercategory": super_}
        own["name"] = " ".join(parts[5:]) if ranks else f"{number:03d}"
        categories.append(own | (dict(zip(RANKS, parts, strict=False)) if ranks else {}))
    return categories


def coco(rows: list[tuple[str, int]], first: int, ranks: bool = False) -> dict[str, list[object]]:
    """``rows`` are file name and category; ids count down, annotations stand in another order."""
    ids = [first + 3 * len(rows) - 3 * i for i in range(len(rows))]
    images = [
        {"id": i, "file_name": name, "width": 40, "height": 30, "license": 1, "rights_holder": "é"}
        for i, (name, _) in zip(ids, rows, strict=True)
    ]
    annotations = [
        {"id": 10 * i, "image_id": i, "category_id": c} for i, (_, c) in zip(ids, rows, strict=True)
    ]
    order = np.random.default_rng(2).permutation(len(rows))
    return {
        "info": {"year": 2018},
        "images": images,
        "categories": inat_categories(ranks)[::-1],
        "annotations": [annotations[i] for i in order],
        "licenses": [{"id": 1, "name": "CC", "url": "x"}],
    }


def write_inat2018(root: Path, lists: bool = True) -> Path:
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    for number, (super_, _, count) in enumerate(SPECIES):
        for i in range(count + VAL_EACH):
            name = f"train_val2018/{super_}/{number}/{i * 7919 % 1000:03d}{number}.jpg"
            save_image(root / name, number, i)
            rows["val" if i >= count else "train"].append((name, number))
    for split, first in (("train", 1000), ("val", 5000)):
        order = np.random.default_rng(3).permutation(len(rows[split]))
        listed = [rows[split][i] for i in order]
        (root / f"{split}2018.json").write_text(json.dumps(coco(listed, first)))
        if lists:
            text = "\n".join(f"{name} {c}" for name, c in listed)
            (root / "lists").mkdir(exist_ok=True)
            (root / f"lists/iNaturalist18_{split}.txt").write_text(text)
    return root


def write_inat2021(root: Path, train: str = "train") -> Path:
    for number, (_, lineage, count) in enumerate(SPECIES):
        folder = f"{number:05d}_{lineage.replace(' ', '_')}"
        for i in range(count):
            save_image(root / train / folder / f"{i:03d}.jpg", number, i)
        for i in range(VAL_EACH):
            save_image(root / "val" / folder / f"{i:03d}.jpg", number, 50 + i)
    return root
