import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.datamodules import ImageFolderDataModule
from firstlight.datamodules.random_crops import RandomCrops
from firstlight.datamodules.resized_cache import CachedCrops, ResizedCache


def no_decoding(*_):
    raise AssertionError("an image was decoded")


@pytest.fixture
def paths(folder_root):
    Image.effect_noise((300, 200), 60).convert("RGB").save(folder_root / "train/bee/large.png")
    return [str(path) for path in sorted((folder_root / "train").rglob("*.*"))]


def test_images_are_kept_as_pil_resizes_them(paths, tmp_path):
    kept = ResizedCache(paths, 25, tmp_path / "c")
    for path in reversed(paths):
        image = Image.open(path).convert("RGB")
        by = min(1, 25 / min(image.size))
        expected = image.resize([round(by * n) for n in image.size], Image.Resampling.BICUBIC)
        assert np.array_equal(kept[path], np.asarray(expected))
    assert min(kept[paths[0]].shape[:2]) == 25
    with pytest.raises(KeyError, match="other"):
        kept["other.jpg"]


def test_they_are_written_once_and_again_when_a_file_changes(paths, tmp_path, monkeypatch):
    before = ResizedCache(paths, 500, tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr("firstlight.datamodules.resized_cache.decode", no_decoding)
        again = pickle.loads(pickle.dumps(ResizedCache(paths, 500, tmp_path / "c")))
        assert np.array_equal(again[paths[3]], before[paths[3]])
        with pytest.raises(AssertionError, match="decoded"):
            ResizedCache(paths, 20, tmp_path / "c")  # another size
    Image.new("RGB", (7, 7), (1, 2, 3)).save(paths[3])
    os.utime(paths[3], (1, 1))
    assert ResizedCache(paths, 500, tmp_path / "c")[paths[3]].shape == (7, 7, 3)


def test_an_interrupted_one_is_written_anew(paths, tmp_path):
    bad = Path(paths[-1])
    content = bad.read_bytes()
    bad.write_bytes(content[:100])
    with pytest.raises(ValueError, match=re.escape(bad.name)):
        ResizedCache(paths, 20, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []
    bad.write_bytes(content)
    kept = ResizedCache(paths, 20, tmp_path / "c")
    kept._table.unlink()  # killed before the last step
    assert ResizedCache(paths, 20, tmp_path / "c")[paths[-1]].shape == kept[paths[-1]].shape


def test_crops_of_whole_images_are_those_of_the_files(paths, tmp_path):
    kept = ResizedCache(paths, 500, tmp_path / "c")  # no image is that large
    crops = RandomCrops(16, (0.08, 1.0), (3 / 4, 4 / 3), "bicubic")
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        expected = crops(path).int()
        torch.manual_seed(seed)
        assert (CachedCrops(crops, kept)(path).int() - expected).abs().max() <= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_what_is_kept(folder_root, tmp_path, workers, monkeypatch):
    def epoch(**changes):
        data = ImageFolderDataModule(
            str(folder_root), img_size=16, num_workers=workers, seed=1, verify=False, **changes
        )
        data.setup("fit")
        return torch.cat([x for x, _ in data.train_dataloader()])

    plain = epoch(decoder="pil")
    first = epoch(resized_cache=str(tmp_path / "c"))
    monkeypatch.setattr("firstlight.datamodules.image_files.read_bytes", no_decoding)
    assert torch.equal(epoch(resized_cache=str(tmp_path / "c")), first)
    assert (first - plain).abs().max() < 0.1  # 32 px are kept: all of 40 x 30 images


def test_seeds_share_a_copy_and_no_warning_comes_from_it(tree, tmp_path):
    root = tree(tmp_path / "t", {"ant": 20, "bee": 20})
    for seed in (1, 2):
        data = ImageFolderDataModule(
            str(root), seed=seed, img_size=16, num_workers=0, resized_cache=str(tmp_path / "c"),
            scale=(1.0, 1.0), ratio=(1.0, 1.0),
        )  # fmt: skip
        data.setup("fit")
        assert len(torch.cat([y for _, y in data.train_dataloader()])) == 28
    assert len(list((tmp_path / "c").glob("*.pixels"))) == 1


SCRIPT = """
import sys
from pathlib import Path
import torch.distributed as dist
from firstlight.datamodules.resized_cache import ResizedCache
dist.init_process_group("gloo")
out = Path(sys.argv[1])
try:
    ResizedCache(sorted(map(str, out.glob("*.jpg"))), 8, out / "c")
except (ValueError, RuntimeError) as error:
    (out / f"rank_{dist.get_rank()}").write_text(f"{type(error).__name__}: {error}")
dist.destroy_process_group()
"""


def test_a_bad_image_ends_the_processes_that_wait_too(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = [(tmp_path / f"rank_{rank}").read_text() for rank in (0, 1)]
    assert re.match(r"ValueError: cannot read .*a\.jpg", said[0])
    assert re.match(r"RuntimeError: .* on rank 0: ValueError.*a\.jpg", said[1])


def test_a_side_without_a_folder_is_refused():
    with pytest.raises(ValueError, match="resized_side=64 is a number of pixels in resized_cache"):
        ImageFolderDataModule(resized_side=64)
