"""ImageNet in its layouts, ImageNet-LT by its lists; small trees, real names and formats."""

import shutil
from pathlib import Path, PurePath

import published_trees as published
import pyarrow.parquet as pq
import pytest
import torch

from firstlight.data.check import data_check
from firstlight.datamodules import ImageFolderShift, ImageNetDataModule, imagenet_files
from firstlight.datamodules.imagenet_labels import readable_names, validation_labels

WNIDS = sorted(published.WNIDS)
NAMES = ["tench", "crane (n02012849)", "crane (n03126707)"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return published.write_imagenet(tmp_path / "imagenet")


@pytest.fixture
def flat(tmp_path):
    return published.write_imagenet(tmp_path / "flat", flat=True)


def ready(root, **arguments):
    arguments = {"img_size": 16, "num_workers": 0, "batch_size": 8, "verify": False} | arguments
    data = ImageNetDataModule(str(root), **arguments)
    data.setup("fit")
    return data


def name_of(path):
    return PurePath(path).name.partition("@")[0]


def targets_by_name(data):
    """Target by file name."""
    dataset = data._ready.test
    names = [name_of(path) for path in dataset.paths]
    return dict(zip(names, dataset.targets, strict=True))


def expected_test():
    of = {f"ILSVRC2012_val_{i:08d}.JPEG": w for i, w in enumerate(published.val_classes(), 1)}
    return {name: WNIDS.index(wnid) for name, wnid in of.items()}


def test_folders_are_numbered_by_sorted_wordnet_id(root):
    data = ready(root, val=0, holdout=0)
    assert data.full_class_counts == data.class_counts == [14, 9, 4]
    assert data.class_names == NAMES
    assert targets_by_name(data) == expected_test()
    train = data._ready.train
    assert [Path(path).parent.name for path in train.paths] == [WNIDS[t] for t in train.targets]


def test_names_are_the_first_word_where_it_says_which():
    assert readable_names(["n01440764", "n02012849", "n99999999"]) == [
        "tench", "crane", "n99999999",
    ]  # fmt: skip
    maillots = readable_names(["n03710637", "n03710721"])
    assert maillots == ["maillot", "maillot, tank suit"]


def test_honest_validation_is_a_hundredth_of_training_and_the_test_set_is_left_alone(root):
    data = ready(root)
    assert (data.val, data.holdout) == (0.01, 0.01)
    assert len(data.val_dataloader().dataset) == len(data.holdout_dataloader().dataset) == 3
    assert targets_by_name(data) == expected_test()
    assert (ready(root, val=0.5).val, ready(root, holdout=0.0).holdout) == (0.5, 0.0)
    with pytest.warns(UserWarning, match="legacy"):
        legacy = ready(root, protocol="legacy")
    assert legacy.val_dataloader().dataset.paths == legacy.test_dataloader().dataset.paths


@pytest.mark.parametrize(
    "where", ["val", ".", "data", "ILSVRC2012_devkit_t12/data"], ids=lambda w: w.split("/")[0]
)
def test_a_flat_folder_is_labelled_by_the_devkit(flat, where):
    published.write_devkit(flat / where)
    devkit = str(flat / "val") if where == "val" else None
    assert targets_by_name(ready(flat, devkit=devkit)) == expected_test()


def test_a_flat_folder_is_labelled_by_kaggles_table(flat):
    rows = [
        f"ILSVRC2012_val_{i:08d},{w} 1 2 3 4 {w} 5 6 7 8"
        for i, w in enumerate(published.val_classes(), 1)
    ]
    table = "\n".join(["ImageId,PredictionString", *rows[::-1]])
    (flat / "LOC_val_solution.csv").write_text(table)
    assert targets_by_name(ready(flat)) == expected_test()


def test_a_flat_folder_without_ground_truth_says_what_is_understood(flat):
    with pytest.raises(FileNotFoundError, match=r"ground_truth\.txt and meta\.mat.*data\.devkit"):
        ready(flat)
    published.write_devkit(flat)
    (flat / "meta.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs meta\.mat beside it"):
        ready(flat)


def test_ground_truth_that_is_too_short_names_the_first_image_without(flat):
    file = published.write_devkit(flat) / "ILSVRC2012_validation_ground_truth.txt"
    file.write_text("\n".join(file.read_text().split()[:-2]))
    with pytest.raises(ValueError, match=r"7 images has no label for ILSVRC2012_val_00000008"):
        ready(flat)
    for odd in ("77", "a"):
        file.write_text(f"1\n{odd}\n")
        with pytest.raises(ValueError, match=rf"line 2: meta\.mat knows no class {odd}"):
            ready(flat)


def test_ground_truth_that_is_damaged_is_named(flat):
    folder = published.write_devkit(flat)
    for damaged in ((folder / "meta.mat").read_bytes()[:500], b""):
        (folder / "meta.mat").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"meta\.mat beside or in .*ground_truth\.txt is dam"):
            ready(flat)
    for table in ("a,b\n1,2\n", "ImageId,PredictionString\nx,\n", "ImageId,PredictionString\nx\n"):
        (flat / "LOC_val_solution.csv").write_text(table)
        with pytest.raises(ValueError, match=r"solution\.csv has no ImageId and PredictionString"):
            ready(flat)


def test_the_devkits_archive_is_read_as_torchvision_reads_it(root, tmp_path, monkeypatch):
    from torchvision.datasets import imagenet as peer

    packed = published.write_archives(root, tmp_path / "packed")
    monkeypatch.setattr(peer, "_verify_archive", lambda *_: None)  # not the published bytes
    peer.parse_devkit_archive(packed)
    _, wnids = peer.load_meta_file(packed)
    assert list(validation_labels(packed).values()) == wnids
    cut = packed / "ILSVRC2012_devkit_t12.tar.gz"
    cut.write_bytes(cut.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"devkit_t12\.tar\.gz cannot be read"):
        validation_labels(packed)


def test_untouched_archives_give_the_same_batches_as_folders(root, tmp_path):
    packed = published.write_archives(root, tmp_path / "packed")
    folders, archives = ready(root, seed=2), ready(packed, seed=2, num_workers=2)
    archives.prepare_data()
    assert archives.class_names == folders.class_names
    assert targets_by_name(archives) == targets_by_name(folders)
    # validation images lie in the archive by number, in folders by class
    order = archives.test_dataloader().dataset.targets
    images = torch.cat([x for x, _ in archives.test_dataloader()])
    by_class = torch.cat([x for x, _ in folders.test_dataloader()])
    assert torch.equal(images[torch.tensor(order).argsort(stable=True)], by_class)
    pairs = zip(archives.train_dataloader(), folders.train_dataloader(), strict=True)
    for (x, y), (other, label) in pairs:
        assert torch.equal(x, other)
        assert torch.equal(y, label)


def test_a_cut_off_archive_is_refused_in_setup(root, tmp_path):
    packed = published.write_archives(root, tmp_path / "packed")
    archive = packed / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:-15000])
    with pytest.raises(ValueError, match=r"n03126707\.tar.*ILSVRC2012_img_train\.tar"):
        ready(packed)


def test_archives_are_checked_like_folders(root, tmp_path):
    """`firstlight data check`; the images of these trees are smaller than 224 px."""
    packed = published.write_archives(root, tmp_path / "packed")
    facts = []
    for where in (root, packed):
        found = data_check(ready(where), tmp_path / "report")
        columns = pq.read_table(tmp_path / "report/files.parquet").to_pydict()
        pairs = zip(columns["size"], columns["pixels"], strict=True)
        facts.append((sorted(map(str, found)), sorted(pairs)))
    assert facts[0] == facts[1]


def test_further_sets_find_their_classes_by_wordnet_id(root, tmp_path):
    for label, wnid in list(enumerate(WNIDS))[1:]:
        published.save_image(tmp_path / "sketch" / wnid / "1.JPEG", label, 0)
    data = ready(root, test_sets={"sketch": ImageFolderShift(str(tmp_path / "sketch"))})
    assert data.class_ids == WNIDS
    assert data.test_dataloader()["sketch"].dataset.targets == [1, 2]


# ImageNet-LT


def lines_of(folder, split):
    text = (folder / f"ImageNet_LT_{split}.txt").read_text()
    return [(Path(p).name, int(c)) for p, c in (line.rsplit(None, 1) for line in text.splitlines())]


def listed(files):
    return [(name_of(p), t) for p, t in zip(files.paths, files.targets, strict=True)]


@pytest.mark.parametrize("newline", [True, False])
@pytest.mark.parametrize("nested_list", [True, False])
@pytest.mark.parametrize("nested_tree", [True, False])
def test_lists_keep_their_order_whatever_the_layout_of_val(
    root, flat, tmp_path, newline, nested_list, nested_tree
):
    lists = published.write_imagenet_lt(tmp_path / "lt", nested_list, newline)
    data = ready(root if nested_tree else flat, lists=str(lists), holdout=0)
    assert listed(data._ready.train) == lines_of(lists, "train")
    assert listed(data._ready.test) == lines_of(lists, "test")
    assert data.full_class_counts == [11, 7, 3]


def test_lists_work_on_untouched_archives(root, tmp_path):
    packed = published.write_archives(root, tmp_path / "packed")
    lists = published.write_imagenet_lt(tmp_path / "lt")
    data = ready(packed, lists=str(lists), holdout=0.0)
    assert listed(data._ready.train) == lines_of(lists, "train")
    assert listed(data._ready.val) == lines_of(lists, "val")
    assert listed(data._ready.test) == lines_of(lists, "test")
    assert len(torch.cat([y for _, y in data.train_dataloader()])) == 21


def test_the_official_validation_list_is_used_and_named(root, tmp_path):
    data = ready(root, lists=str(published.write_imagenet_lt(tmp_path / "lt")))
    assert listed(data._ready.val) == lines_of(tmp_path / "lt", "val")
    assert sum(data.class_counts) == 21 - 3  # held out: one of each class
    assert "say val=official" in data.summary()
    assert "train by ImageNet_LT_train.txt" in data.summary()


def test_missing_images_of_a_list_are_counted_and_named(root, tmp_path):
    lists = published.write_imagenet_lt(tmp_path / "lt")
    gone = lines_of(lists, "train")[2][0]
    (root / "train" / gone.split("_")[0] / gone).unlink()
    message = rf"ImageNet_LT_train\.txt lists 21 .* 1 are not .*{gone} \(line 3\)"
    with pytest.raises(FileNotFoundError, match=message):
        ready(root, lists=str(lists))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n01440764_0.JPEG 0", "n01440764_0.JPEG 1", r"n01440764 has number 0 among the 3"),
        ("n01440764_0.JPEG 0", "n01440764_0.JPEG 7", r"has label 7, but n01440764 has number 0"),
        ("val_00000001.JPEG 0", "val_00000001.JPEG 2", r"label 2, but n01440764 has number 0"),
    ],
)
def test_labels_that_are_not_the_order_of_the_folders_are_refused(
    root, tmp_path, old, new, message
):
    lists = published.write_imagenet_lt(tmp_path / "lt")
    for file in lists.iterdir():
        file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        ready(root, lists=str(lists))


def test_an_image_listed_for_training_and_for_validation_is_refused(root, tmp_path):
    lists = published.write_imagenet_lt(tmp_path / "lt")
    line = (lists / "ImageNet_LT_train.txt").read_text().splitlines()[0]
    with (lists / "ImageNet_LT_val.txt").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=r"is in train and in val"):
        ready(root, lists=str(lists))


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_list_of_images_that_are_tested_on_is_refused(root, tmp_path, split):
    """Caffe's ``val.txt`` lists the 50,000, which without a list ``test`` are the test set."""
    lists = published.write_imagenet_lt(tmp_path / "lt")
    listed = {"train": lists / "ImageNet_LT_train.txt", split: lists / "ImageNet_LT_test.txt"}
    message = rf"in test \(not listed: all\) and in {split}: one image, one split"
    with pytest.raises(ValueError, match=message):
        ready(root, lists={name: str(file) for name, file in listed.items()})


def test_a_list_of_images_that_are_trained_on_is_refused(root, tmp_path):
    lists = published.write_imagenet_lt(tmp_path / "lt")
    with pytest.raises(ValueError, match=r"in train \(not listed: all\) and in val"):
        ready(root, lists={"val": str(lists / "ImageNet_LT_val.txt")})


def test_names_that_training_and_validation_share_are_refused_where_listed(root, tmp_path):
    name = "n01440764/n01440764_0.JPEG"
    shutil.copy(root / "train" / name, root / "val" / name)
    (tmp_path / "train.txt").write_text(name)
    with pytest.raises(ValueError, match=rf"{name}, which may be .*/train/.* or .*/val/"):
        ready(root, lists={"train": str(tmp_path / "train.txt")})


@pytest.mark.parametrize("archives", [False, True])
def test_a_list_of_bare_names_chooses_training_images(root, tmp_path, archives):
    """The form of SimCLR's 1 % and 10 % subsets."""
    packed = published.write_archives(root, tmp_path / "packed") if archives else root
    names = ["n03126707_7.JPEG", "n01440764_14.JPEG", "n02012849_0.JPEG", "n01440764_0.JPEG"]
    (tmp_path / "1percent.txt").write_text("\n".join(names))
    data = ready(packed, lists={"train": str(tmp_path / "1percent.txt")}, val=0, holdout=0)
    assert listed(data._ready.train) == list(zip(names, [2, 0, 1, 0], strict=True))
    assert targets_by_name(data) == expected_test()


# parts for development, and what cannot be right


def test_some_classes_are_numbered_anew_and_said(root):
    data = ready(root, classes=["n03126707", "n01440764"], val=0, holdout=0)
    assert data.class_names == ["tench", "crane"]
    assert data.class_counts == [14, 4]
    want = {n: c // 2 for n, c in expected_test().items() if c != 1}
    assert targets_by_name(data) == want
    assert "2 of 3 classes" in data.summary()
    assert ready(root, classes=2).class_names == ["tench", "crane"]  # evenly over the ids
    with pytest.raises(ValueError, match="no training images of n00000001"):
        ready(root, classes=["n00000001"])
    with pytest.raises(ValueError, match="from 2 to 3, got 4"):
        ready(root, classes=4)


def test_a_fraction_is_stratified_the_same_for_all_seeds_and_said(root):
    one, other = (ready(root, fraction=0.3, seed=s, val=0, holdout=0) for s in (0, 1))
    assert one.class_counts == [4, 3, 1]  # of 14, 9 and 4
    assert one._ready.train.paths == other._ready.train.paths
    assert "0.3 of the training images of every class" in one.summary()
    assert len(targets_by_name(one)) == 9
    with pytest.raises(ValueError, match=r"\(0, 1\], got 0"):
        ImageNetDataModule(str(root), fraction=0)


def test_a_class_that_only_one_split_has_is_named(root):
    shutil.rmtree(root / "val/n02012849")
    with pytest.raises(ValueError, match="class n02012849 is in train but not in test"):
        ready(root)
    shutil.rmtree(root / "train/n02012849")
    assert ready(root).class_names == ["tench", "crane"]
    shutil.rmtree(root / "train/n01440764")
    with pytest.raises(ValueError, match="class n01440764 is in test but not in train"):
        ready(root)


def test_other_trees_are_refused_with_what_is_understood(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train/<wnid>/.*ILSVRC2012_img_train\.tar"):
        ready(tmp_path / "none")
    (root / "train/n01440764").rename(root / "train/tench")
    with pytest.raises(ValueError, match="'tench' is not a WordNet id"):
        ready(root)


def test_without_validation_images_there_is_no_test_set_and_it_is_said(root):
    shutil.rmtree(root / "val")
    data = ready(root)
    assert "there is no test set" in data.summary()
    with pytest.raises(ValueError, match="no test set"):
        data.test_dataloader()


@pytest.mark.parametrize("layout", ["folders", "flat"])
def test_validation_images_alone_can_be_tested_on_but_not_trained(root, flat, layout):
    where = root if layout == "folders" else flat
    published.write_devkit(where)
    shutil.rmtree(where / "train")
    data = ImageNetDataModule(str(where), img_size=16, num_workers=0)
    data.setup("test")
    assert targets_by_name(data) == expected_test()
    assert data.class_names == NAMES
    assert len(data.val_dataloader().dataset) == 9
    assert "no training images: validation is the test set" in data.summary()
    data.load_state_dict({"seed": 0, "train": "of the run"})  # nothing to warn of
    with pytest.raises(FileNotFoundError, match="no ImageNet training images"):
        data.setup("fit")


def test_names_for_prediction_need_no_image(root, monkeypatch, tmp_path):
    monkeypatch.setattr(imagenet_files, "scan_classes", None)
    data = ImageNetDataModule(str(root), classes=["n01440764", "n02012849"])
    data.setup("predict")
    assert data.class_names == ["tench", "crane"]
    nowhere = ImageNetDataModule(str(tmp_path / "none"))
    nowhere.setup("predict")
    with pytest.raises(RuntimeError):
        nowhere.class_names  # noqa: B018  # a property that raises
