import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch.nn import functional

import firstlight.lightning_modules  # noqa: F401  # registers the networks
from firstlight.functional.parameter_blocks import parameter_blocks

DEVELOPMENT_DATA = os.environ.get("FIRSTLIGHT_DEV_DATA")


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet20_cifar", 10, 269_722),
        ("resnet32_cifar", 10, 464_154),
        ("resnet32_cifar", 100, 470_004),
        ("resnet18_cifar", 10, 11_173_962),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, count):
    model = timm.create_model(name, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet20_cifar", "resnet32_cifar"])
def test_timms_methods_work(name):
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.5).eval()
    images = torch.randn(2, 1, 32, 32)
    features = model.forward_features(images)
    assert features.shape[-1] == (4 if name == "resnet18_cifar" else 8)
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(hidden), model(images))
    model.train()
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    model.reset_classifier(0)
    assert model.eval()(images).shape == hidden.shape
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    stages = 4 if name == "resnet18_cifar" else 3
    assert list(parameter_blocks(model)) == [
        *("stem", *(f"layer{i + 1}" for i in range(stages)), "head")
    ]
    config = resolve_model_data_config(model)
    assert config["input_size"][1:] == (32, 32)
    assert config["mean"] == (0.4914, 0.4822, 0.4465)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("resnet20_cifar").train()
        model.set_grad_checkpointing(enable)
        model(torch.ones(2, 3, 32, 32)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.allclose, *gradients))


def published_names(model):
    """A network's weights as the published files name them."""
    return {
        name.replace("fc.", "linear.") if name.startswith("fc.") else name: weight.clone()
        for name, weight in model.state_dict().items()
    }


def option_a_reference(weights, images, blocks):
    """The network written out from the paper, on the published names."""

    def norm(x, name):
        parts = [weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *parts)

    x = norm(functional.conv2d(images, weights["conv1.weight"], padding=1), "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, weights[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = norm(y, f"{at}.bn1").clamp(min=0)
            y = norm(functional.conv2d(y, weights[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            shortcut = torch.zeros_like(y)
            first = (y.shape[1] - x.shape[1]) // 2
            shortcut[:, first : first + x.shape[1]] = x[:, :, ::stride, ::stride]
            x = (y + shortcut).clamp(min=0)
    return x.mean((2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


@pytest.mark.parametrize("name", ["resnet20_cifar", "resnet32_cifar"])
def test_published_names_are_mapped(name, tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(name).eval()
    for module in source.modules():  # statistics that a wrong name would lose
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    weights = published_names(source)
    save_file(weights, tmp_path / "published.safetensors")
    overlay = {"file": str(tmp_path / "published.safetensors")}
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    images = torch.randn(3, 3, 32, 32)
    depth = {"resnet20_cifar": 3, "resnet32_cifar": 5}[name]
    expected = option_a_reference(weights, images, depth)
    assert torch.allclose(loaded(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    new_head = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4
    )
    assert torch.equal(new_head.conv1.weight, weights["conv1.weight"])
    assert new_head.fc.weight.shape == (4, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "percent"), [("resnet20_cifar", 81.0), ("resnet32_cifar", 82.9)])
def test_published_weights_reach_their_accuracy(name, percent):
    if DEVELOPMENT_DATA is None:
        pytest.skip("FIRSTLIGHT_DEV_DATA names no folder with resnet*_cifar10.safetensors")
    data = Path(DEVELOPMENT_DATA)
    file, images = data / f"{name.removesuffix('_cifar')}_cifar10.safetensors", data / "cifar10"
    if not file.is_file() or not (images / "test").is_dir():
        pytest.skip(f"{file} or {images / 'test'} (class folders of JPEGs) is absent")
    assert "linear.weight" in load_file(file)
    model = timm.create_model(
        f"{name}.akamaster_cifar10",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file)},
    ).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    correct = total = 0
    for target, folder in enumerate(sorted((images / "test").iterdir())):
        pixels = [
            torch.frombuffer(
                bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8
            )
            for path in sorted(folder.iterdir())[:500]
        ]
        batch = torch.stack(pixels).view(-1, 32, 32, 3).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            correct += int((model((batch - mean) / std).argmax(1) == target).sum())
        total += len(pixels)
    assert total == 5000
    assert 100 * correct / total == pytest.approx(percent, abs=0.1)
