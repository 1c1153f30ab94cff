"""ImageNet's shifted sets and other domains, on small trees of their layouts."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from firstlight.callbacks import PerClassMonitor
from firstlight.datamodules import ImageFolderDataModule, ImageFolderShift, ImageNetC
from firstlight.functional.corruptions import BENCHMARK, PUBLISHED
from firstlight.lightning_modules import ImageClassifier
from firstlight.runfolder import RunFolder

WNIDS = [f"n0{number:07}" for number in (1440764, 1443537, 1484850, 1491361, 1494475, 1496331,
                                         1498041, 1514668, 1514859, 1518878, 1530575)]  # fmt: skip


def colour(root, number, count=2, of="JPEG"):
    """Images of a class: its number is their red, times twenty."""
    root.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (20, 20), (20 * number, index, 7)).save(root / f"{index}.{of}", quality=95)


@pytest.fixture
def imagenet(tmp_path):
    """A tree of eleven classes by wnid; more than ten, so that "10" sorts before "2"."""
    for split, count in (("train", 6), ("test", 2)):
        for number, wnid in enumerate(WNIDS):
            colour(tmp_path / "own" / split / wnid, number, count)

    def module(**sets):
        data = ImageFolderDataModule(
            str(tmp_path / "own"), img_size=16, crop_pct=1, mean=[0] * 3, std=[1] * 3,
            num_workers=0, test_sets=sets, holdout=0,
        )  # fmt: skip
        data.setup("test")
        return data

    return module


def red(loader):
    """Class by the images' colour, and as the loader says."""
    pairs = [(x[:, 0].mean((1, 2)), y) for x, y in loader]
    shown = torch.cat([x for x, _ in pairs]) * 255 / 20
    return shown.round().long().tolist(), torch.cat([y for _, y in pairs]).tolist()


def test_v2_is_numbered_not_sorted(imagenet, tmp_path):
    for number in range(11):
        colour(tmp_path / "v2" / str(number), number)
    shown, said = red(
        imagenet(v2=ImageFolderShift(str(tmp_path / "v2"), True)).test_dataloader()["v2"]
    )
    assert shown == said
    assert sorted(said) == sorted([*range(11)] * 2)
    colour(tmp_path / "v2/11", 1)
    with pytest.raises(ValueError, match=r"v2/11: there is no class '11'"):
        imagenet(v2=ImageFolderShift(str(tmp_path / "v2"), True)).test_dataloader()


def test_sketch_is_known_by_wnid_also_where_classes_have_names(imagenet, tmp_path, monkeypatch):
    for number, wnid in list(enumerate(WNIDS))[::-1]:
        colour(tmp_path / "sketch" / wnid, number)
    data = imagenet(sketch=ImageFolderShift(str(tmp_path / "sketch")))
    shown, said = red(data.test_dataloader()["sketch"])
    assert shown == said
    monkeypatch.setattr(type(data), "class_ids", property(lambda self: WNIDS))
    data._class_names = [f"name of {number}" for number in range(11)]
    shown, said = red(data.test_dataloader()["sketch"])
    assert shown == said
    colour(tmp_path / "sketch/n09999999", 1)
    with pytest.raises(ValueError, match=r"sketch/n09999999: there is no class 'n09999999'"):
        data.test_dataloader()


def test_a_map_of_folders(imagenet, tmp_path):
    for folder, number in (("Goldfish", 1), ("Tench", 0), ("carp", 0)):
        colour(tmp_path / "m" / folder, number)
    mapped = {"Goldfish": WNIDS[1], "Tench": WNIDS[0], "carp": WNIDS[0]}
    shift = ImageFolderShift(str(tmp_path / "m"), class_map=mapped)
    shown, said = red(imagenet(m=shift).test_dataloader()["m"])
    assert shown == said == [1, 1, 0, 0, 0, 0]
    wrong = ImageFolderShift(str(tmp_path / "m"), class_map={**mapped, "carp": "n7"})
    with pytest.raises(ValueError, match="class_map: the DataModule has no class 'n7'"):
        imagenet(m=wrong).test_dataloader()
    shorter = ImageFolderShift(str(tmp_path / "m"), class_map={"Tench": WNIDS[0]})
    with pytest.raises(ValueError, match="there is no class 'Goldfish'"):
        imagenet(m=shorter).test_dataloader()


def write_c(root, grouped, names=BENCHMARK):
    groups = {name: group for group, members in PUBLISHED.items() for name in members}
    for name in names:
        for level in range(1, 6):
            home = root / groups[name] / name if grouped else root / name
            for number in (0, 2, 10):
                colour(home / str(level) / WNIDS[number], number, 1)
    return root


@pytest.mark.parametrize("grouped", [True, False])
def test_imagenet_c(grouped, imagenet, tmp_path):
    root = write_c(tmp_path / "c", grouped)
    loader = imagenet(c=ImageNetC(str(root))).test_dataloader()["c"]
    assert loader.dataset.sections[:6] == [
        *(f"gaussian_noise/{s}" for s in range(1, 6)),
        "shot_noise/1",
    ]
    assert loader.dataset.section_numbers.tolist() == [s for s in range(75) for _ in range(3)]
    shown, said = red(loader)
    assert shown == said == [0, 2, 10] * 75
    snow = loader.dataset.sections.index("snow/4")
    assert all("/snow/4/" in path for path in loader.dataset.paths[3 * snow : 3 * snow + 3])


def test_an_incomplete_imagenet_c_is_refused(imagenet, tmp_path):
    root = write_c(tmp_path / "c", grouped=True, names=["fog", "snow"])
    shift = ImageNetC(str(root), ["fog", "snow"])
    (root / "weather/snow/3" / WNIDS[2] / "0.JPEG").rename(
        root / "weather/snow/3" / WNIDS[0] / "1.JPEG"
    )
    (root / "weather/snow/3" / WNIDS[2]).rmdir()
    with pytest.raises(ValueError, match=r"snow/3 has 3 images, fog/1 has 3, or of other classes"):
        imagenet(c=shift).test_dataloader()
    (root / "weather/snow/3").rename(root / "weather/snow/6")
    with pytest.raises(FileNotFoundError, match=r"no .*snow/3: .*weather/ above"):
        imagenet(c=shift)


class Net(torch.nn.Module):
    """Finds the class of the nearest red, but sees every image 12 levels redder than it is."""

    def __init__(self):
        super().__init__()
        self.red = torch.nn.Parameter(torch.arange(11) * 20 / 255)

    def forward(self, x):
        return -((x[:, 0].mean((1, 2))[:, None] + 12 / 255 - self.red) ** 2)


class Foreign(LightningModule):
    """Somebody's module, which knows nothing of restricted sets."""

    def __init__(self):
        super().__init__()
        self.model = Net()

    def forward(self, x):
        return self.model(x)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch[0])


@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_r_and_a_are_scored_over_their_classes(kind, imagenet, tmp_path):
    """As in the authors' code: the logits at the set's classes, argmax, and its own targets."""
    present = [1, 4, 5, 10]
    for number in present:
        colour(tmp_path / "r" / WNIDS[number], number, 5)
    data = imagenet(
        r=ImageFolderShift(str(tmp_path / "r"), restrict=True),
        all=ImageFolderShift(str(tmp_path / "r")),
    )
    net = Net()
    if kind == "ours":
        module = ImageClassifier("resnet20_cifar", num_classes=11)
        module.model = net
    else:
        module = Foreign()
        module.model = net
    images = torch.cat([x for x, _ in data.test_dataloader()["r"]])
    own_targets = torch.tensor([p for p in range(4) for _ in range(5)])  # in the set's own numbers
    logits = net(images).detach()
    right = logits[:, present].argmax(1) == own_targets
    plain = logits.argmax(1) == torch.tensor(present)[own_targets]
    assert (right.sum(), plain.sum()) == (15, 5)  # classes 1, 5 and 10; 10 alone

    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[PerClassMonitor()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    (metrics, *_) = trainer.test(module, data, verbose=False)
    if kind == "ours":
        assert metrics["test/r/top1"] == pytest.approx(float(right.double().mean()))
        assert metrics["test/all/top1"] == pytest.approx(float(plain.double().mean()))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(present)[own_targets])
        for name in ("r", "all"):  # over all classes, whichever are scored
            assert metrics[f"test/{name}/loss"] == pytest.approx(float(loss), rel=1e-5)
    (file,) = tmp_path.rglob("run.json")
    rows = RunFolder.open(file.parent).read("shifts").to_pylist()
    found = {row["set"]: row["top1"] for row in rows}
    assert found["test/r"] == pytest.approx(float(right.double().mean()))
    assert found["test/all"] == pytest.approx(float(plain.double().mean()))
