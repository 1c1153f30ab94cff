import errno
import functools
import json

import lightning.pytorch as pl
import pytest
import timm
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors import safe_open

from firstlight import export as export_module
from firstlight.export import export
from firstlight.lightning_modules import ImageClassifier

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Named(pl.LightningDataModule):
    num_classes, class_names, mean, std = 3, ["a", "b", "c"], (0.5,), (0.25,)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 1, 16, 16, generator=generator)
        return torch.utils.data.DataLoader(
            list(zip(images, torch.tensor([0, 1, 2, 0]), strict=True)), batch_size=2
        )


def trained(tmp_path, *callbacks):
    module = ImageClassifier(
        "resnet20_cifar",
        in_chans=1,
        channels_last=True,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=Named())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module, tmp_path / "last.ckpt"


def test_timm_loads_what_is_written_and_it_computes_the_same(tmp_path):
    module, checkpoint = trained(tmp_path)
    output = export(checkpoint)
    assert output == tmp_path / "last.safetensors"
    model = timm.create_model(
        "resnet20_cifar", num_classes=3, in_chans=1, checkpoint_path=str(output)
    )
    images = torch.randn(3, 1, 16, 16)
    assert torch.allclose(model.eval()(images), module.eval()(images), atol=1e-5)
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
    assert metadata["model_name"] == "resnet20_cifar" and metadata["num_classes"] == "3"
    assert metadata["weights"] == "raw" and metadata["in_chans"] == "1"
    assert json.loads(metadata["class_names"]) == ["a", "b", "c"]
    assert json.loads(metadata["mean"]) == [0.5] and json.loads(metadata["std"]) == [0.25]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.safetensors"]
    again = ImageClassifier("resnet20_cifar", 3, checkpoint_path=str(output), in_chans=1)
    assert again.weights_from["head"] == "loaded"


def test_the_average_is_taken_unless_the_raw_weights_are_asked_for(tmp_path):
    class SaveInMidRun(pl.Callback):  # when a run ends, the average replaces the raw weights
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "mid.ckpt")

    trained(tmp_path, EMAWeightAveraging(decay=0.5), SaveInMidRun())
    checkpoint = tmp_path / "mid.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    name = "model.fc.weight"
    assert not torch.equal(content["state_dict"][name], content["current_model_state"][name])
    for weights, key in {
        "auto": "state_dict",
        "ema": "state_dict",
        "raw": "current_model_state",
    }.items():
        output = export(checkpoint, tmp_path / f"{weights}.safetensors", weights=weights)
        with safe_open(output, "pt") as file:
            assert file.metadata()["weights"] == ("raw" if weights == "raw" else "ema")
            assert torch.equal(file.get_tensor("fc.weight"), content[key]["model.fc.weight"])


def test_refusals(tmp_path):
    _, checkpoint = trained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*absent.ckpt"):
        export(tmp_path / "absent.ckpt")
    with pytest.raises(ValueError, match="holds no moving average"):
        export(checkpoint, weights="ema")
    export(checkpoint)
    with pytest.raises(FileExistsError, match=r"last.safetensors exists.*overwrite=True"):
        export(checkpoint)
    export(checkpoint, overwrite=True)
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of firstlight's ImageClassifier"):
        export(tmp_path / "foreign.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"broken.ckpt cannot be read as a checkpoint"):
        export(tmp_path / "broken.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["num_classes"] = 4
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="do not fit its own model"):
        export(tmp_path / "other.ckpt")
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {"last.safetensors"}


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    _, checkpoint = trained(tmp_path)
    write = export_module.save_file

    def until_full(tensors, path, metadata):
        write(tensors, path, metadata)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "save_file", until_full)
    with pytest.raises(OSError, match=r"could not write .*last.safetensors .*No space left"):
        export(checkpoint)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
