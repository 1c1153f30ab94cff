"""Members of tar files: the same bytes as the files, found once, and nothing cut off accepted."""

import io
import os
import tarfile
from pathlib import PurePath

import numpy as np
import published_trees as published
import pytest
from PIL import Image

from firstlight.datamodules import archives
from firstlight.datamodules.archives import index_archive, member_bytes
from firstlight.datamodules.image_files import decode


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/firstlight"


@pytest.fixture
def tree(tmp_path):
    return published.write_imagenet(tmp_path / "tree")


@pytest.fixture
def packed(tree, tmp_path):
    return published.write_archives(tree, tmp_path / "packed")


def test_members_of_inner_tars_are_the_bytes_of_the_files(tree, packed):
    paths = index_archive(packed / "ILSVRC2012_img_train.tar")
    assert len(paths) == sum(published.WNIDS.values())
    for path in paths:
        file = tree.joinpath("train", *PurePath(path.partition("@")[0]).parts[-2:])
        assert member_bytes(path) == file.read_bytes()
        assert np.array_equal(decode(path), decode(str(file)))


def test_members_of_a_flat_tar_keep_its_order(tree, packed):
    paths = index_archive(packed / "ILSVRC2012_img_val.tar")
    names = [PurePath(path).name.partition("@")[0] for path in paths]
    assert names == [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 10)]
    files = {f.name: f for f in (tree / "val").rglob("*.JPEG")}
    assert all(member_bytes(p) == files[n].read_bytes() for p, n in zip(paths, names, strict=True))


def test_headers_are_read_once_and_again_when_the_archive_changes(packed, cache, monkeypatch):
    archive = packed / "ILSVRC2012_img_val.tar"
    first = index_archive(archive)
    (file,) = cache.iterdir()
    with monkeypatch.context() as m:
        m.setattr(archives, "_rows", None)
        assert index_archive(archive) == first
    file.write_bytes(file.read_bytes()[:50])  # as a disk that filled up would leave it
    assert index_archive(archive) == first
    time = archive.stat().st_mtime
    with tarfile.open(archive, "a") as tar:
        tar.addfile(tarfile.TarInfo("new.JPEG"), io.BytesIO())
    os.utime(archive, (time, time + 1))
    assert len(index_archive(archive)) == len(first) + 1


def test_without_a_place_to_keep_it_the_index_is_made_each_time(packed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a file, not a folder
    with pytest.warns(UserWarning, match="indexed again at the next start"):
        assert len(index_archive(packed / "ILSVRC2012_img_val.tar")) == 9


def inner_lengths(archive):
    with tarfile.open(archive) as tar:
        return [(m.offset, m.offset_data, m.size) for m in tar]


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize("where", ["data", "header", "boundary"])
def test_an_archive_that_is_cut_off_is_refused_by_name(packed, name, where):
    archive = packed / name
    offset, data, _ = inner_lengths(archive)[2]
    size = {"data": data + 700, "header": offset + 100, "boundary": offset}[where]
    os.truncate(archive, size)
    with pytest.raises(ValueError, match=rf"{name}.*load it again"):
        index_archive(archive)


def test_a_damaged_header_is_not_taken_for_the_end(packed):
    archive = packed / "ILSVRC2012_img_val.tar"
    offset, *_ = inner_lengths(archive)[4]
    with archive.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 512)
    with tarfile.open(archive) as tar:
        assert len(tar.getmembers()) == 4, "tarfile says nothing: that is the trap"
    with pytest.raises(ValueError, match=f"damaged at byte {offset}"):
        index_archive(archive)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "no.tar").write_text("this is no tar file")
    with pytest.raises(ValueError, match=r"no\.tar cannot be read as a tar"):
        index_archive(tmp_path / "no.tar")
    with pytest.raises(FileNotFoundError, match="no such archive"):
        index_archive(tmp_path / "none.tar")


def test_an_archive_that_shrinks_after_it_was_indexed_is_named(packed):
    archive = packed / "ILSVRC2012_img_val.tar"
    path = index_archive(archive)[-1]
    os.truncate(archive, 2000)
    with pytest.raises(ValueError, match=r"val\.tar.*ends within its member"):
        decode(path)
    archive.unlink()
    with pytest.raises(FileNotFoundError, match="no such image"):
        decode(path)


def test_a_folder_that_looks_like_a_member_is_a_folder_still(tmp_path):
    assert member_bytes(str(tmp_path / "a.tar@0+5/1")) is None
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    folder = tmp_path / "x.tar"
    folder.mkdir()
    (folder / "a.png").write_bytes(buffer.getvalue())
    assert decode(str(folder / "a.png")).size == (2, 2)
