import hashlib
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from firstlight.datamodules.examination import examine, pixel_hash


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def saved(image, path, **options):
    image.save(path, **options)
    return str(path)


def test_a_plain_image_is_described_as_it_was_written(tmp_path, picture):
    path = saved(Image.fromarray(picture), tmp_path / "a.png")
    facts = examine(path)
    assert (facts.format, facts.mode, facts.width, facts.height) == ("PNG", "RGB", 12, 9)
    assert (facts.frames, facts.orientation, facts.problem) == (1, 1, None)
    assert facts.size == os.path.getsize(path)  # noqa: PTH202  # the oracle is the system's


def test_the_same_pixels_in_two_formats_have_one_hash_and_one_changed_value_another(
    tmp_path, picture
):
    first = examine(saved(Image.fromarray(picture), tmp_path / "a.png")).pixels
    assert examine(saved(Image.fromarray(picture), tmp_path / "a.bmp")).pixels == first
    picture[0, 0, 0] ^= 1
    assert examine(saved(Image.fromarray(picture), tmp_path / "b.png")).pixels != first


def test_the_hash_tells_shapes_apart_that_hold_the_same_values():
    values = np.arange(24, dtype=np.uint8)
    assert pixel_hash(values.reshape(2, 4, 3)) != pixel_hash(values.reshape(4, 2, 3))
    assert pixel_hash(values) != hashlib.sha256(values.tobytes()).hexdigest()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_other_modes_are_decoded_and_named(tmp_path, picture, mode):
    suffix = "tiff" if mode == "CMYK" else "png"
    path = saved(Image.fromarray(picture).convert(mode), tmp_path / f"a.{suffix}")
    facts = examine(path)
    assert facts.mode == mode and facts.problem is None and facts.pixels is not None


def test_an_animation_and_an_orientation_are_seen(tmp_path, picture):
    frames = [Image.fromarray(np.roll(picture, k)) for k in range(3)]
    path = saved(frames[0], tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    assert examine(path).frames == 3
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.fromarray(picture), tmp_path / "a.jpg", exif=exif)
    assert examine(path).orientation == 6


def broken_files(folder, picture):
    whole = folder / "whole.jpg"
    Image.fromarray(picture.repeat(20, 0).repeat(20, 1)).save(whole)
    (folder / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("<html>not found</html>")
    (folder / "link.jpg").symlink_to(folder / "nowhere.jpg")
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(1000)))
    (folder / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
        )
    )
    (folder / "folder.png").mkdir()
    Image.fromarray(picture[..., 0].astype(np.uint16) * 250).save(folder / "deep.png")


def test_what_cannot_be_read_is_described_and_not_raised(tmp_path, picture):
    broken_files(tmp_path, picture)
    said = {
        "half.jpg": "truncated",
        "empty.jpg": "is empty",
        "text.jpg": "cannot identify",
        "link.jpg": "a link that leads nowhere",
        "deep.png": "more than 8 bits a channel",
        "bomb.png": "decompression bomb",
        "folder.png": "directory",
    }
    for name, words in said.items():
        facts = examine(str(tmp_path / name))
        assert facts.pixels is None
        assert words in facts.problem, name
    assert examine(str(tmp_path / "whole.jpg")).problem is None
