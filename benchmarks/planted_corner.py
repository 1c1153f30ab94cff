"""Data with a planted effect: two classes that only a mark in the corner tells apart.

All images of the two classes are pooled and dealt out anew by a coin, so that nothing in them says
which is which; then a square in the upper left corner is painted, black or white by class. Training
on whole images sees the mark every time, random resized crops seldom do: whoever trains on them
must lose accuracy in these two classes, and in no other for that reason. What an analysis of a
crop-scale study has to find is thereby known.
"""

from typing import Any

import torch

from firstlight.datamodules import CIFAR10DataModule, DigitsDataModule
from firstlight.datamodules.resident import ResidentImages
from firstlight.datamodules.splits import Sources
from firstlight.functional.seeding import keyed_generator

SEED = 20220403


def plant(data: ResidentImages, pair: tuple[int, int], side: int, stream: int) -> ResidentImages:
    """Return the images with the two classes' labels dealt out anew and marked in the corner.

    Args:
        data: left as it is.
        pair: the two classes.
        side: of the mark, in pixels.
        stream: key of the coin, one for each set of images.
    """
    images, targets = data.images.clone(), torch.tensor(data.targets)
    chosen = torch.isin(targets, torch.tensor(pair)).nonzero().squeeze(1)
    dealt = targets[chosen][torch.randperm(len(chosen), generator=keyed_generator(SEED, stream))]
    targets[chosen] = dealt
    values = torch.where(dealt == pair[0], 0, 255).byte().view(-1, 1, 1, 1)
    images[chosen, :, :side, :side] = values.expand(-1, images.shape[1], side, side)
    return ResidentImages(images, targets.tolist(), data.classes)


class Planted:
    """Plants the effect in training and test images of a DataModule that follows in the bases.

    A class attribute ``pair`` names the classes, ``side`` the mark's size in pixels.
    """

    pair: tuple[int, int]
    side: int

    def _read(self) -> Sources[ResidentImages]:
        sources: Sources[ResidentImages] = super()._read()
        assert sources.test is not None
        train = plant(sources.train, self.pair, self.side, 0)
        return Sources(train, None, plant(sources.test, self.pair, self.side, 1))


class PlantedCIFAR10DataModule(Planted, CIFAR10DataModule):
    """CIFAR-10 whose cats and dogs only a mark of 4 x 4 pixels tells apart."""

    pair, side = (3, 5), 4

    def __init__(self, root: str = "data/cifar10", download: bool = False, **kwargs: Any) -> None:
        super().__init__(root, download, **kwargs)


class PlantedDigitsDataModule(Planted, DigitsDataModule):
    """Digits whose threes and eights only one pixel tells apart."""

    pair, side = (3, 8), 1
