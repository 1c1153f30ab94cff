import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.datamodules import ImageFolderDataModule, verification
from firstlight.datamodules.archives import member_path
from firstlight.datamodules.verification import digest_of_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/firstlight/verified"


def data(root, **changes):
    arguments = {"num_workers": 0, "img_size": 16, "batch_size": 4, "seed": 1, "holdout": 0}
    made = ImageFolderDataModule(str(root), **(arguments | changes))
    made.setup("fit")
    return made


def truncate(file):
    file.write_bytes(file.read_bytes()[:-40])


def link(file):
    file.unlink()
    file.symlink_to("gone.jpg")


def late_damage(file):
    Image.effect_noise((64, 64), 90).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 200])  # the header and most rows are whole


BAD = {
    "truncated": truncate,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("not an image"),
    "a broken link": link,
    "16 bits": lambda file: Image.fromarray(np.zeros((9, 9), np.uint16)).save(file, "PNG"),
    "half": late_damage,
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_bad_images_are_named_or_skipped_and_counted(folder_root, spoil):
    file = folder_root / "train/bee/004.jpg"
    spoil(file)
    with pytest.raises((ValueError, FileNotFoundError), match=r"bee/004\.jpg.*on_bad_image='skip'"):
        data(folder_root)
    with pytest.warns(
        UserWarning, match=r"1 images cannot be read and are left out: .*bee/004\.jpg"
    ):
        made = data(folder_root, on_bad_image="skip")
    assert made.class_counts == made.full_class_counts == [24, 11, 3]
    loader = made.train_dataloader()
    targets = torch.cat([y for _, y in loader])
    assert targets.bincount().tolist() == made.class_counts
    assert str(file) not in loader.dataset.paths


def test_strange_but_good_images_pass(folder_root):
    Image.new("CMYK", (9, 9)).save(folder_root / "train/bee/000.jpg")
    Image.new("L", (9, 9)).save(folder_root / "train/bee/001.jpg")
    Image.new("P", (9, 9)).save(folder_root / "train/bee/002.jpg", "PNG")
    assert data(folder_root).class_counts == [24, 12, 3]


def test_more_bad_images_than_allowed_are_refused(folder_root):
    for number in range(3):
        truncate(folder_root / f"train/ant/00{number}.jpg")
    with pytest.raises(ValueError, match=r"3 images .*more than max_bad_images=2: .*ant/000\.jpg"):
        data(folder_root, on_bad_image="skip", max_bad_images=2)
    with pytest.warns(UserWarning, match="3 images cannot be read"):
        data(folder_root, on_bad_image="skip", max_bad_images=3)


def test_a_class_that_loses_all_images_is_refused(folder_root):
    for file in (folder_root / "train/fly").iterdir():
        truncate(file)
    with pytest.raises(
        ValueError, match="none of the images of class 'fly' in 'train' can be read"
    ):
        data(folder_root, on_bad_image="skip")


def test_a_file_that_turns_bad_later_is_named_by_the_worker(folder_root):
    made = data(folder_root, num_workers=1)
    truncate(folder_root / "train/bee/004.jpg")
    with pytest.raises(ValueError, match=r"bee/004\.jpg"):
        list(made.train_dataloader())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_bad_image": "replace"}, r"on_bad_image is one of \('raise', 'skip'\)"),
        ({"max_bad_images": -1}, "max_bad_images is a number of files"),
        ({"on_bad_image": "skip", "verify": False}, "verify=False would not find them"),
    ],
)
def test_bad_policies_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(**changes)


def test_results_for_many_files_are_kept_until_a_file_changes(folder_root, monkeypatch, cache):
    monkeypatch.setattr(verification, "KEPT_FROM", 1)
    truncate(folder_root / "train/bee/004.jpg")
    with pytest.warns(UserWarning, match="1 images"):
        data(folder_root, on_bad_image="skip")
    looked = []
    problem = verification._problem
    monkeypatch.setattr(verification, "_problem", lambda p: looked.append(p) or problem(p))
    with pytest.warns(UserWarning, match=r"1 images .*bee/004\.jpg"):
        assert data(folder_root, on_bad_image="skip").class_counts == [24, 11, 3]
    assert looked == []
    truncate(folder_root / "train/ant/000.jpg")
    with pytest.warns(UserWarning, match="2 images"):
        data(folder_root, on_bad_image="skip")
    assert len(looked) == 39  # those of the split that changed
    for record in cache.iterdir():
        record.write_text("{half")
    with pytest.warns(UserWarning, match="2 images"):
        data(folder_root, on_bad_image="skip")


def test_members_of_an_archive_change_with_it(tmp_path):
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"0123456789")
    members = [member_path(str(archive), 0, 4, "x.jpg"), member_path(str(archive), 4, 4, "y.jpg")]
    before = digest_of_files(members)
    assert digest_of_files(members) == before
    archive.write_bytes(b"0123456789")  # loaded again, its members where they were
    os.utime(archive, (1, 1))
    assert digest_of_files(members) != before


@pytest.mark.parametrize(
    ("policy", "found"), [("skip", "counts [24, 11, 3]"), ("raise", "refused 004")]
)
def test_two_processes_share_the_work_and_agree(folder_root, tmp_path, policy, found):
    truncate(folder_root / "train/bee/004.jpg")
    script = Path(__file__).with_name("verify_script.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(folder_root), policy, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # 39, 12 and 7 files by split
    said = [(tmp_path / f"rank_{rank}").read_text() for rank in (0, 1)]
    assert said == [f"looked at 30: {found}", f"looked at 28: {found}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(folder_root):
    (folder_root / "train/bee/004.jpg").chmod(0)
    with pytest.raises(ValueError, match=r"bee/004\.jpg \(Permission denied\)"):
        data(folder_root)
