import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("litdata", reason="the extra 'streaming' is not installed")

from firstlight.data import data_pack
from firstlight.data.command import command_line
from firstlight.datamodules import DigitsDataModule, ImageFolderDataModule, StreamedDataModule


@pytest.fixture
def folder(tmp_path):
    """Training images of two classes, a test set, and a manifest of them all."""
    random = np.random.default_rng(0)
    rows = ["path,label,split"]
    for part, count in (("train", 20), ("test", 3)):
        for name in ("ant", "bee"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                file = tmp_path / "images" / part / name / f"{number:02}.png"
                Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(file)
                rows.append(f"{file},{name},{part}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return tmp_path / "images"


def sizes(pack):
    told = json.loads((Path(pack) / "pack.json").read_text())
    return {name: len(split["targets"]) for name, split in told["splits"].items()}


def test_the_commands_forms_pack_the_same(folder, tmp_path):
    (tmp_path / "data.yaml").write_text(
        f"data: {{class_path: ImageFolderDataModule, init_args: {{root: {folder}}}}}"
    )
    kind = ["--data=ImageFolderDataModule", f"--data.root={folder}", "--data.seed=0"]
    for number, given in enumerate(
        [[folder, 0], [tmp_path / "list.csv", 1], ["--config", tmp_path / "data.yaml", 2],
         [3, *kind], [*kind, 4]]
    ):  # fmt: skip
        out = [str(tmp_path / f"o{a}") if isinstance(a, int) else str(a) for a in given]
        command_line(["pack", *out])
        packed = tmp_path / f"o{number}"
        assert sizes(packed) == {"train": 32, "val": 4, "holdout": 4, "test": 6, "probe": 32}
        for file in ("pack.json", "train/chunk-0-0.bin"):
            assert (packed / file).read_bytes() == (tmp_path / "o0" / file).read_bytes()
    with pytest.raises(SystemExit):
        command_line(["pack"])


def test_packing_again_gives_the_same_files_and_another_seed_others(folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        data_pack(ImageFolderDataModule(str(folder), seed=seed), tmp_path / name)
    a, b, c = ((tmp_path / name / "train/chunk-0-0.bin").read_bytes() for name in "abc")
    assert a == b != c
    targets = json.loads((tmp_path / "a/pack.json").read_text())["splits"]["train"]["targets"]
    assert targets != sorted(targets)


def test_bad_images_are_found_by_name_or_skipped(folder, tmp_path):
    bad = folder / "train/bee/03.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"bee/03\.png"):
        data_pack(ImageFolderDataModule(str(folder), verify=False), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.warns(UserWarning, match=r"left out: .*bee/03\.png"):
        data_pack(ImageFolderDataModule(str(folder), on_bad_image="skip"), tmp_path / "a")
    data = StreamedDataModule(str(tmp_path / "a"), img_size=8, num_workers=0)
    data.setup()
    assert sum(data.full_class_counts) == 39
    assert (
        sum(len(targets) for _, targets in data.train_dataloader())
        == sizes(tmp_path / "a")["train"]
    )


def test_what_cannot_be_packed_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="DigitsDataModule reads no image files"):
        data_pack(DigitsDataModule(), tmp_path / "o")
    data_pack(ImageFolderDataModule(str(folder)), tmp_path / "o")
    for used in (tmp_path / "o", tmp_path / "list.csv"):
        with pytest.raises(ValueError, match="is not empty"):
            data_pack(ImageFolderDataModule(str(folder)), used)
    with pytest.raises(ValueError, match="a size is"):
        data_pack(ImageFolderDataModule(str(folder)), tmp_path / "p", chunk_size="large")


def test_an_interrupted_pack_is_refused(folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # a disk that is soon full
    try:
        with pytest.raises(OSError, match=r"could not pack train .*too large.*remove the folder"):
            data_pack(ImageFolderDataModule(str(folder)), tmp_path / "o", chunk_size="4KB")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(FileNotFoundError, match=r"has no pack\.json: packing was interrupted"):
        StreamedDataModule(str(tmp_path / "o")).setup()


def test_legacy_keeps_one_copy_and_its_warning(folder, tmp_path):
    with pytest.warns(UserWarning, match="protocol='legacy'"):
        data_pack(ImageFolderDataModule(str(folder), protocol="legacy"), tmp_path / "o")
    assert not (tmp_path / "o/test").exists()
    data = StreamedDataModule(str(tmp_path / "o"), img_size=8, num_workers=0)
    with pytest.warns(UserWarning, match="protocol='legacy'"):
        data.setup()
    assert "protocol legacy" in data.summary() and data._ready.holdout is None
    (val, *_), (test, *_) = data.val_dataloader(), data.test_dataloader()
    assert torch.equal(val[0], test[0])
    with pytest.raises(ValueError, match="holds nothing out"):
        data.holdout_dataloader()
