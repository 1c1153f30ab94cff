import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from firstlight.functional.parameter_blocks import parameter_blocks

# Stem and stages, or stem and blocks of one width, as the families publish them. That blocks are
# complete and in order: test_block_families.py.
BELOW_HEAD = {
    "resnet18": 5,
    "vgg11": 8,
    "vgg11_bn": 8,
    "vit_tiny_patch16_224": 13,
    "tf_efficientnet_lite0": 8,
    "convnext_atto": 5,
    "deit_tiny_distilled_patch16_224": 13,
    "levit_128s": 4,
    "efficientformerv2_s0": 5,
    "swin_tiny_patch4_window7_224": 5,
    "cait_xxs24_224": 1 + 24 + 2,  # two class blocks
    "pit_ti_224": 4,  # these three have no matcher
    "caformer_s18": 5,
    "csatv2": 5,
    "qwen3_vit_88m": 13,  # its matcher ties the head to the last block
}


def on_meta(create, *arguments, **keywords):
    with torch.device("meta"):
        return create(*arguments, **keywords)


@pytest.mark.parametrize(("name", "below_head"), BELOW_HEAD.items())
def test_number_of_blocks_of_timm_models(name, below_head):
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    blocks = parameter_blocks(on_meta(timm.create_model, name, num_classes=10))
    assert len(blocks) - 1 == below_head


def test_names_are_those_that_people_know():
    resnet = on_meta(timm.create_model, "resnet18")
    assert list(parameter_blocks(resnet)) == [
        *("stem", "layer1", "layer2", "layer3", "layer4", "head")
    ]
    assert list(parameter_blocks(resnet, coarse=False))[:3] == ["stem", "layer1.0", "layer1.1"]
    convnext = parameter_blocks(on_meta(timm.create_model, "convnext_atto"))
    assert list(convnext)[1:-1] == [f"stages.{i}" for i in range(4)]
    assert "head.norm.weight" in convnext["stages.3"]
    vit = parameter_blocks(on_meta(timm.create_model, "vit_tiny_patch16_224"))
    assert list(vit)[1:-1] == [f"blocks.{i}" for i in range(12)]
    assert "pos_embed" in vit["stem"] and "norm.weight" in vit["blocks.11"]
    convnext = parameter_blocks(on_meta(timm.create_model, "convnext_atto"), coarse=False)
    assert "stages.1.downsample.0.weight" in convnext["stages.1.blocks.0"]
    cait = list(parameter_blocks(on_meta(timm.create_model, "cait_xxs24_224")))
    assert cait[-4:] == ["blocks.23", "blocks_token_only.0", "blocks_token_only.1", "head"]
    pit = list(parameter_blocks(on_meta(timm.create_model, "pit_ti_224"), coarse=False))
    depths = (2, 6, 4)
    stages = [[f"transformers.{i}.blocks.{j}" for j in range(d)] for i, d in enumerate(depths)]
    assert pit == ["stem", *stages[0], *stages[1], *stages[2], "head"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("vit_b_16", [f"encoder.layers.encoder_layer_{i}" for i in range(12)]),
        ("efficientnet_b0", [f"features.{i}" for i in range(1, 9)]),
        ("vgg11", [f"features.{i}" for i in (3, 6, 8, 11, 13, 16, 18)]),
    ],
)
def test_torchvision_models_are_split_by_structure(name, expected):
    model = on_meta(getattr(torchvision.models, name), weights=None)
    blocks = parameter_blocks(model)
    assert list(blocks) == ["stem", *expected, "head"]
    placed = [parameter for block in blocks.values() for parameter in block]
    assert sorted(placed) == sorted(name for name, _ in model.named_parameters())


def test_wrappers_and_headless_and_bare_models():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    wrapped = nn.ModuleDict({"net": inner})
    assert parameter_blocks(wrapped) == {
        "stem": ["net.0.weight", "net.0.bias"],
        "head": ["net.2.weight", "net.2.bias"],
    }
    known = nn.ModuleDict(
        {"loss": nn.CrossEntropyLoss(), "net": on_meta(timm.create_model, "resnet18")}
    )
    assert list(parameter_blocks(known))[1:-1] == [f"layer{i}" for i in range(1, 5)]
    assert list(parameter_blocks(nn.Linear(3, 2))) == ["head"]
    headless = on_meta(timm.create_model, "resnet18", num_classes=0)
    assert list(parameter_blocks(headless))[-1] == "layer4"
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        parameter_blocks(nn.ReLU())


def test_a_part_below_the_classifier_may_be_called_head():
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("conv", "head", "fc")})
    blocks = parameter_blocks(net)
    assert list(blocks) == ["stem", "head_", "head"]
    assert blocks["head_"] == ["head.weight", "head.bias"]


class Holder(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def test_what_a_stage_has_beside_its_blocks_goes_with_the_first_or_the_last():
    def row(count, depth=2):
        layers = ([nn.Linear(2, 2) for _ in range(depth)] for _ in range(count))
        return nn.Sequential(*(Holder(mlp=nn.Sequential(*held)) for held in layers))

    def stage():
        return Holder(down=nn.Linear(2, 2), pre=row(1, 1), blocks=row(3), out=nn.Linear(2, 2))

    net = Holder(conv=nn.Linear(2, 2), one=stage(), two=stage(), fc=nn.Linear(2, 2))
    blocks = parameter_blocks(net, coarse=False)
    inner = [f"{name}.blocks.{i}" for name in ("one", "two") for i in range(3)]
    assert list(blocks) == ["stem", *inner, "head"]
    for name in ("one", "two"):
        assert {f"{name}.down.bias", f"{name}.pre.0.mlp.0.bias"} < set(blocks[f"{name}.blocks.0"])
        assert f"{name}.out.bias" in blocks[f"{name}.blocks.2"]


def test_a_tied_parameter_belongs_to_the_topmost_block_that_uses_it():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    assert parameter_blocks(net) == {
        "stem": ["0.bias"],
        "1": ["1.weight", "1.bias"],
        "head": ["0.weight", "2.bias"],
    }
    net.append(nn.Linear(3, 2))
    assert parameter_blocks(net)["2"] == ["0.weight", "2.bias"]


def test_timm_is_not_needed_for_other_models():
    code = (
        "import sys, torch; from firstlight.functional.parameter_blocks import parameter_blocks;"
        "parameter_blocks(torch.nn.Linear(2, 2)); assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
