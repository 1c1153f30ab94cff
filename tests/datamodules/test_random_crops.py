import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from firstlight.datamodules import ImageFolderDataModule
from firstlight.datamodules.jpeg_regions import Box, SimpleJpeg, TurboJpeg, best_decoder
from firstlight.datamodules.random_crops import RandomCrops, choose_decoder, reduction
from firstlight.functional.seeding import keyed_randomness

pytest.importorskip("simplejpeg", reason="the extra fast-data is not installed")
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

needs_regions = pytest.mark.skipif(
    not isinstance(best_decoder(), TurboJpeg), reason="no libturbojpeg 3 here"
)
DECODERS = [pytest.param(TurboJpeg, marks=needs_regions), SimpleJpeg]


def decoder(kind):
    return best_decoder() if kind is TurboJpeg else SimpleJpeg()


def photo(width, height, seed=0):
    """Smooth colours with some texture, as of a photograph."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = random.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image, **how):
    file = io.BytesIO()
    image.save(file, "JPEG", **({"quality": 90} | how))
    return file.getvalue()


VARIANTS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 2},
}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("how", [*VARIANTS.values(), None], ids=[*VARIANTS, "grey"])
@pytest.mark.parametrize("by", [1, 2, 4, 8])
def test_regions_are_parts_of_what_pil_decodes(kind, how, by):
    """PIL's ``draft`` decodes at the same reduced sizes, by another copy of libjpeg-turbo."""
    image = photo(333, 251)
    content = jpeg(image.convert("L") if how is None else image, **(how or {}))
    opened = Image.open(io.BytesIO(content))
    opened.draft(None, (333 // by, 251 // by))
    whole = np.asarray(opened.convert("RGB"))
    height, width, _ = whole.shape
    assert (height, width) == (-(-251 // by), -(-333 // by))
    random = np.random.default_rng(by)
    for _ in range(25):
        h, w = random.integers(1, height + 1), random.integers(1, width + 1)
        top, left = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
        decode = decoder(kind)
        found = decode.region(decode.header(content), Box(*map(int, (top, left, h, w))), by)
        assert np.array_equal(found, whole[top : top + h, left : left + w])


@needs_regions
def test_a_decoder_serves_images_in_any_order_and_other_processes():
    one, other = jpeg(photo(80, 60)), jpeg(photo(50, 90, seed=1))
    decode = pickle.loads(pickle.dumps(best_decoder()))
    headers = [decode.header(one), decode.header(other)]
    expected = [np.asarray(Image.open(io.BytesIO(content))) for content in (one, other)]
    for number in (0, 1, 1, 0):
        height, width, _ = expected[number].shape
        found = decode.region(headers[number], Box(0, 0, height, width), 1)
        assert np.array_equal(found, expected[number])


@pytest.mark.parametrize("kind", DECODERS)
def test_what_is_no_plain_jpeg_is_left_to_pil(kind, monkeypatch):
    content = jpeg(photo(64, 48))
    png = io.BytesIO()
    photo(64, 48).save(png, "PNG")
    strange = {
        "png": png.getvalue(),
        "cmyk": jpeg(photo(64, 48).convert("CMYK")),
        "truncated": content[: len(content) // 2],
        "trailing bytes": content + b"\0" * 8,
        "empty": b"",
        "text": b"no image at all",
        "only its ends": content[:30] + content[-2:],
    }
    for name, bad in strange.items():
        assert decoder(kind).header(bad) is None, name
        assert decoder(kind).header(content) is not None  # and nothing is left of it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    assert decoder(kind).header(content) is None


@pytest.mark.parametrize("kind", DECODERS)
def test_damage_within_a_file_is_left_to_pil(kind):
    content = bytearray(jpeg(photo(64, 48)))
    middle = len(content) // 2
    content[middle : middle + 40] = b"\xff\xd9" * 20  # an early end
    decode = decoder(kind)
    found = decode.header(bytes(content))
    assert found is None or decode.region(found, Box(0, 0, 48, 64), 1) is None


def test_reduction_never_gets_below_what_is_asked():
    assert [reduction(Box(0, 0, h, w), 100) for h, w in ((99, 500), (199, 200), (200, 200))] == [
        1,
        1,
        2,
    ]
    assert [reduction(Box(0, 0, h, 900), 100) for h in (399, 400, 800, 2000)] == [2, 4, 8, 8]


def crops(size=32, kind=None, interpolation="bicubic", scale=SCALE):
    return RandomCrops(size, scale, RATIO, interpolation, kind and decoder(kind))


def test_crops_are_drawn_as_torchvision_draws_them():
    """Exactly: the same generator gives the same crop, and leaves the same state."""
    reader = crops()
    for seed in range(200):
        height, width = 20 + seed * 7 % 300, 20 + seed * 11 % 300
        image = Image.new("RGB", (width, height))
        torch.manual_seed(seed)
        ours = tuple(reader.draw(height, width)), torch.rand(1)
        torch.manual_seed(seed)
        theirs = transforms.RandomResizedCrop.get_params(image, SCALE, RATIO), torch.rand(1)
        assert ours == theirs


def test_crops_are_distributed_as_published():
    """Szegedy et al.: share of the area and logarithm of the aspect uniform, place uniform."""
    torch.manual_seed(0)
    reader = crops(scale=(0.1, 0.3))  # every proposal fits: nothing is rejected
    boxes = np.array([reader.draw(1000, 1000) for _ in range(4000)], float)
    top, left, height, width = boxes.T
    share = (height * width / 1e6 - 0.1) / 0.2
    aspect = (np.log(width / height) - np.log(3 / 4)) / (2 * np.log(4 / 3))
    places = (top / (1000 - height), left / (1000 - width))
    for uniform in (share, aspect, *places):
        assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef([share, aspect, *places]) - np.eye(4)).max() < 4 / np.sqrt(4000)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pil_crops_are_torchvisions(tmp_path, interpolation):
    photo(90, 70).save(tmp_path / "x.png")
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(32, interpolation=InterpolationMode(interpolation)),
            v2.PILToTensor(),
        ]
    )
    for seed in range(20):
        torch.manual_seed(seed)
        ours = crops(interpolation=interpolation)(str(tmp_path / "x.png"))
        torch.manual_seed(seed)
        assert torch.equal(ours, reference(Image.open(tmp_path / "x.png")))


def difference(path, kind, size, seeds=30):
    """Mean and largest absolute difference to PIL's crops, in grey levels."""
    found = []
    for seed in range(seeds):
        pair = []
        for one in (kind, None):
            torch.manual_seed(seed)
            pair.append(crops(size, one)(str(path)).int())
        found.append((pair[0] - pair[1]).abs())
    stacked = torch.stack(found).float()
    return stacked.mean().item(), stacked.max().item()


@pytest.mark.parametrize("kind", DECODERS)
def test_fast_crops_are_pils(tmp_path, kind):
    (tmp_path / "x.jpg").write_bytes(jpeg(photo(300, 260), subsampling=2))
    mean, largest = difference(tmp_path / "x.jpg", kind, 224)
    assert mean < 0.5  # both round to whole grey levels
    assert largest <= 4


@pytest.mark.parametrize("kind", DECODERS)
def test_reduced_crops_lie_where_they_were_drawn(tmp_path, kind):
    """Of a ramp the grey level tells the place: an edge is off by half a pixel of the result."""
    ramp = np.broadcast_to(np.linspace(0, 255, 1200)[None, :, None], (900, 1200, 3))
    image = Image.fromarray(ramp.round().astype(np.uint8))
    (tmp_path / "x.jpg").write_bytes(jpeg(image, quality=95))
    for seed in range(30):
        torch.manual_seed(seed)
        box = crops(64).draw(900, 1200)
        if reduction(box, 64) == 1:
            continue
        pair = []
        for one in (kind, None):
            torch.manual_seed(seed)
            pair.append(crops(64, one)(str(tmp_path / "x.jpg")).float().mean((0, 1)))
        step = 255 / 1200 * box.width / 64  # grey levels per pixel of the result
        inner = slice(2, -2)  # at the border a kernel is cut
        assert (pair[0] - pair[1])[inner].abs().max() < 0.5 * step + 1


STRANGE = {
    "png.JPEG": lambda file: photo(60, 50).save(file, "PNG"),
    "cmyk.jpg": lambda file: photo(60, 50).convert("CMYK").save(file, "JPEG"),
    "grey.jpg": lambda file: photo(60, 50).convert("L").save(file, "JPEG"),
    "palette.png": lambda file: photo(60, 50).convert("P").save(file, "PNG"),
    "moving.webp": lambda file: photo(60, 50).save(
        file, "WEBP", save_all=True, append_images=[photo(60, 50, seed=1)], lossless=True
    ),
    "one pixel.jpg": lambda file: Image.new("RGB", (1, 1), (9, 8, 7)).save(file, "JPEG"),
    "narrow.jpg": lambda file: photo(400, 3).save(file, "JPEG"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_files_give_what_pil_gives(tmp_path, name):
    STRANGE[name](tmp_path / name)
    mean, _ = difference(tmp_path / name, TurboJpeg, 32, seeds=5)
    assert mean < 1
    assert crops(32, TurboJpeg)(str(tmp_path / name)).shape == (3, 32, 32)


def test_orientation_in_exif_is_ignored_as_timm_ignores_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo(60, 40).save(tmp_path / "x.jpg", exif=exif)
    torch.manual_seed(0)
    assert crops(kind=SimpleJpeg).draw(40, 60) is not None
    mean, _ = difference(tmp_path / "x.jpg", SimpleJpeg, 32, seeds=5)
    assert mean < 1


def test_an_unreadable_file_is_named_by_every_decoder(tmp_path):
    file = tmp_path / "x.jpg"
    whole = jpeg(photo(60, 50))
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    for reader in (crops(), crops(kind=SimpleJpeg), crops(kind=TurboJpeg)):
        for content in (whole[:-300], b"", b"text", whole[:20]):
            file.write_bytes(content)
            with pytest.raises(ValueError, match=r"x\.jpg"):
                reader(str(file))
        with pytest.raises(FileNotFoundError, match=r"a link that leads nowhere: .*link\.jpg"):
            reader(str(tmp_path / "link.jpg"))


def test_bombs_and_deep_images_are_refused_by_name(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png .*more than 8 bits a channel, mode I;16"):
        crops(kind=SimpleJpeg)(str(tmp_path / "deep.png"))
    photo(60, 50).save(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for kind in (None, SimpleJpeg):
        with pytest.raises(ValueError, match=r"bomb\.jpg.*decompression bomb"):
            crops(kind=kind)(str(tmp_path / "bomb.jpg"))


def test_the_decoder_is_chosen_by_name(monkeypatch):
    assert choose_decoder("pil") is None
    assert choose_decoder("auto") is choose_decoder("fast") is best_decoder()
    with pytest.raises(ValueError, match=r"decoder is one of .*'turbo'"):
        choose_decoder("turbo")
    monkeypatch.setattr("firstlight.datamodules.random_crops.best_decoder", lambda: None)
    assert choose_decoder("auto") is None
    with pytest.raises(ImportError, match=r"pip install 'firstlight\[fast-data\]'"):
        ImageFolderDataModule(decoder="fast")


@pytest.mark.parametrize("name", ["pil", "fast"])
def test_batches_are_torchvisions_examples(folder_root, name):
    """The loader's batches against torchvision's transforms of single images, flips included."""
    data = ImageFolderDataModule(
        str(folder_root), img_size=24, batch_size=8, num_workers=0, seed=5, decoder=name
    )
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    how = data.preprocessing
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(24, SCALE, RATIO, InterpolationMode(how.interpolation)),
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(how.mean, how.std),
        ]
    )
    order, expected = list(loader.sampler), []
    for index in order:
        with keyed_randomness(5, 3, index):
            expected.append(reference(Image.open(loader.dataset.paths[index])))
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert targets.tolist() == [loader.dataset.targets[i] for i in order]
    assert images.is_contiguous()
    grey = (images - torch.stack(expected)).abs() * torch.tensor(how.std).view(1, 3, 1, 1) * 255
    assert grey.max() < (1e-3 if name == "pil" else 6)
    assert grey.mean() < (1e-3 if name == "pil" else 1)
