import pytest
import timm
import timm.data
import torch
from safetensors.torch import save_file

from firstlight.lightning_modules.backbone import create_backbone, read_weights

NAME = "test_resnet"


@pytest.fixture
def source():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=6)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt", "ema.pth"])
def test_every_weight_of_a_file_is_loaded_the_head_if_it_fits(source, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    weights = weights_of(source)
    if suffix == ".safetensors":
        save_file(weights, path)
    elif suffix == ".pt":
        torch.save({f"module.{name}": value for name, value in weights.items()}, path)
    elif suffix == ".ckpt":
        inner = {f"model.{name}": v for name, v in weights.items()} | {"loss.w": torch.ones(1)}
        torch.save({"pytorch-lightning_version": "2", "state_dict": inner}, path)
    else:
        other = weights_of(timm.create_model(NAME, num_classes=6))
        torch.save({"state_dict": other, "state_dict_ema": weights}, path)

    model, origin = create_backbone(NAME, 6, checkpoint_path=str(path))
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert origin == {"source": "file", "location": str(path), "head": "loaded"}

    model, origin = create_backbone(NAME, 9, checkpoint_path=str(path))
    assert origin["head"] == "new" and model.get_classifier().out_features == 9
    kept = [k for k in weights if not k.startswith(model.pretrained_cfg["classifier"])]
    assert all(torch.equal(model.state_dict()[k], weights[k]) for k in kept)
    assert len(kept) == len(weights) - 2


def test_a_model_of_one_channel_takes_weights_of_three(source, tmp_path):
    save_file(weights_of(source), tmp_path / "w.safetensors")
    model, _ = create_backbone(NAME, 6, checkpoint_path=str(tmp_path / "w.safetensors"), in_chans=1)
    image = torch.randn(2, 1, 32, 32)
    expected = source.eval()(image.expand(-1, 3, -1, -1))
    assert torch.allclose(model.eval()(image), expected, atol=1e-5)


@pytest.mark.parametrize("classes", [6, 9])
def test_weights_of_another_architecture_are_refused(source, classes, tmp_path):
    save_file(weights_of(source), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w.safetensors does not hold weights of resnet20_cifar"):
        create_backbone("resnet20_cifar", classes, checkpoint_path=str(tmp_path / "w.safetensors"))


def test_bad_files_are_named_with_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no weight file .*absent.pt"):
        read_weights(tmp_path / "absent.pt")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match=r"broken.safetensors is not a whole safetensors file"):
        read_weights(broken)
    pickled = tmp_path / "pickled.pt"
    torch.save({"state_dict": {"w": torch.ones(1)}, "args": timm.data.Mixup()}, pickled)
    with pytest.raises(ValueError, match=r"(?s)pickled.pt cannot be read as weights.*Mixup"):
        read_weights(pickled)
    empty = tmp_path / "empty.pt"
    torch.save({"epoch": 3}, empty)
    with pytest.raises(ValueError, match=r"empty.pt holds no state dict"):
        read_weights(empty)


def test_published_weights_that_do_not_exist():
    with pytest.raises(RuntimeError, match="weights of resnet32_cifar cannot be loaded"):
        create_backbone("resnet32_cifar", 10, pretrained=True)
