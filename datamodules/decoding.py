"""What the DataModules of encoded images share: decoded in workers, augmented on the device."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from firstlight.datamodules.arguments import check_crops
from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.batch_augmentation import BatchAugmentation, collate_drawn
from firstlight.datamodules.image_files import ImageFiles
from firstlight.datamodules.loaders import ResumableDataLoader
from firstlight.datamodules.preprocessing import evaluation_transform
from firstlight.datamodules.random_crops import DecoderName, RandomCrops, WithDraws, choose_decoder
from firstlight.datamodules.samplers import fixed_order


class DecodingDataModule(ImageDataModule[ImageFiles]):
    """Base of the DataModules that decode images; a subclass says what from.

    Worker processes decode random crops of the training images, resized, as uint8; the rest is done
    in batches on the training device: flips, colours, normalisation, erasing. Evaluation images are
    decoded by PIL and prepared as timm's ``create_transform`` does. EXIF orientation is ignored, as
    torchvision and timm ignore it.

    Args:
        scale: range of a training crop's share of the image's area.
        ratio: range of a training crop's width over height.
        horizontal_flip: probability of mirroring a training image.
        color_jitter: strength of random changes of brightness, contrast and saturation, as timm's.
        erasing: probability of random erasing.
        decoder: of training images. ``pil``: all of each file, the reference; ``fast``: the part of
            a JPEG file that the crop needs, by the extra ``fast-data``; ``auto``: fast if it is
            installed. Crops are the same; pixels differ as `RandomCrops` says.
        **kwargs: the arguments of `ImageDataModule`.

    Raises:
        ValueError: for a probability outside [0, 1], a range of crops that is none, or an unknown
            choice.
        ImportError: for ``decoder="fast"`` where none is installed.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        color_jitter: float = 0.0,
        erasing: float = 0.0,
        decoder: DecoderName = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_crops(scale, ratio)
        for name, share in (("horizontal_flip", horizontal_flip), ("erasing", erasing)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} lies in [0, 1], got {share}")
        if color_jitter < 0:
            raise ValueError(f"color_jitter is 0 or above, got {color_jitter}")
        choose_decoder(decoder)
        self.decoder = decoder
        self.scale, self.ratio = scale, ratio
        self.horizontal_flip, self.erasing = horizontal_flip, erasing
        self.color_jitter = color_jitter

    def summary(self) -> str:
        """As in every DataModule, and what decodes the training images."""
        fast = choose_decoder(self.decoder)
        return f"{super().summary()}\n  training images decoded by {fast.name if fast else 'PIL'}"

    def _random_crops(self) -> RandomCrops:
        how, decoder = self.preprocessing, choose_decoder(self.decoder)
        return RandomCrops(how.img_size, self.scale, self.ratio, how.interpolation, decoder)

    def _crops(self, data: ImageFiles) -> Callable[[Any], Tensor]:
        """What makes a random crop, uint8 (3, size, size), of a source of ``data``."""
        return self._random_crops()

    def _train_loader(self, data: ImageFiles) -> ResumableDataLoader:
        augmentation = BatchAugmentation(
            self.preprocessing,
            self._device,
            self.horizontal_flip,
            self.color_jitter,
            self.erasing,
        )
        return self._loader(
            data.with_reader(WithDraws(self._crops(data), augmentation), self.seed),
            self._train_sampler(data),
            self.batch_size,
            drop_last=self.drop_last,
            finish=augmentation,
            collate_fn=collate_drawn,
        )

    def _eval_loader(self, data: ImageFiles, shared: bool = True) -> ResumableDataLoader:
        transform = evaluation_transform(self.preprocessing)
        sampler = fixed_order(data, *(self._shard if shared else (1, 0)))
        return self._loader(data.with_transform(transform), sampler, self.eval_batch_size)

    def _loader(
        self, data: ImageFiles, sampler: Any, batch_size: int, **kwargs: Any
    ) -> ResumableDataLoader:
        return ResumableDataLoader(
            data,
            sampler=sampler,
            batch_size=batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._device.type == "cuda",
            **kwargs,
        )
