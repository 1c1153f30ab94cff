import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from firstlight.datamodules.preprocessing import (
    Preprocessing,
    evaluation_transform,
    resolve_preprocessing,
)

NATIVE = Preprocessing(32, 1.0, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
NOTHING = dict.fromkeys(("img_size", "crop_pct", "interpolation", "mean", "std"))


@pytest.fixture(params=[(50, 37), (300, 401), (224, 224)], ids=str)
def image(request):
    width, height = request.param
    pixels = np.random.default_rng(0).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height))


# bicubic and bilinear, 224 and other sizes, ImageNet's and other means, centre and squash
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "efficientnet_b1",
        "vit_small_patch16_384",
        "test_vit",
        "tf_efficientnetv2_b3",
    ],
)
def test_evaluation_equals_timms_transform(name, image):
    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs = create_transform(**config, is_training=False)
    ours = evaluation_transform(resolve_preprocessing(NOTHING, name, NATIVE)[0])
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-6)


def test_squash_equals_timms_transform(image):
    how = Preprocessing(96, 0.9, "bicubic", (0.5,) * 3, (0.5,) * 3, "squash")
    theirs = create_transform(
        (3, 96, 96),
        crop_pct=0.9,
        crop_mode="squash",
        interpolation="bicubic",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    torch.testing.assert_close(evaluation_transform(how)(image), theirs(image), rtol=0, atol=1e-6)


def test_without_a_backbone_the_data_set_decides():
    how, sources = resolve_preprocessing(NOTHING, None, NATIVE)
    assert how == NATIVE
    assert set(sources.values()) == {"data set"}


def test_arguments_win_over_the_backbone_which_wins_over_the_data_set():
    given = NOTHING | {"img_size": 96, "mean": [0.5, 0.6, 0.7]}
    how, sources = resolve_preprocessing(given, "resnet18", NATIVE)
    assert (how.img_size, how.mean) == (96, (0.5, 0.6, 0.7))
    assert how.std == timm.get_pretrained_cfg("resnet18").std
    assert sources["img_size"] == sources["mean"] == "argument"
    assert sources["std"] == "resnet18"


def test_a_tag_is_followed():
    how, _ = resolve_preprocessing(NOTHING, "vit_base_patch16_224.dino", NATIVE)
    assert how.mean == timm.get_pretrained_cfg("vit_base_patch16_224.dino").mean != (0.5,) * 3


def test_one_channel_takes_the_mean_over_channels():
    native = Preprocessing(8, 1.0, "bilinear", (0.3,), (0.4,))
    how, _ = resolve_preprocessing(NOTHING, "resnet18", native)
    assert how.mean == pytest.approx((0.449,), abs=1e-3)
    assert len(how.std) == 1


def test_unknown_names_and_tags_are_refused_with_near_ones():
    with pytest.raises(
        ValueError, match=r"no model named 'resnet19'; near names: .*resnet1.*\(resnet20_cifar"
    ):
        resolve_preprocessing(NOTHING, "resnet19", NATIVE)
    with pytest.raises(ValueError, match="a1_in1k"):
        resolve_preprocessing(NOTHING, "resnet18.a9_in1k", NATIVE)


def test_a_name_is_not_looked_up_where_nothing_is_left_to_decide():
    given = {
        "img_size": 8,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    how, _ = resolve_preprocessing(given, "hf-hub:somebody/something", NATIVE)
    assert how.img_size == 8


def test_backbones_of_oblong_images_need_a_size():
    with pytest.raises(ValueError, match=r"1024 x 768 pixels.*pass img_size"):
        resolve_preprocessing(NOTHING, "vit_base_patch16_sapiens2", NATIVE)


def test_importing_datamodules_leaves_timm_and_sklearn_out():
    code = (
        "import sys, firstlight.datamodules; "
        "print([m for m in ('timm', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
