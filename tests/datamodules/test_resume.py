import importlib.util
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import published_trees as published
import pytest
import torch

from firstlight.datamodules import (
    ImageFolderDataModule,
    ImageNetDataModule,
    INaturalistDataModule,
)

SCRIPT = Path(__file__).with_name("resume_script.py")
spec = importlib.util.spec_from_file_location("resume_script", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

# the saving callback is left out on purpose: resuming must not depend on it
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")

VARIANTS = {
    "three epochs": {"max_epochs": 3},
    "no validation": {"max_epochs": 3, "limit_val_batches": 0},
    "by steps": {"max_steps": 25},
    "part of each epoch": {"max_epochs": 3, "limit_train_batches": 4},
    "a share of each epoch": {"max_epochs": 3, "limit_train_batches": 0.5},
    "accumulated": {"max_epochs": 3, "accumulate_grad_batches": 2},
    "accumulated over the end": {"max_epochs": 3, "accumulate_grad_batches": 4},
    "validation within": {"max_epochs": 2, "val_check_interval": 3},
}


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(
    "when", [{"every_n_train_steps": 1}, {"every_n_epochs": 1}], ids=["steps", "epochs"]
)
def test_every_checkpoint_resumes_bitwise(tmp_path, arguments, when):
    whole, trainer = script.fit(
        tmp_path, callbacks=[script.saver(tmp_path / "c", **when)], **arguments
    )
    checkpoints = sorted((tmp_path / "c").glob("*.ckpt"))
    assert len(checkpoints) == trainer.global_step or len(checkpoints) >= 2
    for checkpoint in checkpoints:
        resumed, _ = script.fit(tmp_path, checkpoint, **arguments)
        assert script.same(whole, resumed), checkpoint.name


@pytest.mark.parametrize("workers", [0, 2])
def test_images_from_files_resume_bitwise(tmp_path, folder_root, workers):
    def make():
        return ImageFolderDataModule(
            str(folder_root), img_size=8, batch_size=5, num_workers=workers, seed=3, erasing=0.5
        )

    arguments = {"max_epochs": 2, "make_data": make}
    every_step = script.saver(tmp_path / "c", every_n_train_steps=1)
    whole, trainer = script.fit(tmp_path, callbacks=[every_step], **arguments)
    checkpoints = sorted((tmp_path / "c").glob("*.ckpt"))
    assert len(checkpoints) == trainer.global_step == 14
    for checkpoint in checkpoints[workers :: 1 + workers]:
        resumed, _ = script.fit(tmp_path, checkpoint, **arguments)
        assert script.same(whole, resumed), checkpoint.name


class Seen(pl.Callback):
    """Every training batch as the network got it."""

    def __init__(self):
        self.images, self.targets = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images.append(batch[0].clone())
        self.targets.append(batch[1].clone())


def layout(tmp_path, name):
    """A DataModule's class, its root and what else it takes."""
    if name == "iNaturalist":
        return INaturalistDataModule, published.write_inat2018(tmp_path / "i"), {}
    tree = published.write_imagenet(tmp_path / "t")
    if name == "archives":
        tree = published.write_archives(tree, tmp_path / "packed")
    lists = {}
    if name == "ImageNet-LT":
        lists = {"lists": str(published.write_imagenet_lt(tmp_path / "lt"))}
    return ImageNetDataModule, tree, lists


@pytest.mark.parametrize("name", ["archives", "ImageNet-LT", "iNaturalist"])
def test_a_run_killed_in_mid_epoch_sees_each_remaining_example_once(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kind, root, arguments = layout(tmp_path, name)

    def make():
        how = {"img_size": 8, "batch_size": 4, "num_workers": 2, "seed": 3, "erasing": 0.5}
        return kind(str(root), **how, **arguments)

    seen, fit = Seen(), {"max_epochs": 2, "limit_val_batches": 0, "make_data": make}
    every_step = script.saver(tmp_path / "c", every_n_train_steps=1)
    whole, trainer = script.fit(tmp_path, callbacks=[every_step, seen], **fit)
    each = len(trainer.datamodule._ready.train)
    steps = trainer.global_step // 2
    first = torch.cat(seen.images[:steps]).flatten(1)
    assert len(first) == len(first.unique(dim=0)) == each  # all different, hence each once
    for done in (1, steps + 2):
        (checkpoint,) = (tmp_path / "c").glob(f"step={done}.ckpt")
        rest = Seen()
        resumed, _ = script.fit(tmp_path, checkpoint, callbacks=[rest], **fit)
        assert script.same(whole, resumed)
        assert len(rest.images) == 2 * steps - done
        assert all(map(torch.equal, rest.images, seen.images[done:]))
        assert all(map(torch.equal, rest.targets, seen.targets[done:]))


@pytest.mark.parametrize(("data", "checkpoints"), [("digits", 6), ("ImageNet", 5)])
def test_two_processes_share_the_examples_and_resume_bitwise(tmp_path, data, checkpoints):
    root = [str(published.write_imagenet(tmp_path / "i"))] if data == "ImageNet" else []
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path), *root], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed {checkpoints} checkpoints bitwise" in done.stdout
