import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from firstlight.functional.parameter_blocks import parameter_blocks
from firstlight.functional.parameter_groups import parameter_groups


def by_parameter(groups, key, default=None):
    return {id(p): group.get(key, default) for group in groups for p in group["params"]}


def small(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=10)


# Models whose last timm group is the classifier alone, so that both count the same distances.
@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "regnetx_002"]
)
def test_scales_and_decay_are_timms(name):
    model = small(name)
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    reference = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=no_decay, layer_decay=0.7
    )
    ours = parameter_groups(model, parameter_blocks(model, coarse=False), layer_decay=0.7)
    expected, scales = by_parameter(reference, "lr_scale"), by_parameter(ours, "lr_scale")
    assert scales.keys() == expected.keys() == {id(p) for p in model.parameters()}
    assert scales == {key: pytest.approx(value) for key, value in expected.items()}
    assert by_parameter(ours, "weight_decay", 0.05) == by_parameter(reference, "weight_decay")


def test_what_timm_groups_with_the_head_learns_one_step_below_it_here():
    model = small("convnext_atto")
    reference = by_parameter(param_groups_layer_decay(model, layer_decay=0.7), "lr_scale")
    blocks = parameter_blocks(model, coarse=False)
    ours = by_parameter(parameter_groups(model, blocks, layer_decay=0.7), "lr_scale")
    different = {n for n, p in model.named_parameters() if ours[id(p)] != reference[id(p)]}
    assert different == {"head.norm.weight", "head.norm.bias"}


def test_names_and_frozen_parameters():
    model = small("resnet18")
    for parameter in model.layer1.parameters():
        parameter.requires_grad = False
    groups = parameter_groups(model, parameter_blocks(model))
    names = [group["name"] for group in groups]
    assert names[:4] == ["stem/decay", "stem/no_decay", "layer1/decay", "layer1/no_decay"]
    assert len(set(names)) == len(names)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert all(group["lr_scale"] == 1 for group in groups)
    assert all(("weight_decay" in g) == g["name"].endswith("no_decay") for g in groups)


def test_listed_names_do_not_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    groups = parameter_groups(model, parameter_blocks(model), no_weight_decay=["0.w*"])
    assert [(g["name"], len(g["params"])) for g in groups] == [
        ("stem/no_decay", 2),
        ("head/decay", 1),
        ("head/no_decay", 1),
    ]


@pytest.mark.parametrize("layer_decay", [0.0, 1.5, -1])
def test_layer_decay_outside_its_range_is_refused(layer_decay):
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="layer_decay must lie in"):
        parameter_groups(model, parameter_blocks(model), layer_decay=layer_decay)
