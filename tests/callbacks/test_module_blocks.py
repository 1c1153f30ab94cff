"""Blocks of LightningModules: the backbone's own, and what is beside it."""

import lightning.pytorch as L
import pytest
import timm
import torch
from torch import nn

from firstlight.callbacks.module_blocks import blocks_of
from firstlight.functional import parameter_blocks


class Learner(L.LightningModule):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class LossWithWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(3, 2))


def backbone(classes=3):
    return timm.create_model("test_resnet", num_classes=classes)


def listed(blocks):
    return sorted(name for names in blocks.values() for name in names)


def prefixed(prefix, blocks):
    return {label: [prefix + name for name in names] for label, names in blocks.items()}


@pytest.mark.parametrize("coarse", [True, False])
def test_a_backbones_blocks_come_first_and_what_is_beside_it_after_the_head(coarse):
    net = backbone()
    learner = Learner(loss=LossWithWeights(), net=net, project=nn.Linear(3, 3))
    learner.temperature = nn.Parameter(torch.ones(()))
    blocks = blocks_of(learner, coarse=coarse)
    own = prefixed("net.", parameter_blocks(net, coarse=coarse))
    assert list(blocks) == [*own, "temperature", "loss", "project"]
    assert {label: blocks[label] for label in own} == own
    assert blocks["loss"] == ["loss.centres"] and blocks["temperature"] == ["temperature"]
    assert blocks["project"] == ["project.weight", "project.bias"]
    assert listed(blocks) == sorted(name for name, _ in learner.named_parameters())


@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile, lambda m: nn.Sequential(m)])
def test_however_deep_the_backbone_lies(wrap):
    learner = Learner(model=nn.ModuleDict({"inner": wrap(backbone()), "extra": nn.Linear(2, 2)}))
    blocks = blocks_of(learner)
    assert list(blocks) == ["stem", "layer1", "layer2", "layer3", "layer4", "head", "model.extra"]
    assert listed(blocks) == sorted(name for name, _ in learner.named_parameters())


def test_names_that_meet_and_a_classifier_beside_its_backbone():
    blocks = blocks_of(Learner(layer1=nn.Linear(2, 2), head=nn.Linear(2, 2), net=backbone()))
    assert list(blocks)[-3:] == ["head", "layer1_", "head_"]
    assert blocks["head"] == ["net.fc.weight", "net.fc.bias"]
    blocks = blocks_of(Learner(head=nn.Linear(2, 2), net=backbone(0)))
    assert list(blocks)[-2:] == ["layer4", "head"]
    assert blocks["head"] == ["head.weight", "head.bias"]


def test_a_backbone_held_twice_is_one_and_shared_weights_are_its_own():
    net = backbone()
    learner = Learner(first=net, features=nn.Sequential(net), beside=nn.Linear(2, 3))
    learner.beside.bias = net.fc.bias
    blocks = blocks_of(learner)
    own = prefixed("first.", parameter_blocks(net))
    assert blocks == {**own, "beside": ["beside.weight"]}


def test_several_backbones_or_none_leave_it_to_the_structure():
    two = Learner(one=backbone(), two=backbone())
    assert blocks_of(two) == parameter_blocks(two)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    assert blocks_of(Learner(net=net)) == prefixed("net.", parameter_blocks(net))
    both = Learner(net=net, loss=LossWithWeights())
    assert listed(blocks_of(both)) == sorted(name for name, _ in both.named_parameters())


def test_given_blocks_are_in_the_modules_own_names():
    learner = Learner(net=backbone(), loss=LossWithWeights())
    given = {"body": r"net\.(?!fc)", "top": ["net.fc", "loss"]}
    blocks = blocks_of(learner, given=given)
    assert list(blocks) == ["body", "top"]
    assert blocks["top"] == ["net.fc.weight", "net.fc.bias", "loss.centres"]
    with pytest.raises(ValueError, match=r"loss\.centres: 1 parameter is in no block"):
        blocks_of(learner, given={"net": "net"})
    with pytest.raises(ValueError, match=r"'layer1' \(block low\).*Write 'net' and a dot"):
        blocks_of(learner, given={"low": ["layer1"], "rest": "net|loss"})


def test_a_module_without_parameters_is_refused():
    with pytest.raises(ValueError, match="Learner has no parameters"):
        blocks_of(Learner(loss=nn.CrossEntropyLoss()))
