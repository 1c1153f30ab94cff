"""Further test sets of a DataModule: spelling, refusals, corruptions on the fly."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from firstlight.datamodules import (
    CIFARC,
    CIFAR10DataModule,
    Corrupted,
    DigitsDataModule,
    ImageFolderDataModule,
    ImageFolderShift,
    ImageNetC,
)
from firstlight.datamodules.corrupted import CorruptedImages
from firstlight.datamodules.resident import ResidentImages
from firstlight.datamodules.shifts import Setting
from firstlight.functional.corruptions import corrupt
from firstlight.functional.loaders import named_sets

NAMES = ["a", "b", "c"]


def digits(**kwargs):
    data = DigitsDataModule(**{"img_size": 16, "batch_size": 50, "seed": 3, **kwargs})
    data.setup("test")
    return data


def inputs(loader):
    return torch.cat([x for x, _ in loader])


def test_one_set_stays_one_loader_and_more_are_named_beside_it():
    assert len(digits().test_dataloader()) == 8
    sets = digits(
        test_sets={"fog": Corrupted("fog"), "noise": Corrupted("noise")}
    ).test_dataloader()
    assert [name for name, _ in named_sets("test", sets)] == ["test", "test/fog", "test/noise"]
    own, fog, noise = sets.values()
    assert torch.equal(inputs(own), inputs(digits().test_dataloader()))
    assert (len(fog.dataset), len(noise.dataset)) == (359, 3 * 359)
    assert noise.dataset.sections == ["gaussian_noise/3", "shot_noise/3", "impulse_noise/3"]
    assert noise.dataset.section_numbers.tolist() == [0] * 359 + [1] * 359 + [2] * 359
    assert [t for _, y in noise for t in y.tolist()] == own.dataset.targets * 3


@pytest.mark.parametrize("data", ["digits", "cifar", "files"])
def test_images_are_corrupted_and_then_prepared_as_the_own(data, cifar_root, folder_root):
    """Contrast draws nothing: each input is the corrupted image, put through the same steps."""
    sets = {"low": Corrupted("contrast", [1, 5])}
    if data == "files":
        module = ImageFolderDataModule(str(folder_root), img_size=24, num_workers=0, test_sets=sets)
    elif data == "cifar":
        module = CIFAR10DataModule(str(cifar_root), test_sets=sets)
    else:
        module = DigitsDataModule(test_sets=sets)
    module.setup("test")
    own, low = module.test_dataloader().values()
    mean, std = (torch.tensor(v)[:, None, None] for v in (module.mean, module.std))
    found = inputs(low)
    for place, image in enumerate(inputs(own)):
        pixels = ((image * std + mean) * 255).round().byte()
        for section, level in ((0, 1), (1, 5)):
            array = corrupt(
                pixels.permute(1, 2, 0).numpy(), "contrast", level, np.random.default_rng()
            )
            wanted = (v2.functional.to_image(array).float() / 255 - mean) / std
            at = section * len(own.dataset) + place
            assert torch.allclose(found[at], wanted, atol=1e-5)


def test_noise_is_keyed_by_seed_severity_and_example(folder_root):
    def noisy(seed=0, batch_size=128, workers=0, level=3):
        module = ImageFolderDataModule(
            str(folder_root), img_size=16, num_workers=workers, seed=seed,
            eval_batch_size=batch_size,
            test_sets={"noise": Corrupted(["impulse_noise", "shot_noise"], level)},
        )  # fmt: skip
        module.setup("test")
        return inputs(module.test_dataloader()["noise"])

    once = noisy()
    assert torch.equal(once, noisy(batch_size=3, workers=2))
    assert not torch.equal(once, noisy(seed=1))
    state = torch.get_rng_state()
    noisy()
    assert torch.equal(state, torch.get_rng_state())


def test_no_two_examples_or_severities_share_their_noise():
    """Correlations over 3,072 pixels, whose standard error is .018."""
    data = digits()
    grey = ResidentImages(torch.full((3, 3, 32, 32), 120, dtype=torch.uint8), [0, 1, 2], NAMES)
    setting = Setting(grey, NAMES, NAMES, data.preprocessing, 2, 0, torch.device("cpu"), (1, 0), 0)
    sections = [("gaussian_noise", 1), ("gaussian_noise", 2), ("speckle_noise", 2)]
    images = CorruptedImages(grey, sections, setting, normalised=False)
    noise = torch.stack([images[i][0].double().flatten() for i in range(len(images))])
    assert (noise.corrcoef() - torch.eye(9)).abs().max() < 0.1


def test_two_ranks_share_what_one_sees(monkeypatch):
    sets = {"noise": Corrupted(["gaussian_noise", "fog"])}
    one = inputs(digits(test_sets=sets).test_dataloader()["noise"])
    parts = []
    for rank in (0, 1):
        data = digits(test_sets=sets)
        monkeypatch.setattr(type(data), "_shard", (2, rank))
        parts.append(inputs(data.test_dataloader()["noise"]))
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1)[: len(one)], one)


def test_spelling_in_a_checkpoint(tmp_path):
    plain = {"class_path": "firstlight.datamodules.Corrupted", "init_args": {"severities": 5}}
    data = digits(test_sets={"fog": Corrupted("fog", [1, 2]), "own": plain})
    assert data.test_sets["own"] == Corrupted(severities=5)
    torch.save(dict(data.hparams), tmp_path / "h.pt")
    kept = torch.load(tmp_path / "h.pt", weights_only=True)
    assert DigitsDataModule(**kept).test_sets == data.test_sets


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DigitsDataModule(test_sets={"a/b": Corrupted()}), "'a/b' is no name"),
        (lambda: DigitsDataModule(test_sets={"test": Corrupted()}), "other than 'test'"),
        (lambda: DigitsDataModule(test_sets={"x": 3}), "'x' is no Shift.*but 3"),
        (lambda: DigitsDataModule(test_sets={"x": {"root": "r"}}), "'x' is no Shift"),
        (lambda: DigitsDataModule(test_sets={"x": {"class_path": "Fog"}}), "'x': .*'Fog'"),
        (lambda: DigitsDataModule(test_sets={"x": {"class_path": "no.Fog"}}), "named 'no'"),
        (lambda: DigitsDataModule(eval_batch_size=0), "eval_batch_size"),
        (lambda: Corrupted("snow"), "no corruption on the fly 'snow': choose of gaussian_noise"),
        (lambda: Corrupted([]), "names none"),
        (lambda: Corrupted(["fog", "weather"]), "or one twice"),
        (lambda: Corrupted("fog", 6), "numbers from 1 to 5"),
        (lambda: Corrupted("fog", [2, 2]), "each once"),
        (lambda: CIFARC("r", "frosty"), "no corruption 'frosty'"),
        (lambda: ImageNetC("r", "fog", [0]), "numbers from 1 to 5"),
        (lambda: ImageFolderShift("r", numbered=True, class_map={}), "give one of them"),
    ],
)
def test_what_cannot_be_right_is_refused_in_the_constructor(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (CIFARC("nowhere"), "no labels.npy in .*nowhere.*does not exist"),
        (ImageFolderShift("nowhere"), "no folder .*nowhere"),
        (ImageNetC("nowhere"), r"no nowhere/gaussian_noise/1: .*noise/ above"),
    ],
)
def test_what_is_not_there_is_said_before_training(shift, message, stage):
    with pytest.raises(FileNotFoundError, match=message):
        DigitsDataModule(test_sets={"x": shift}).setup(stage)


def test_files_are_in_colour(tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "one/0.png")
    with pytest.raises(ValueError, match=r"read in colour.*one channel"):
        digits(channels=1, test_sets={"x": ImageFolderShift(str(tmp_path))}).test_dataloader()
