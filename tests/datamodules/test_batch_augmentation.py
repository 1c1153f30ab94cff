import pytest
import torch
from torchvision.transforms import functional as tv

from firstlight.datamodules import ImageFolderDataModule
from firstlight.datamodules.batch_augmentation import BatchAugmentation, collate_drawn
from firstlight.datamodules.preprocessing import Preprocessing

HOW = Preprocessing(16, 0.875, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CPU = torch.device("cpu")


def examples(count, size, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)


# 128 px are taken through all steps two at a time, 16 px all together
@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_what_torchvision_makes_of_single_images(size, layout):
    augmentation = BatchAugmentation(HOW, CPU, 0.5, 0.4, 0.5)
    images = examples(7, size)
    drawn = augmentation.draw(7, (size, size), torch.Generator().manual_seed(1))
    batch = augmentation(images.contiguous(memory_format=layout), drawn)
    assert batch.is_contiguous()
    assert batch.dtype == torch.float32
    assert 0 < drawn.flips.sum() < 7
    assert 0 < (drawn.boxes[:, 2] > 0).sum() < 7
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for number, image in enumerate(images):
        one = (tv.hflip(image) if drawn.flips[number] else image).double() / 255
        for kind in drawn.jitter.order[number].tolist():
            one = adjust[kind](one, float(drawn.jitter.factors[number, kind]))
        one = tv.normalize(one, HOW.mean, HOW.std)
        one = tv.erase(one, *drawn.boxes[number].tolist(), torch.tensor(0.0))
        torch.testing.assert_close(batch[number].double(), one, rtol=0, atol=1e-4)


def test_what_is_switched_off_draws_nothing():
    augmentation = BatchAugmentation(HOW, CPU, 0.0)
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    drawn = augmentation.draw(3, (16, 16), generator)
    assert torch.equal(before, generator.get_state())
    images = examples(3, 16)
    expected = tv.normalize(images.double() / 255, HOW.mean, HOW.std)
    torch.testing.assert_close(augmentation(images, drawn).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("switches", [(0.5, 0.4, 0.5), (0.5, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_examples_drawn_apart_are_the_batch(switches):
    """A batch does to each of its examples what is done to it alone."""
    augmentation = BatchAugmentation(HOW, CPU, *switches)
    images, generator = examples(6, 16), torch.Generator().manual_seed(2)
    items = [((image, augmentation.draw(1, (16, 16), generator)), 3) for image in images]
    (stacked, drawn), targets = collate_drawn(items)
    assert targets.tolist() == [3] * 6
    assert torch.equal(stacked, images)
    together = augmentation(stacked, drawn)
    for number, item in enumerate(items):
        (one, own), _ = collate_drawn([item])
        torch.testing.assert_close(augmentation(one, own)[0], together[number], rtol=0, atol=1e-5)


def test_a_single_and_an_empty_batch_pass():
    augmentation = BatchAugmentation(HOW, CPU, 0.5, 0.4, 0.5)
    for count in (0, 1):
        drawn = augmentation.draw(count, (16, 16), torch.Generator())
        assert augmentation(examples(count, 16), drawn).shape == (count, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_change_what_is_done_to_an_example(folder_root, workers):
    def epoch(batch_size):
        data = ImageFolderDataModule(
            str(folder_root),
            img_size=16,
            batch_size=batch_size,
            num_workers=workers,
            seed=1,
            color_jitter=0.4,
            erasing=0.5,
        )
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(1)
        order = list(loader.sampler)
        images = torch.cat([x for x, _ in loader])
        return dict(zip(order, images, strict=True))

    one, other = epoch(4), epoch(9)
    assert one.keys() == other.keys()
    for number, image in one.items():
        torch.testing.assert_close(image, other[number], rtol=0, atol=1e-5)


@pytest.mark.parametrize("jitter", [-0.1])
def test_impossible_strengths_are_refused(jitter):
    with pytest.raises(ValueError, match=r"color_jitter is 0 or above, got -0\.1"):
        ImageFolderDataModule(color_jitter=jitter)
