import numpy as np
import pytest
import torch
from PIL import Image
from timm import get_pretrained_cfg
from timm.data import create_transform, resolve_data_config

from firstlight.datamodules import ImageFolderDataModule
from firstlight.datamodules.image_files import list_images


def folder(root, **changes):
    arguments = {"num_workers": 0, "img_size": 16, "batch_size": 4, "seed": 1}
    return ImageFolderDataModule(str(root), **(arguments | changes))


def ready(root, stage="fit", **changes):
    data = folder(root, **changes)
    data.setup(stage)
    return data


def test_real_splits_are_used(folder_root):
    data = ready(folder_root)
    assert data.class_names == ["ant", "bee", "fly"]
    assert data.full_class_counts == [24, 12, 3]
    assert data.class_counts == [22, 11, 2]  # only the hold-out is cut
    assert len(data.val_dataloader().dataset) == 12
    assert len(data.test_dataloader().dataset) == 7


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_other_names_of_the_validation_folder(folder_root, name):
    (folder_root / "val").rename(folder_root / name)
    assert len(ready(folder_root).val_dataloader().dataset) == 12


@pytest.mark.parametrize(
    ("train", "val", "test"), [("training", "validation", "test"), ("Train", "VALID", "Testing")]
)
def test_other_names_of_all_folders(folder_root, train, val, test):
    for old, new in (("train", train), ("val", val), ("test", test)):
        (folder_root / old).rename(folder_root / new)
    (folder_root / "annotations").mkdir()  # beside splits: no class
    data = ready(folder_root)
    assert data.class_names == ["ant", "bee", "fly"]
    assert data.full_class_counts == [24, 12, 3]
    assert len(data.val_dataloader().dataset) == 12
    assert len(data.test_dataloader().dataset) == 7


def test_splits_without_a_training_folder_are_no_classes(folder_root):
    (folder_root / "train").rename(folder_root / "tr")
    message = (
        r"folder has the split folders 'test', 'val', but none for training\. Understood are, in "
        r"any case: train \(train\), training \(train\), .*manifest"
    )
    for stage in ("fit", "predict"):
        with pytest.raises(ValueError, match=message):
            ready(folder_root, stage)


def test_two_folders_for_one_split_are_refused(folder_root):
    (folder_root / "test").rename(folder_root / "Training")
    with pytest.raises(ValueError, match="'Training' and 'train' both mean the split 'train'"):
        ready(folder_root)


def test_a_folder_of_class_folders_is_split(tree, tmp_path):
    tree(tmp_path / "t", {"a": 50, "b": 20})
    data = ready(tmp_path / "t", test=0.2)
    assert data.full_class_counts == [40, 16]
    assert [len(part) for part in (data._splits.test, data._splits.val)] == [14, 6]
    assert data.class_counts == [32, 12]


def test_the_test_set_does_not_move_with_the_seed(tree, tmp_path):
    tree(tmp_path / "t", {"a": 50, "b": 20})
    one, other = (ready(tmp_path / "t", test=0.2, seed=seed) for seed in (0, 1))
    assert one._splits.test.paths == other._splits.test.paths
    assert one._splits.val.paths != other._splits.val.paths  # these do
    assert not set(one._splits.test.paths) & set(other._splits.train.paths)


def test_a_test_share_of_zero_cuts_nothing(tree, tmp_path):
    tree(tmp_path / "t", {"a": 5, "b": 5})
    data = ready(tmp_path / "t", test=0)
    assert data.full_class_counts == [5, 5]
    with pytest.raises(ValueError, match=r"has no test set: .*test=0\.1"):
        data.test_dataloader()


@pytest.mark.parametrize("kind", ["tree", "manifest"])
def test_data_with_a_training_split_alone_loses_nothing_to_a_test_set(tree, tmp_path, kind):
    tree(tmp_path / "train", {"a": 20, "b": 10})
    manifest = None
    if kind == "manifest":
        rows = [f"{p},{p.parent.name},train" for p in sorted(tmp_path.rglob("*.png"))]
        manifest = str(tmp_path / "m.csv")
        (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *rows]))
    data = ready(tmp_path, manifest=manifest)
    assert data.full_class_counts == [20, 10]
    with pytest.raises(ValueError, match="has no test set"):
        data.test_dataloader()


def test_a_manifest_without_splits_is_cut(tree, tmp_path):
    tree(tmp_path / "t", {"a": 20, "b": 10})
    rows = [f"{p},{p.parent.name}" for p in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *rows]))
    data = ready(tmp_path, manifest=str(tmp_path / "m.csv"), test=0.2)
    assert data.full_class_counts == [16, 8]
    assert len(data.test_dataloader().dataset) == 6
    named = ready(tmp_path, "predict", manifest=str(tmp_path / "m.csv"))
    assert named.class_names == ["a", "b"]


def test_no_test_set_is_said_when_it_is_asked_for(folder_root):
    for file in sorted((folder_root / "test").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (folder_root / "test").rmdir()
    data = ready(folder_root)
    with pytest.raises(ValueError, match="no test set: add a folder"):
        data.test_dataloader()


def test_a_manifest_gives_the_same_as_the_tree(folder_root):
    rows = ["path,label,split"]
    rows += [
        f"{p.relative_to(folder_root)},{p.parent.name},{p.parent.parent.name}"
        for p in sorted(folder_root.rglob("*.jpg"))
    ]
    (folder_root / "m.csv").write_text("\n".join(rows))
    tree, listed = ready(folder_root), ready(folder_root, manifest=str(folder_root / "m.csv"))
    assert tree._splits.fingerprint == listed._splits.fingerprint
    assert tree._splits.train.paths == listed._splits.train.paths
    alone = ImageFolderDataModule(manifest=str(folder_root / "m.csv"), num_workers=0, seed=1)
    alone.setup("fit")
    assert alone._splits.train.paths == tree._splits.train.paths


def test_evaluation_images_are_timms(folder_root):
    data = ready(folder_root, model_name="test_vit", img_size=None)
    config = resolve_data_config({}, pretrained_cfg=get_pretrained_cfg("test_vit").to_dict())
    transform = create_transform(**config, is_training=False)
    dataset = data.test_dataloader().dataset
    images = torch.cat([x for x, _ in data.test_dataloader()])
    for image, path in zip(images, dataset.paths, strict=True):
        torch.testing.assert_close(image, transform(Image.open(path)), rtol=0, atol=1e-6)


def test_augmentation_does_not_depend_on_workers_or_order(folder_root):
    def epoch(workers, batch_size=4):
        data = ready(folder_root, num_workers=workers, erasing=0.5, batch_size=batch_size)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(2)
        return torch.cat([x for x, _ in loader]), loader

    alone, loader = epoch(0)
    assert torch.equal(alone, epoch(2)[0])
    assert torch.equal(alone, epoch(0, batch_size=7)[0])
    loader.dataset.set_epoch(2)
    order = list(loader.sampler)
    one, _ = loader.collate_fn([loader.dataset[order[5]]])
    assert torch.equal(loader.finish(*one)[0], alone[5])


def test_every_file_has_its_own_augmentation(tree, tmp_path):
    tree(tmp_path / "t", {"a": 4, "b": 4})
    content = (tmp_path / "t/a/000.png").read_bytes()
    for file in (tmp_path / "t").rglob("*.png"):
        file.write_bytes(content)
    data = ready(tmp_path / "t", holdout=0, val=0, test=0, batch_size=8)
    images = next(iter(data.train_dataloader()))[0]
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_workers_that_stay_see_the_next_epoch(folder_root):
    loaders = [ready(folder_root, num_workers=w).train_dataloader() for w in (0, 1)]
    for epoch in (0, 1, 2):
        batches = []
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
            batches.append(torch.cat([x for x, _ in loader]))
        assert torch.equal(*batches)


def test_a_loop_of_ones_own_resumes_in_mid_epoch(folder_root):
    def loader():
        made = ready(folder_root).train_dataloader()
        made.sampler.set_epoch(1)
        return made

    whole = [x for x, _ in loader()]
    killed = loader()
    iterator = iter(killed)
    for _ in range(3):
        next(iterator)
    resumed = loader()
    resumed.load_state_dict(killed.state_dict())
    rest = [x for x, _ in resumed]
    assert len(rest) == len(whole) - 3
    assert all(map(torch.equal, rest, whole[3:]))
    assert len(list(resumed)) == len(whole)


def test_predicting_a_folder_needs_no_training_data(folder_root):
    data = ImageFolderDataModule(predict_dir=str(folder_root), num_workers=0, img_size=16)
    data.setup("predict")
    loader = data.predict_dataloader()
    numbers = [n for _, batch in loader for n in batch.tolist()]
    assert numbers == list(range(58))
    assert loader.dataset.paths == list_images(folder_root)
    named = ready(folder_root, "predict", predict_dir=str(folder_root))
    assert named.class_names == ["ant", "bee", "fly"]


def test_what_cannot_be_predicted_is_said(tmp_path):
    with pytest.raises(ValueError, match="pass predict_dir"):
        folder(tmp_path).predict_dataloader()
    with pytest.raises(FileNotFoundError, match="no image under"):
        folder(tmp_path, predict_dir=str(tmp_path)).predict_dataloader()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folder(tmp_path, predict_dir=str(tmp_path / "none")).predict_dataloader()


def test_missing_data_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pass root.*manifest"):
        ImageFolderDataModule().setup("fit")
    with pytest.raises(FileNotFoundError, match="root/train/<class>"):
        ready(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no class folders"):
        ready(tmp_path)


def test_an_empty_class_folder_is_named(folder_root):
    (folder_root / "train/wasp").mkdir()
    with pytest.raises(ValueError, match="train/wasp holds no image"):
        ready(folder_root)


def test_a_class_that_is_not_trained_is_named(folder_root):
    (folder_root / "val/bee").rename(folder_root / "val/wasp")
    with pytest.raises(ValueError, match=r"val/wasp: there is no class 'wasp'.*ant, bee, fly"):
        ready(folder_root)


def test_other_files_are_left_out_with_a_warning(folder_root):
    (folder_root / "train/ant/.hidden").write_text("")
    (folder_root / "train/ant/notes.txt").write_text("")
    with pytest.warns(UserWarning, match=r"1 files under .*notes\.txt"):
        assert ready(folder_root).full_class_counts[0] == 24


@pytest.mark.parametrize("content", [b"not an image", None], ids=["text", "truncated"])
def test_bad_files_are_found_before_training(folder_root, content):
    bad = folder_root / "train/bee/004.jpg"
    bad.write_bytes(bad.read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match=r"train/bee/004\.jpg.*replace the file or remove it"):
        ready(folder_root)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_that_were_not_looked_for_are_named_too(folder_root, workers):
    (folder_root / "test/bee/001.jpg").write_text("not an image")
    data = ready(folder_root, verify=False, num_workers=workers)
    with pytest.raises(ValueError, match=r"test/bee/001\.jpg"):
        list(data.test_dataloader())


def test_grey_and_transparent_images_become_three_channels(tree, tmp_path):
    tree(tmp_path / "t", {"a": 5, "b": 5})
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "t/a/grey.png")
    Image.new("RGBA", (9, 9)).save(tmp_path / "t/a/clear.png")
    data = ready(tmp_path / "t", holdout=0, val=0, test=0)
    assert all(x.shape[1:] == (3, 16, 16) for x, _ in data.train_dataloader())
    assert data.class_counts == [7, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (0.5, 0.1)}, r"scale is a range within \(0, 1\], got \(0\.5, 0\.1\)"),
        ({"scale": (0.08, 2.0)}, "scale is a range"),
        ({"scale": (0.0, 1.0)}, "scale is a range"),
        ({"ratio": (4 / 3, 3 / 4)}, "ratio is a range"),
        ({"horizontal_flip": 2.0}, "horizontal_flip lies in"),
        ({"test": 1.0}, r"test lies in \[0, 1\)"),
        ({"root": "x", "class_names": ["a", "b"]}, "names for a manifest's numbers"),
        ({"manifest": "x.csv", "class_names": ["a", "a"]}, "no two alike"),
    ],
)
def test_bad_arguments_are_refused_before_data_is_read(changes, message):
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(**changes)
