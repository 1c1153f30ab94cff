"""Low-rank adapters in blocks. The oracle is the same network before the adapters came."""

import pytest
import timm
import torch
from torch import nn

from firstlight.functional.parameter_blocks import parameter_blocks


class PeftLayer(nn.Module):
    """A layer as peft leaves it, by the names of its parts."""

    def __init__(self, layer, adapters=("default",), dora=False):
        super().__init__()
        self.base_layer = layer
        self.lora_dropout = nn.ModuleDict({name: nn.Identity() for name in adapters})
        self.lora_A = nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in adapters})
        self.lora_B = nn.ModuleDict({name: nn.Linear(2, 3, bias=False) for name in adapters})
        self.lora_embedding_A, self.lora_embedding_B = nn.ParameterDict(), nn.ParameterDict()
        self.lora_magnitude_vector = nn.ModuleDict({"default": nn.Linear(1, 3)} if dora else {})


class PeftEmbedding(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_embedding_A = nn.ParameterDict({"default": torch.zeros(2, 3)})
        self.lora_embedding_B = nn.ParameterDict({"default": torch.zeros(3, 2)})


class HandWritten(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.linear = layer
        self.lora_A, self.lora_B = nn.Linear(3, 2), nn.Linear(2, 3)


class HandWrittenParameters(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.linear = layer
        self.lora_a, self.lora_b = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3, 2))


class Forwarding(nn.Module):
    """Passes on attributes of what it wraps, as peft's models do."""

    def __init__(self, name, model):
        super().__init__()
        self.inner = name
        self._modules[name] = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules[self.__dict__["inner"]], name)


def adapt(model, wrap, wanted):
    """Replace modules whose path has one of the endings; return the paths."""
    paths = [path for path, _ in model.named_modules() if path.endswith(wanted)]
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        owner._modules[name] = wrap(owner._modules[name])
    return paths


def small():
    return nn.Sequential(
        nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), nn.Linear(3, 3)
    )


def named():
    first, body, last = small()
    return nn.ModuleDict({"first": first, "body": body, "last": last})


def on_meta(name):
    return lambda: timm.create_model(name, num_classes=3)


NETWORKS = {
    "test_vit": (on_meta("test_vit"), ("qkv", "proj", "fc1")),
    "around attention": (on_meta("test_vit"), ("attn",)),
    "resnet18": (on_meta("resnet18"), ("conv1", "conv2")),
    "vgg11": (on_meta("vgg11"), ("features.3", "pre_logits.fc1")),
    "dla46_c": (on_meta("dla46_c"), ("tree1.conv1", "base_layer.0")),  # a part with peft's name
    "pit_ti_224": (on_meta("pit_ti_224"), ("qkv",)),  # by structure
    "around attention, by structure": (on_meta("pit_ti_224"), ("attn",)),
    "small": (small, ("0", "1.2")),
    "beside a container": (named, ("first",)),
}


@pytest.mark.parametrize("wrap", [PeftLayer, HandWritten, HandWrittenParameters, PeftEmbedding])
@pytest.mark.parametrize("network", NETWORKS)
def test_adapters_move_no_other_parameter(network, wrap):
    build, wanted = NETWORKS[network]
    with torch.device("meta"):
        model = build()
        names = {id(p): name for name, p in model.named_parameters()}
        before = {mode: parameter_blocks(model, coarse=mode) for mode in (True, False)}
        paths = adapt(model, wrap, wanted)
    assert paths
    now = {names[id(p)]: name for name, p in model.named_parameters() if id(p) in names}
    for mode, old in before.items():
        home = {name: block for block, held in old.items() for name in held}
        blocks = parameter_blocks(model, coarse=mode)
        want = {block: {now[name] for name in held} for block, held in old.items()}
        for path in paths:
            pair = set(dict(model.named_parameters())) - set(now.values())
            pair = {n for n in pair if n.startswith(f"{path}.lora")}
            assert len(pair) >= 2
            block = next(home[name] for name in home if name.startswith(f"{path}."))
            want.setdefault(block if mode or block == "head" else f"{path}.lora", set()).update(
                pair
            )
        assert {block: set(held) for block, held in blocks.items()} == want
        assert [block for block in blocks if block in old] == list(old)


def test_pairs_follow_the_block_of_their_layer():
    with torch.device("meta"):
        model = timm.create_model("test_vit", num_classes=3)
        adapt(model, PeftLayer, ("qkv", "fc2", "patch_embed.proj", "head"))
    blocks = parameter_blocks(model, coarse=False)

    def pairs(i):
        return [f"blocks.{i}.attn.qkv.lora", f"blocks.{i}.mlp.fc2.lora"]

    inner = [label for i in range(6) for label in (f"blocks.{i}", *pairs(i))]
    assert list(blocks) == ["stem", "patch_embed.proj.lora", *inner, "head"]
    assert blocks["blocks.2.attn.qkv.lora"] == [
        "blocks.2.attn.qkv.lora_A.default.weight",
        "blocks.2.attn.qkv.lora_B.default.weight",
    ]
    assert "head.lora_A.default.weight" in blocks["head"]


def test_several_layers_in_one_hand_written_adapter_stay_apart():
    model = named()
    adapt(model, HandWritten, ("body",))
    assert list(parameter_blocks(model)) == ["stem", "body.linear.0", "body.linear.2", "head"]


def test_a_pair_of_the_model_itself_follows_the_stem():
    net = small()
    net.lora_a, net.lora_b = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3, 2))
    fine, coarse = (parameter_blocks(net, coarse=mode) for mode in (False, True))
    assert list(fine)[:2] == ["stem", "lora"] and fine["lora"] == ["lora_a", "lora_b"]
    assert set(coarse["stem"]) == {*fine["stem"], "lora_a", "lora_b"}


def test_all_that_adapts_one_module_is_one_block():
    net = nn.Sequential(nn.Linear(3, 3), PeftLayer(nn.Linear(3, 3), ("en", "de"), True), nn.ReLU())
    net.append(nn.Linear(3, 2))
    net[1].lora_E = nn.ParameterDict({"default": torch.zeros(3, 1)})
    blocks = parameter_blocks(net, coarse=False)
    assert list(blocks) == ["stem", "1", "1.lora", "head"]
    assert blocks["1"] == ["1.base_layer.weight", "1.base_layer.bias"]
    assert len(blocks["1.lora"]) == 7


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda m: Forwarding("base_model", Forwarding("model", m)), "base_model.model."),
        (torch.compile, "_orig_mod."),
        (lambda m: nn.Sequential(nn.Sequential(m)), "0.0."),
    ],
)
@pytest.mark.parametrize("name", ["test_resnet", "vgg11", "pit_ti_224"])
def test_wrappers_are_looked_through(name, wrap, prefix):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3)
    plain = parameter_blocks(model)
    wrapped = parameter_blocks(wrap(model))
    assert wrapped == {label: [prefix + n for n in names] for label, names in plain.items()}


def test_a_model_of_peft_itself():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["qkv"], modules_to_save=["head"])
    model = peft.get_peft_model(timm.create_model("test_vit", num_classes=3), config)
    blocks = parameter_blocks(model, coarse=False)
    trained = [label for label in blocks if label.endswith(".lora")]
    assert trained == [f"blocks.{i}.attn.qkv.lora" for i in range(6)]
    assert all(len(blocks[label]) == 2 for label in trained)
    assert any("modules_to_save" in name for name in blocks["head"])
