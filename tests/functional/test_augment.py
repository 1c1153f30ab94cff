import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

from firstlight.functional import augment, augment_draws


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 3, 12, 12), dtype=torch.uint8, generator=generator(1))


MEAN, STD = (0.49, 0.48, 0.45), (0.20, 0.21, 0.22)


def test_crops_are_torchvisions(images):
    padding = 3
    index = torch.randperm(64, generator=generator(2))[:40]
    offsets = augment_draws.draw_crop_offsets(40, padding, generator(3))
    ours = augment.crop(augment.pad(images, padding), index, offsets, (12, 12))
    for crop, i, (top, left) in zip(ours, index.tolist(), offsets.tolist(), strict=True):
        padded = tv.pad(images[i], [padding] * 4)
        assert torch.equal(crop, tv.crop(padded, top, left, 12, 12))
    assert ours.is_contiguous()


def test_crops_reach_the_last_corner(images):
    whole = augment.pad(images, 2)
    last = augment.crop(whole, torch.tensor([63]), torch.tensor([[4, 4]]), (12, 12))
    assert torch.equal(last[0], whole[63, :, 4:, 4:])


def test_flips_are_torchvisions(images):
    flips = augment_draws.draw_flips(64, generator(4))
    ours = augment.flip(images, flips)
    for image, flipped, chosen in zip(images, ours, flips.tolist(), strict=True):
        assert torch.equal(flipped, tv.hflip(image) if chosen else image)
    assert 0 < flips.sum() < 64


def test_erasing_is_torchvisions(images):
    boxes = augment_draws.draw_erasing_boxes(64, (12, 12), generator(5), p=0.7)
    floats = images.float()
    ours = augment.erase(floats.clone(), boxes, 0.0)
    for image, erased, (top, left, height, width) in zip(floats, ours, boxes.tolist(), strict=True):
        expected = tv.erase(image, top, left, height, width, torch.zeros(3, 1, 1))
        assert torch.equal(erased, expected)


def test_normalisation_is_torchvisions(images):
    ours = augment.normalize(images, MEAN, STD)
    theirs = tv.normalize(tv.convert_image_dtype(images, torch.float32), list(MEAN), list(STD))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (7, 7)])
def test_resizing_is_torchvisions(images, interpolation, size):
    ours = augment.resize(images, size, interpolation)
    mode = InterpolationMode(interpolation)
    assert torch.equal(ours, tv2.resize(images, list(size), mode, antialias=True))
    assert ours.dtype == torch.uint8


def test_resizing_to_the_same_size_does_nothing(images):
    assert augment.resize(images, (12, 12)) is images


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (12, 12)])
def test_centre_crop_is_torchvisions(images, size):
    assert torch.equal(augment.center_crop(images, size), tv.center_crop(images, list(size)))


def test_offsets_are_uniform_and_independent():
    offsets = augment_draws.draw_crop_offsets(40_500, 4, generator(6))
    cells = (offsets[:, 0] * 9 + offsets[:, 1]).bincount(minlength=81)
    assert len(cells) == 81
    assert stats.chisquare(cells.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.5, 0.25])
def test_flips_have_their_probability(p):
    flips = augment_draws.draw_flips(100_000, generator(7), p).sum().item()
    assert abs(flips - 100_000 * p) < 4 * math.sqrt(100_000 * p * (1 - p))


def torchvision_boxes(count, size, **arguments):
    theirs, image = v2.RandomErasing(p=1, **arguments), torch.zeros(3, size, size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [theirs.make_params([image]) for _ in range(count)]
    boxes = [[d["i"], d["j"], d["h"], d["w"]] if d["v"] is not None else [0] * 4 for d in drawn]
    return np.array(boxes, dtype=float)


@pytest.fixture(scope="module")
def erasing_draws():
    theirs = torchvision_boxes(120_000, 32)
    ours = augment_draws.draw_erasing_boxes(500_000, (32, 32), generator(8), p=1.0).numpy()
    return theirs[theirs[:, 2] > 0], ours[ours[:, 2] > 0]


def test_erasing_rejects_as_torchvision_does():
    hard = {"scale": (0.8, 1.0), "ratio": (0.3, 3.0)}
    theirs = torchvision_boxes(20_000, 16, **hard)
    ours = augment_draws.draw_erasing_boxes(100_000, (16, 16), generator(8), p=1.0, **hard).numpy()
    tables = [
        np.bincount((b[:, 2] * 17 + b[:, 3]).astype(int), minlength=289) for b in (theirs, ours)
    ]
    common = np.minimum(*tables) >= 5
    assert common[0] and common.sum() > 5  # key 0: no box in ten tries
    assert stats.chi2_contingency(np.stack(tables)[:, common]).pvalue > 1e-3


@pytest.mark.parametrize(
    "statistic",
    [
        lambda b: b[:, 2] * b[:, 3],
        lambda b: np.log(b[:, 2] / b[:, 3]),
        lambda b: abs(np.log(b[:, 2] / b[:, 3])),
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] / (33 - b[:, 2]),
        lambda b: b[:, 0] * b[:, 3],
    ],
    ids=["area", "ratio", "elongation", "top", "left", "relative top", "top and width"],
)
def test_erasing_boxes_are_distributed_as_torchvisions(erasing_draws, statistic):
    theirs, ours = (statistic(boxes) for boxes in erasing_draws)
    assert stats.ks_2samp(theirs, ours, method="asymp").pvalue > 1e-3
    error = math.hypot(*(sample.std() / math.sqrt(len(sample)) for sample in (theirs, ours)))
    assert abs(theirs.mean() - ours.mean()) < 3.5 * error


def test_erasing_happens_as_often_as_asked():
    boxes = augment_draws.draw_erasing_boxes(50_000, (32, 32), generator(9), p=0.3)
    assert abs((boxes[:, 2] > 0).sum().item() - 15_000) < 4 * math.sqrt(50_000 * 0.21)


def test_where_no_try_fits_the_image_stays_whole():
    # a box of the whole area and a ratio away from 1 is always too high or too wide
    boxes = augment_draws.draw_erasing_boxes(
        200, (16, 16), generator(10), p=1.0, scale=(1.0, 1.0), ratio=(2.0, 3.0)
    )
    assert boxes.sum() == 0


def test_drawing_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    augment_draws.draw_crop_offsets(5, 2, generator())
    augment_draws.draw_flips(5, generator())
    augment_draws.draw_erasing_boxes(5, (8, 8), generator())
    assert torch.equal(before, torch.get_rng_state())


def test_every_example_has_its_own_parameters():
    offsets = augment_draws.draw_crop_offsets(100, 4, generator(11))
    boxes = augment_draws.draw_erasing_boxes(100, (32, 32), generator(12), p=1.0)
    assert len(offsets.unique(dim=0)) > 40
    assert len(boxes.unique(dim=0)) > 90


def torchvision_crops(count, size, **arguments):
    image = torch.zeros(3, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = v2.RandomResizedCrop(8, **arguments)
        drawn = [transform.make_params([image]) for _ in range(count)]
    return np.array([[d[k] for k in ("top", "left", "height", "width")] for d in drawn], float)


CROPS = {
    "usual": {"scale": (0.08, 1.0)},
    "half": {"scale": (0.5, 1.0)},
    "often no box fits": {"scale": (0.9, 1.0), "ratio": (1.2, 2.0)},
}


@pytest.fixture(scope="module", params=CROPS)
def crop_draws(request):
    arguments, size = CROPS[request.param], (24, 32)
    ours = augment_draws.draw_resized_crops(300_000, size, generator(13), **arguments).numpy()
    return torchvision_crops(40_000, size, **arguments), ours.astype(float)


@pytest.mark.parametrize(
    "statistic",
    [
        lambda b: b[:, 2] * b[:, 3],
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] / (25 - b[:, 2]),
        lambda b: b[:, 1] / (33 - b[:, 3]),
        lambda b: b[:, 0] * b[:, 3],
    ],
    ids=["area", "ratio", "top", "left", "relative top", "relative left", "top and width"],
)
def test_resized_crops_are_distributed_as_torchvisions(crop_draws, statistic):
    theirs, ours = (statistic(boxes) for boxes in crop_draws)
    assert stats.ks_2samp(theirs, ours, method="asymp").pvalue > 1e-3
    error = math.hypot(*(sample.std() / math.sqrt(len(sample)) for sample in (theirs, ours)))
    assert abs(theirs.mean() - ours.mean()) < 3.5 * error


@pytest.mark.parametrize(
    ("size", "ratio", "box"),
    [
        ((16, 16), (2.0, 3.0), (4, 0, 8, 16)),
        ((16, 16), (0.25, 0.5), (0, 4, 16, 8)),
        ((9, 30), (3 / 4, 4 / 3), (0, 9, 9, 12)),
        ((16, 16), (1.0, 1.0), (0, 0, 16, 16)),
    ],
)
def test_where_no_crop_fits_the_centre_is_taken(size, ratio, box):
    boxes = augment_draws.draw_resized_crops(50, size, generator(14), (1.0, 1.0), ratio)
    assert set(map(tuple, boxes.tolist())) == {box}
    theirs = torchvision_crops(50, size, scale=(1.0, 1.0), ratio=ratio)
    assert set(map(tuple, theirs.astype(int).tolist())) == {box}


def test_shares_of_a_square_image():
    """The shares that the docstring states: 69 and 48 %."""
    for low, share in ((0.5, 0.69), (0.08, 0.48)):
        boxes = augment_draws.draw_resized_crops(100_000, (224, 224), generator(15), (low, 1.0))
        area = (boxes[:, 2] * boxes[:, 3]).double().mean() / 224**2
        assert area == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(12, 12), (5, 7), (20, 31)])
def test_resized_crops_are_torchvisions(images, interpolation, size):
    boxes = augment_draws.draw_resized_crops(64, (12, 12), generator(16), (0.05, 1.0))
    ours = augment.resized_crop(images, boxes, size, interpolation)
    mode = InterpolationMode(interpolation)
    for image, crop, (top, left, height, width) in zip(images, ours, boxes.tolist(), strict=True):
        whole = [image.double(), top, left, height, width, list(size), mode, True]
        exact = tv2.resized_crop(*whole).clamp(0, 255)
        assert (crop.double() - exact).abs().max() < 0.5 + 1e-3
        whole[0] = image
        if interpolation == "bilinear":  # bicubic of uint8 is clipped between its directions
            assert (crop.int() - tv2.resized_crop(*whole).int()).abs().max() <= 1


def test_resized_crops_have_parameters_of_their_own():
    boxes = augment_draws.draw_resized_crops(100, (32, 32), generator(17))
    assert len(boxes.unique(dim=0)) > 90


ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)


def test_colour_jitter_is_torchvisions(images):
    """Each image by torchvision's functions of one float64 image, in its own order."""
    drawn = augment_draws.draw_color_jitter(64, 0.8, generator(4))
    ours = augment.color_jitter(images.float(), drawn)
    assert len({tuple(order) for order in drawn.order.tolist()}) == 6
    for image, one, factors, order in zip(images, ours, *drawn, strict=True):
        expected = image.double() / 255
        for kind in order.tolist():
            expected = ADJUST[kind](expected, float(factors[kind]))
        torch.testing.assert_close(one.double(), expected * 255, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("strength", "low", "high"), [(0.4, 0.6, 1.4), (1.5, 0, 2.5)])
def test_colour_jitter_is_drawn_as_torchvision_draws_it(strength, low, high):
    """torchvision's documentation: uniform on [max(0, 1 - s), 1 + s], in random order."""
    factors, order = augment_draws.draw_color_jitter(6000, strength, generator(5))
    uniform = (factors.double().numpy() - low) / (high - low)
    assert -1e-6 < uniform.min() < 1e-3
    assert 0.999 < uniform.max() < 1 + 1e-6
    for kind in range(3):
        assert stats.kstest(uniform[:, kind], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(uniform.T) - np.eye(3)).max() < 4 / np.sqrt(6000)
    counts = np.unique(order.numpy(), axis=0, return_counts=True)[1]
    assert stats.chisquare(counts).pvalue > 1e-3
    assert len(counts) == 6
