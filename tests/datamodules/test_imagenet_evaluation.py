"""Pretrained top-1 on real ImageNet images: the command line against timm alone."""

import csv
import os
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config

from firstlight import cli

IMAGES = Path(__file__).parents[2] / "data/imagenet-samples"
NAME = "tf_efficientnet_lite0"
WEIGHTS = Path(os.environ.get("FIRSTLIGHT_DEV_DATA", "absent")) / f"{NAME}.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not IMAGES.is_dir(), reason=f"needs {IMAGES}: <wnid>/<file>.JPEG")
@pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"FIRSTLIGHT_DEV_DATA names no folder with {WEIGHTS.name}"
)
def test_validate_gives_timms_top1(tmp_path, monkeypatch):
    wnids = ImageNetInfo().label_names()  # sorted, in the order of the outputs
    model = timm.create_model(NAME, checkpoint_path=str(WEIGHTS)).eval()
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    correct = total = 0
    with torch.inference_mode():
        for path in sorted(IMAGES.rglob("*.JPEG")):
            image = transform(Image.open(path).convert("RGB"))
            correct += int(model(image.unsqueeze(0)).argmax() == wnids.index(path.parent.name))
            total += 1

    # every class needs a training image; these are never looked at
    for wnid in wnids:
        (tmp_path / "tree/train" / wnid).mkdir(parents=True)
        (tmp_path / "tree/train" / wnid / "any.jpg").symlink_to(path)
    (tmp_path / "tree/val").symlink_to(IMAGES)
    arguments = {
        "model.model_name": NAME,
        "model.num_classes": len(wnids),
        "model.checkpoint_path": WEIGHTS,
        "data": "ImageFolderDataModule",
        "data.root": tmp_path / "tree",
        "data.model_name": NAME,
        "data.holdout": 0,
        "data.verify": "false",
        "data.num_workers": 0,
        "data.batch_size": 20,
        "trainer.accelerator": "cpu",
        "trainer.logger": "CSVLogger",
        "trainer.logger.save_dir": tmp_path,
        "trainer.enable_progress_bar": "false",
    }
    monkeypatch.chdir(tmp_path)
    given = [f"--{name}={value}" for name, value in arguments.items()]
    monkeypatch.setattr(sys, "argv", ["firstlight", "validate", *given])
    cli.main()
    (metrics,) = tmp_path.rglob("metrics.csv")
    (row,) = csv.DictReader(metrics.read_text().splitlines())
    assert total == 100
    assert 65 < correct < 95  # so that a wrong preprocessing shows
    assert round(100 * float(row["val/top1"])) == correct
