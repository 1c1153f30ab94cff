import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.datamodules import ImageFolderDataModule

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


def test_two_processes_share_the_examples_and_resume_bitwise(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed 6 checkpoints bitwise" in done.stdout
