import pytest
import torch
from scipy import stats

from firstlight.functional.mixing import cutmix, mixup

CLASSES = 7


def marked_batch(count, size=(24, 20)):
    """Images whose every pixel holds the example's own number, and one class per example."""
    images = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, *size).clone()
    return images, torch.arange(count) % CLASSES


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cutmix_target_is_the_share_of_pixels_of_each_class():
    images, targets = marked_batch(64)
    mixed, soft = cutmix(images, targets, CLASSES, 1.0, generator())
    area = images[0, 0].numel()
    for i, image in enumerate(mixed):
        counted = torch.zeros(CLASSES)
        for value in image[0].flatten():
            counted[targets[int(value)]] += 1
        assert torch.allclose(soft[i], counted / area, atol=1e-6)
        assert (image == image[:1]).all()  # all channels alike
        assert len(image.unique()) <= 2
        pasted = (image[0] != i).nonzero()
        if len(pasted):  # one full rectangle
            extent = pasted.max(0).values - pasted.min(0).values + 1
            assert int(extent.prod()) == len(pasted)


def test_mixup_images_and_targets_share_one_ratio():
    images, targets = marked_batch(64)
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[targets].view(64, CLASSES, 1, 1)
    carried = torch.cat([images, one_hot.expand(-1, -1, *images.shape[-2:])], 1)
    mixed, soft = mixup(carried, targets, CLASSES, 1.0, generator())
    assert torch.allclose(mixed[:, 3:].mean((2, 3)), soft.double(), atol=1e-6)
    assert torch.equal(mixed[:, 0].amax((1, 2)), mixed[:, 0].amin((1, 2)))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_ratios_are_beta_and_one_per_example(alpha):
    count = 4000
    images, targets = torch.zeros(count, 1, 1, 1), torch.arange(count)
    _, soft = mixup(images, targets, count, alpha, generator(3))
    ratios, moved = soft.diagonal(), soft.count_nonzero(1) > 1
    assert moved.float().mean() > 0.9
    result = stats.kstest(ratios[moved].double().numpy(), stats.beta(alpha, alpha).cdf)
    assert result.pvalue > 0.01
    assert len(ratios.unique()) > 0.8 * count


def test_cutmix_box_covers_the_drawn_share_before_the_border_cuts_it():
    # Beta(1e9, 1e9) is one half to four digits: a side of sqrt(1/2) of each of the image's.
    images = torch.arange(100, dtype=torch.int16).view(-1, 1, 1, 1).expand(-1, 1, 400, 300)
    mixed, _ = cutmix(images, torch.arange(100), 100, 1e9, generator())
    pasted = mixed[:, 0] != images[:, 0]
    for axis, expected in ((2, 282), (1, 212)):
        extent = pasted.any(axis)
        uncut = extent.any(1) & ~extent[:, 0] & ~extent[:, -1]
        assert uncut.sum() > 10
        assert set(extent[uncut].sum(1).tolist()) == {expected}


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_draws_come_from_the_generator_alone(mix):
    images, targets = marked_batch(16)
    before = torch.get_rng_state()
    first = mix(images, targets, CLASSES, 1.0, generator(5))
    again = mix(images, targets, CLASSES, 1.0, generator(5))
    other = mix(images, targets, CLASSES, 1.0, generator(6))
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    assert torch.allclose(first[1].sum(1), torch.ones(16))
    assert first[0].dtype == images.dtype and first[1].dtype == torch.float32


def test_alpha_must_be_positive():
    images, targets = marked_batch(4)
    with pytest.raises(ValueError, match="alpha must be above 0"):
        mixup(images, targets, CLASSES, 0.0, generator())
