import os
import pickle
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torchvision.datasets.folder import ImageFolder

from firstlight.datamodules import tree_index
from firstlight.datamodules.file_table import FileTable
from firstlight.datamodules.image_files import list_images, scan_classes
from firstlight.datamodules.tree_index import index_tree


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_index, "KEPT_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/firstlight/index"


def settle(root):
    """Let all folders look as if they had been left alone for a minute."""
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        os.utime(folder, (time.time() - 60,) * 2)


def make(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    settle(root)
    return root


@pytest.fixture
def root(tmp_path):
    files = ("b/2.jpg", "b/10.JPEG", "a/x.png", "a-b/0.jpg", "a/deep/y.jpg", "a/notes.txt", "r.jpg")
    return make(tmp_path / "tree", *files, "a/.hidden.jpg", ".git/z.jpg")


def refuse(*_):
    raise AssertionError("the tree was scanned")


def test_order_and_classes_are_torchvisions(root, cache):
    theirs = ImageFolder(str(root))
    expected = {path: theirs.classes[t] for path, t in theirs.samples if "/." not in path}
    with (
        pytest.warns(UserWarning, match=r"1 files under .* are no images, such as .*a/notes\.txt"),
        pytest.warns(UserWarning, match=r"1 images in .* have no class folder .*such as .*r\.jpg"),
    ):
        found = scan_classes(root)
    assert found.classes == ["a", "a-b", "b"]
    ours = zip(found.paths, (found.classes[t] for t in found.targets), strict=True)
    assert dict(ours) == expected
    assert list(found.paths)[-2:] == [str(root / "b/10.JPEG"), str(root / "b/2.jpg")]
    assert str(root / "r.jpg") in list_images(root)


def test_a_kept_index_is_the_same_and_needs_no_scan(root, cache, monkeypatch):
    first = index_tree(root)
    assert len(list(cache.glob("*.npz"))) == 1
    monkeypatch.setattr(tree_index, "_scan", refuse)
    again = index_tree(root)
    assert again.images == first.images
    assert again.folders == first.folders == ["", "a", "a-b", "a/deep", "b"]
    assert again.counts.tolist() == first.counts.tolist() == [1, 1, 1, 1, 2]
    assert again.strange.tolist() == first.strange.tolist() == [0, 1, 0, 0, 0]
    assert again.stranger == first.stranger == str(root / "a/notes.txt")
    assert Path(again.images[0]).is_file()


CHANGES = {
    "added": lambda root: (root / "a/deep/new.jpg").touch(),
    "removed": lambda root: (root / "b/2.jpg").unlink(),
    "renamed": lambda root: (root / "b/2.jpg").rename(root / "b/3.jpg"),
    "a new class": lambda root: (root / "c").mkdir(),
    "a class gone": lambda root: ((root / "a-b/0.jpg").unlink(), (root / "a-b").rmdir()),
    "a class renamed": lambda root: (root / "b").rename(root / "z"),
    "moved": lambda root: (root / "b/2.jpg").rename(root / "a/2.jpg"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_tree_is_indexed_again_and_says_so(root, cache, change, caplog):
    index_tree(root)
    change(root)
    found = index_tree(root)
    assert "has changed since it was indexed" in caplog.text
    on_disk = {str(p) for p in root.rglob("*.[jp]*") if "/." not in str(p)} | {
        str(p) for p in root.rglob("*.JPEG")
    }
    assert set(found.images) == on_disk
    assert set(found.folders) == {""} | {
        str(p.relative_to(root)) for p in root.rglob("*") if p.is_dir() and "/." not in str(p)
    }


def test_a_tree_that_changes_within_a_tick_of_the_clock_is_not_kept(root, cache):
    (root / "b/new.jpg").touch()
    index_tree(root)
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file", None], ids=str)
def test_a_damaged_index_is_made_anew(root, cache, damage):
    expected = index_tree(root)
    (file,) = cache.glob("*.npz")
    file.write_bytes(file.read_bytes()[:-700] if damage is None else damage)
    assert index_tree(root).images == expected.images
    assert len(file.read_bytes()) > 1000


def test_a_cache_that_cannot_be_written_is_said(root, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="indexed again at the next start"):
        assert len(index_tree(root).images) == 6


def test_small_trees_are_not_kept(root, cache, monkeypatch):
    monkeypatch.setattr(tree_index, "KEPT_FROM", 10_000)
    index_tree(root)
    assert not cache.exists()


def test_links_are_followed_and_circles_refused(root, cache, tmp_path):
    make(tmp_path / "elsewhere", "1.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    assert str(root / "linked/1.jpg") in index_tree(root).images
    (root / "a/deep/round").symlink_to(root / "a")
    with pytest.raises(ValueError, match="a/deep/round is a link to a folder that it lies in"):
        index_tree(root)


def test_a_folder_on_another_disk_may_have_the_same_inode(root, cache, monkeypatch):
    """A disk's root has inode 2, or 128, on every disk."""
    stat = os.stat

    def on_two_disks(path, *args, **kwargs):
        found = stat(path, *args, **kwargs)
        if Path(path) not in (root, root / "b"):
            return found
        return SimpleNamespace(
            st_ino=2, st_dev=len(Path(path).parts), st_mtime_ns=found.st_mtime_ns
        )

    monkeypatch.setattr(os, "stat", on_two_disks)
    assert len(index_tree(root).images) == 6


@pytest.mark.parametrize("name", [b"a/caf\xe9.jpg", b"caf\xe9/x.jpg"])
def test_a_name_that_no_table_can_hold_is_refused(root, cache, name):
    file = root / os.fsdecode(name)
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with pytest.raises(ValueError, match=r"caf\\xe9.* is not UTF-8 .*: rename it"):
        index_tree(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(root, cache):
    (root / "b").chmod(0)
    with pytest.raises(PermissionError, match="tree/b"):
        index_tree(root)


def test_a_table_is_a_compact_list():
    paths = ["x/1.jpg", "y/zz/ü.jpg", "plain.jpg", "x/2.jpg", "/abs/3.jpg"]
    table = FileTable.of(paths)
    assert list(table) == paths == table
    assert table != paths[:-1]
    assert table[-1] == paths[-1]
    assert table[1:4] == paths[1:4]
    assert table[::2][1] == paths[2]
    assert table.take([3, 0]).take(np.array([1])) == [paths[0]]
    assert pickle.loads(pickle.dumps(table)) == paths
    assert FileTable.of(table) is table
    assert FileTable.of([]) == []
    with pytest.raises(IndexError):
        table[5]
