"""COCO-style JSON: joined by id, and refused by name where it disagrees with itself."""

import json

import numpy as np
import published_trees as published
import pytest

from firstlight.datamodules.coco_json import check_same_categories, read_coco

ROWS = [(f"train_val2018/Aves/{c}/{i}.jpg", c) for c in (0, 2, 1) for i in range(4)]


def write(tmp_path, content, name="train2018.json"):
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


def test_images_keep_their_order_and_get_the_category_of_their_id(tmp_path):
    found = read_coco(write(tmp_path, published.coco(ROWS, 100)))
    assert list(zip(found.paths, found.category_ids, strict=True)) == ROWS
    assert list(found.categories) == [0, 1, 2]
    assert found.categories[1]["supercategory"] == "Plantae"


def test_the_order_of_annotations_says_nothing(tmp_path):
    content = published.coco(ROWS, 100)
    for seed in range(5):
        np.random.default_rng(seed).shuffle(content["annotations"])
        found = read_coco(write(tmp_path, content))
        assert list(zip(found.paths, found.category_ids, strict=True)) == ROWS


def spoiled(key, index, **changes):
    content = published.coco(ROWS, 100)
    content[key][index] |= changes
    return content


def longer(key, **item):
    content = published.coco(ROWS, 100)
    content[key].append(item)
    return content


def shorter(key):
    content = published.coco(ROWS, 100)
    content[key].pop()
    return content


BAD = {
    "image id twice": (spoiled("images", 1, id=136), r"image id 136 occurs twice"),
    "file twice": (
        spoiled("images", 1, file_name=ROWS[0][0]),
        r"file_name 'train_val2018/Aves/0/0\.jpg' occurs twice",
    ),
    "category twice": (
        longer("categories", id=1, name="x", supercategory="y"),
        "category id 1 occurs twice",
    ),
    "annotation of no image": (
        longer("annotations", id=1, image_id=7, category_id=0),
        "1 annotations are of no image, such as image_id 7",
    ),
    "annotated twice": (
        longer("annotations", id=1, image_id=136, category_id=2),
        r"such as train_val2018/Aves/0/0\.jpg \(image id 136\) with 2",
    ),
    "not annotated": (shorter("annotations"), r"1 images do not have one annotation.*with 0"),
    "unknown category": (
        spoiled("annotations", 0, category_id=9),
        "category_id 9, which no",
    ),
    "other folder": (spoiled("annotations", 0, category_id=1), r"category_id 1, but its folder"),
    "no file name": (
        longer("images", id=5, width=3),
        "13 images of which 12 have id and file_name",
    ),
    "no annotations": ({"images": [], "categories": []}, "is not a JSON object with"),
    "a list": ([1, 2], "is not a JSON object with"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_json_that_disagrees_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as refusal:
        read_coco(write(tmp_path, content))
    assert "train2018.json" in str(refusal.value)


def test_json_that_is_cut_off_is_refused(tmp_path):
    file = write(tmp_path, published.coco(ROWS, 100))
    file.write_text(file.read_text()[:-40])
    with pytest.raises(ValueError, match=r"train2018\.json is not a JSON object.*complete\?"):
        read_coco(file)
    with pytest.raises(FileNotFoundError, match="no such annotations"):
        read_coco(tmp_path / "none.json")


def test_files_that_mean_different_things_by_an_id_are_refused(tmp_path):
    one = read_coco(write(tmp_path, published.coco(ROWS, 100), "a.json"))
    check_same_categories(one, read_coco(write(tmp_path, published.coco(ROWS, 500), "b.json")))
    content = published.coco(ROWS, 100)
    content["categories"][0]["name"] = "renamed"
    with pytest.raises(ValueError, match=r"category 2 is .*'002'.*a\.json, but .*'renamed'"):
        check_same_categories(one, read_coco(write(tmp_path, content, "b.json")))
