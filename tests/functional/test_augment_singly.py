import pytest
import torch

from firstlight.functional import augment_draws
from firstlight.functional.augment import augment
from firstlight.functional.augment_draws import Draws
from firstlight.functional.augment_singly import augment_singly

MEAN, STD = (0.49, 0.48, 0.45), (0.20, 0.21, 0.22)


def drawn(count, size, strength):
    random = torch.Generator().manual_seed(1)
    return Draws(
        augment_draws.draw_flips(count, random),
        augment_draws.draw_color_jitter(count, strength, random),
        augment_draws.draw_erasing_boxes(count, size, random),
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kept", [(0, 1, 2), (0,), (1,), (2,), ()])
def test_one_after_another_is_all_together(layout, kept):
    """The other of two implementations; both are held to torchvision's where batches are made."""
    random = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (24, 3, 17, 11), dtype=torch.uint8, generator=random)
    before = images.clone()
    images = images.contiguous(memory_format=layout)
    draws = Draws(*(p if i in kept else None for i, p in enumerate(drawn(24, (17, 11), 0.8))))
    ours = augment_singly(images, draws, MEAN, STD)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.equal(images, before)
    # float32 of values up to 255 / 0.2 / 255, some ten operations each
    torch.testing.assert_close(ours, augment(images, draws, MEAN, STD), rtol=0, atol=1e-5)


def test_strong_colours_stay_on_the_scale():
    draws = Draws(None, drawn(50, (8, 8), 1.5).jitter, None)
    images = torch.full((50, 3, 8, 8), 255, dtype=torch.uint8)
    images[:, 1] = 0
    made = augment_singly(images, draws, (0.0,) * 3, (1.0,) * 3)
    assert made.min() >= 0
    assert made.max() <= 1 + 1e-6
