"""scikit-learn's bundled digits: real images without a download."""

from typing import Any

import torch

from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.resident import ResidentDataModule, ResidentImages
from firstlight.datamodules.splits import Sources
from firstlight.functional.long_tail import ImbalanceType, stratified_split

_MEAN, _STD = 0.3053, 0.3761  # of all pixels of the 1,797 images, on the scale 0 to 1
_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class DigitsDataModule(ResidentDataModule):
    """1,797 images of handwritten digits, 8 x 8 pixels in 17 grey levels.

    A fifth of every class is the test set, always the same; training classes have 139 to 147
    images. With ``imbalance_factor`` the largest class has 139.

    Args:
        channels: 3 (the grey image three times, as pretrained networks expect) or 1.
        imbalance_factor: largest class over smallest, up to 139; None leaves the data as it is.
        imbalance_type: ``exp`` or ``step``.
        imbalance_seed: another seed chooses other images.
        crop_padding: border of zeros that random crops may reach into, in pixels of the 8 x 8.
        horizontal_flip: off, because a mirrored digit is another shape.
        erasing: probability of random erasing.
        **kwargs: the arguments of `ImageDataModule`; ``img_size=32`` suits most networks.

    Example:
        >>> data = DigitsDataModule(img_size=16, batch_size=4)
        >>> data.setup("fit")
        >>> images, targets = next(iter(data.train_dataloader()))
        >>> images.shape, targets.shape
        (torch.Size([4, 3, 16, 16]), torch.Size([4]))
    """

    def __init__(
        self,
        channels: int = 3,
        imbalance_factor: float | None = None,
        imbalance_type: ImbalanceType = "exp",
        imbalance_seed: int = 0,
        crop_padding: int = 1,
        horizontal_flip: bool = False,
        erasing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            imbalance_factor=imbalance_factor,
            imbalance_type=imbalance_type,
            imbalance_seed=imbalance_seed,
            crop_padding=crop_padding,
            horizontal_flip=horizontal_flip,
            erasing=erasing,
            **kwargs,
        )
        if channels not in (1, 3):
            raise ValueError(f"channels is 3 or 1, got {channels}")
        self.channels = channels
        self._settle_preprocessing(
            Preprocessing(8, 1.0, "bilinear", (_MEAN,) * channels, (_STD,) * channels),
            follow_crop=False,
        )

    def _names_for_prediction(self) -> list[str]:
        return list(_NAMES)

    def _read(self) -> Sources[ResidentImages]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        grey = torch.from_numpy(bunch.images).mul(255 / 16).round().byte().unsqueeze(1)
        images = grey.expand(-1, self.channels, -1, -1).contiguous()
        data = ResidentImages(images, bunch.target.tolist(), list(_NAMES))
        train, test = stratified_split(data.targets, 0.2, seed=0)
        pool = data.subset(train)
        return Sources(pool.subset(self._kept(pool.targets, pool.classes)), None, data.subset(test))
