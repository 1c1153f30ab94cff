"""Blocks written down by hand: what they hold on small networks, and what is refused."""

import pytest
import timm
import torch
import yaml
from torch import nn

from firstlight.functional.parameter_blocks import parameter_blocks


def small():
    parts = {"conv": nn.Conv2d(3, 4, 3), "layer1": nn.Linear(4, 4), "layer10": nn.Linear(4, 4)}
    return nn.ModuleDict({**parts, "fc": nn.Linear(4, 2)})


def both(part):
    return [f"{part}.weight", f"{part}.bias"]


BY_PART = {part: both(part) for part in ("conv", "layer1", "layer10", "fc")}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"a": "conv|layer", "b": "fc"}, {"a": ["conv", "layer1", "layer10"], "b": ["fc"]}),
        (
            {"b": ["fc", "conv"], "a": r"layer\d+"},
            {"b": ["conv", "fc"], "a": ["layer1", "layer10"]},
        ),
        (
            {"a": ["conv"], "one": ["layer1"], "ten": r".*10\.", "b": ["fc.bias", "fc.weight"]},
            {"a": ["conv"], "one": ["layer1"], "ten": ["layer10"], "b": ["fc"]},
        ),
        (
            ["conv", r"^layer1\.", r"layer10\..*", "fc$|fc.+"],
            {"conv": ["conv"], "layer1": ["layer1"], "layer10": ["layer10"], "block3": ["fc"]},
        ),
        (["block1|conv", "layer", "(fc)"], None),
    ],
)
def test_patterns_and_paths_find_what_they_say(given, expected):
    expected = expected or {"block0": ["conv"], "layer": ["layer1", "layer10"], "block2": ["fc"]}
    found = parameter_blocks(small(), given=given)
    assert list(found) == list(expected)
    assert found == {
        b: [n for part in parts for n in BY_PART[part]] for b, parts in expected.items()
    }


def test_names_made_up_do_not_meet_names_that_are_spelled():
    net = nn.ModuleDict({"conv": nn.Linear(1, 1), "block0": nn.Linear(1, 1)})
    assert parameter_blocks(net, given=["(conv)", "block0"]) == {
        "block0_": both("conv"),
        "block0": both("block0"),
    }


def test_the_blocks_of_timm_written_in_yaml():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    text = """
    stem: [conv1, bn1]
    lower: ["layer1", "layer2"]
    upper: 'layer[34]'
    head: [fc]
    """
    automatic = parameter_blocks(model)
    found = parameter_blocks(model, given=yaml.safe_load(text), coarse=False)
    assert list(found) == ["stem", "lower", "upper", "head"]
    assert found["stem"] == automatic["stem"] and found["head"] == automatic["head"]
    assert found["lower"] == automatic["layer1"] + automatic["layer2"]
    assert found["upper"] == automatic["layer3"] + automatic["layer4"]


def test_a_tied_parameter_may_be_meant_by_any_name_and_belongs_to_the_last():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    by_regex = parameter_blocks(net, given={"a": "0", "b": "1", "c": "2"})
    assert by_regex == {"a": ["0.bias"], "b": both("1"), "c": ["0.weight", "2.bias"]}
    by_path = parameter_blocks(net, given={"a": ["0.bias", "1"], "c": ["2"]})
    assert by_path == {"a": ["0.bias", *both("1")], "c": ["0.weight", "2.bias"]}
    with pytest.raises(ValueError, match=r"a: all parameters are tied to those of later blocks"):
        parameter_blocks(net, given={"a": ["0.weight"], "c": ["0.bias", "1", "2"]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": "conv", "b": "fc"}, r"layer1\.weight, .* and 1 more: 4 parameters are in no block"),
        ({"a": "conv|fc.w|layer"}, r"^fc\.bias: 1 parameter is in no block"),
        (
            ["conv", "layer1", "layer10", "fc"],
            r"layer10\.weight \(layer1 and layer10\).*2 parameters",
        ),
        ({"a": "", "b": ["fc"]}, r"fc\.weight \(a and b\), .*more than one block"),
        ({"a": "", "b": "features"}, r"no parameter is matched by 'features' \(block b\); .*conv"),
        ({"a": "", "b": "weight"}, r"no parameter is matched by 'weight' \(block b\).*literally$"),
        ({"a": [*BY_PART, "layer"]}, r"'layer' \(block a\).*paths in lists literally$"),
        ({"a": "", "b": []}, r"no parameter is matched by '' \(block b\)"),
        ({"a": "conv("}, r"block a: 'conv\(' is no regular expression"),
        ({"a": None}, "block a is None; give a regular expression"),
        ({"a": [1]}, r"block a is \[1\]"),
        (["conv", 3], "is 3; give a regular expression"),
        ("conv", "not 'conv'"),
        ([], r"not \[\]"),
        ({}, r"not \{\}"),
    ],
)
def test_what_leaves_parameters_in_none_or_several_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        parameter_blocks(small(), given=given)
