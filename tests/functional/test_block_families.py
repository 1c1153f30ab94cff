"""Blocks of timm's models, one small model of every model file, on the meta device.

Their order against an oracle that sees no module, only operations: in which order does a forward
pass first touch the parameters? The table: ``python benchmarks/block_families.py``.
"""

import block_families
import pytest
import torch
from block_families import EXCEPTIONS, FAMILIES, first_uses, on_meta, out_of_order
from torch import nn

from firstlight.functional.parameter_blocks import parameter_blocks

ALL = block_families.families()
SAMPLE = {  # where matchers, heads or structures differ
    *("beit", "byobnet", "cait", "coat", "convnext", "crossvit", "csatv2", "dla", "efficientnet"),
    *("efficientvim", "levit", "maxxvit", "metaformer", "pit", "qwen3_vit", "rdnet", "resnet"),
    *("twins", "vgg", "vision_transformer", "volo"),
}
CASES = [
    pytest.param(file, name, id=file, marks=() if file in SAMPLE else pytest.mark.slow)
    for file, name in ALL.items()
]


def in_classifier(model):
    found = model.get_classifier()
    parts = found if isinstance(found, tuple | list | nn.ModuleList) else [found]
    held = {id(p) for part in parts for p in part.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in held}


@pytest.mark.parametrize(("file", "name"), CASES)
def test_blocks_are_complete_disjoint_and_in_the_order_of_use(file, name):
    model = on_meta(name)
    uses = first_uses(model)
    names = [n for n, _ in model.named_parameters()]
    coarse, fine = (parameter_blocks(model, coarse=mode) for mode in (True, False))
    for blocks in (coarse, fine):
        assert sorted(n for held in blocks.values() for n in held) == sorted(names)
        assert all(blocks.values())
        assert next(iter(blocks)) == "stem" and list(blocks)[-1] == "head"
        assert set(blocks["head"]) == in_classifier(model)
        assert out_of_order(model, blocks, uses, EXCEPTIONS.get(file, ())) == []
        for pattern in EXCEPTIONS.get(file, ()):  # none that is not needed
            others = set(EXCEPTIONS[file]) - {pattern}
            assert out_of_order(model, blocks, uses, others)
    home = {n: block for block, held in coarse.items() for n in held}
    assert all(len({home[n] for n in held}) == 1 for held in fine.values())
    assert 4 <= len(coarse) <= len(fine) < 120


def test_every_file_of_this_timm_has_a_model():
    assert set(ALL) >= {"resnet", "vision_transformer", "efficientnet"} and len(ALL) > 80
    assert len(set(ALL) - set(FAMILIES)) < 10, "run benchmarks/block_families.py --choose"


def test_the_oracle_sees_the_order_of_use_not_of_definition():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.default_cfg = {"input_size": (2,)}
            self.last, self.first = nn.Linear(2, 2), nn.Linear(2, 2)
            self.token = nn.Parameter(torch.empty(2))

        def forward(self, x):
            return self.last(self.first(x) + self.token)

    with torch.device("meta"):
        model = Backwards()
    uses = first_uses(model)
    assert uses["first.weight"] < uses["token"] < uses["last.weight"]
    first, last = (["first.weight", "first.bias"], ["last.weight", "last.bias"])
    right = {"stem": [*first, "token"], "head": last}
    assert out_of_order(model, right, uses) == []
    assert out_of_order(model, {"stem": first, "head": ["token", *last]}, uses) == []
    assert out_of_order(model, {"stem": last, "head": [*first, "token"]}, uses) == [*first, "token"]
    assert out_of_order(model, {"stem": [*first, "last.bias"], "head": ["token"]}, uses) == [
        "token"
    ]
