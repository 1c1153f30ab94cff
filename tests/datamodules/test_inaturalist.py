"""iNaturalist by JSON, by lists and by folders; small trees, real names and formats."""

import json
from collections import Counter
from pathlib import Path

import published_trees as published
import pytest

from firstlight.datamodules import INaturalistDataModule

COUNTS = [count for *_, count in published.SPECIES]


@pytest.fixture
def root(tmp_path):
    return published.write_inat2018(tmp_path / "inat")


@pytest.fixture
def newer(tmp_path):
    return published.write_inat2021(tmp_path / "newer")


def ready(root, **arguments):
    arguments = {"img_size": 16, "num_workers": 0, "batch_size": 8, "verify": False} | arguments
    data = INaturalistDataModule(str(root), **arguments)
    data.setup("fit")
    return data


def test_2018_has_the_split_of_its_json(root):
    data = ready(root)
    assert data.full_class_counts == COUNTS
    assert data.class_counts == [12 - 2, 7 - 2, 3 - 2]  # less one each for val and hold-out
    train = set(data._ready.train.paths) | set(data._ready.val.paths)
    train |= set(data._ready.holdout.paths)
    assert len(train) == sum(COUNTS)
    assert Counter(data._ready.test.targets) == dict.fromkeys(range(3), published.VAL_EACH)
    assert not train & set(data._ready.test.paths)
    assert all(Path(p).parent.name == str(t) for p, t in zip(
        data._ready.test.paths, data._ready.test.targets, strict=True))  # fmt: skip
    assert data.mean == (0.466, 0.471, 0.380)


def test_the_text_lists_say_the_same_as_the_json(root):
    by_json = ready(root, val=0, holdout=0)
    by_lists = ready(root, lists=str(root / "lists"), val=0, holdout=0)
    for split in ("train", "test"):
        one, other = getattr(by_json._ready, split), getattr(by_lists._ready, split)
        assert (one.paths, one.targets) == (other.paths, other.targets)
    lines = (root / "lists/iNaturalist18_train.txt").read_text().split("\n")
    train = by_lists._ready.train
    pairs = zip(train.paths, train.targets, strict=True)
    assert [f"{path.removeprefix(f'{root}/')} {target}" for path, target in pairs] == lines
    assert by_lists.class_names == ["Aves 0", "Plantae 1", "Plantae 2"]


def test_names_and_ranks_come_with_the_categories(root):
    data = ready(root)
    assert data.class_names == ["000", "001", "002"]
    assert data.class_groups == {"supercategory": ["Aves", "Plantae", "Plantae"]}
    assert "pass categories=categories.json" in data.summary()
    (root / "categories.json").write_text(json.dumps(published.inat_categories(ranks=True)))
    data = ready(root)
    assert data.class_names == ["Morus bassanus", "Morus alba", "Ficus carica"]
    assert data.class_groups["family"] == ["Sulidae", "Moraceae", "Moraceae"]
    assert "categories.json" not in data.summary()
    lists = ready(root, lists=str(root / "lists"))
    assert lists.class_names == data.class_names


def test_a_level_above_species_is_learned_with_its_own_counts(newer):
    data = ready(newer, version="2021", target_level="family", val=0, holdout=0)
    assert data.class_names == ["Moraceae", "Sulidae"]
    assert data.full_class_counts == [10, 12]
    assert "classes are the family of 3 species" in data.summary()
    assert Counter(data._ready.test.targets) == {0: 6, 1: 3}


def test_a_level_that_is_not_known_is_refused(root):
    with pytest.raises(ValueError, match=r"one of \['species', 'supercategory'\].*'genus'"):
        ready(root, target_level="genus")
    with pytest.raises(ValueError, match="target_level is one of"):
        INaturalistDataModule(target_level="tribe")
    with pytest.raises(ValueError, match="version is one of"):
        INaturalistDataModule(version="2019")


@pytest.mark.parametrize("version", ["2021", "2021_mini"])
def test_2021_is_read_by_its_folders(tmp_path, version):
    train = {"2021": "train", "2021_mini": "train_mini"}[version]
    data = ready(published.write_inat2021(tmp_path, train), version=version, fraction=0.5)
    assert data.class_names == ["Morus bassanus", "Morus alba", "Ficus carica"]
    assert data.full_class_counts == [6, 3, 1]
    assert list(data.class_groups) == ["kingdom", "phylum", "class", "order", "family"]
    assert "0.5 of the training images of every species" in data.summary()


def test_2021_is_read_by_its_json_too(newer):
    for split in ("train", "val"):
        rows = [(str(f.relative_to(newer)), int(f.parent.name[:5]))
                for f in sorted((newer / split).rglob("*.jpg"))]  # fmt: skip
        (newer / "json").mkdir(exist_ok=True)
        content = published.coco(rows, 10, ranks=True)
        (newer / f"json/{split}.json").write_text(json.dumps(content))
    by_json = ready(newer, version="2021", annotations=str(newer / "json"), val=0, holdout=0)
    by_folders = ready(newer, version="2021", val=0, holdout=0)
    for split in ("train", "test"):
        one, other = getattr(by_json._ready, split), getattr(by_folders._ready, split)
        assert (one.paths, one.targets, one.classes) == (other.paths, other.targets, other.classes)
    assert by_json.class_groups["supercategory"] == ["Aves", "Plantae", "Plantae"]


def test_folders_that_are_named_otherwise_are_refused(root, newer):
    with pytest.raises(FileNotFoundError, match=r"inat/train:.*00000_Animalia"):
        ready(root, version="2021")
    (newer / "train" / "loose").mkdir()
    published.save_image(newer / "train/loose/1.jpg", 0, 0)
    with pytest.raises(ValueError, match="'loose' is not named as in iNaturalist 2021"):
        ready(newer, version="2021")


def edit(root, split, change):
    file = root / f"{split}2018.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_missing_image_or_json_is_named(root):
    name = json.loads((root / "train2018.json").read_text())["images"][4]["file_name"]
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"train2018\.json lists 22 .* 1 are .*{name}"):
        ready(root)
    with pytest.raises(FileNotFoundError, match=rf"iNaturalist18_train\.txt lists 22 .*{name}"):
        ready(root, lists=str(root / "lists"))
    (root / "val2018.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"val2018\.json.*--data\.annotations"):
        ready(root)


def test_files_of_different_releases_are_refused(root):
    edit(root, "val", lambda c: c["categories"][0].update(name="other"))
    with pytest.raises(ValueError, match=r"category 2 is .*'002'.*'other'"):
        ready(root)


def test_categories_of_another_release_are_refused(root):
    told = published.inat_categories(ranks=True)
    told[1]["supercategory"] = "Fungi"
    (root / "categories.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"category 1 is .*'Plantae'.*'Fungi'"):
        ready(root)
    (root / "categories.json").write_text(json.dumps(told[:1]))
    with pytest.raises(ValueError, match=r"category 1 is .*but missing"):
        ready(root)
    (root / "categories.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a JSON list of categories"):
        ready(root)


def test_a_species_without_training_image_is_named(root):
    extra = {"id": 3, "name": "003", "supercategory": "Aves"}
    for split in ("train", "val"):
        edit(root, split, lambda c: c["categories"].append(extra))
    with pytest.raises(ValueError, match="003 has no training image"):
        ready(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [lines[0][:-1] + "9", *lines[1:]],
            "label 9, but its folder says",
        ),
        (lambda lines: [line for line in lines if line[-1] != "0"], "no image has label 0"),
        (lambda lines: [line[:-2] for line in lines], r"iNaturalist18_train\.txt has no labels"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(root, change, message):
    file = root / "lists/iNaturalist18_train.txt"
    file.write_text("\n".join(change(file.read_text().split("\n"))))
    val = root / "lists/iNaturalist18_val.txt"
    if "label 0" in message:
        val.write_text("\n".join(x for x in val.read_text().split("\n") if x[-1] != "0"))
    with pytest.raises(ValueError, match=message):
        ready(root, lists=str(root / "lists"))


def test_lists_without_one_of_the_training_images_are_refused(root):
    with pytest.raises(ValueError, match="lists of val, but none of train"):
        ready(root, lists={"val": str(root / "lists/iNaturalist18_val.txt")})


def test_names_for_prediction_need_no_image(root, newer):
    for data, first in (
        (INaturalistDataModule(str(root)), "000"),
        (INaturalistDataModule(str(newer), version="2021"), "Morus bassanus"),
        (INaturalistDataModule(str(newer), version="2021", target_level="kingdom"), "Animalia"),
    ):
        data.setup("predict")
        assert data.class_names[0] == first
