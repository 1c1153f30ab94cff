"""A DataModule's own test set, corrupted on the fly."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from firstlight.datamodules.image_files import ImageFiles
from firstlight.datamodules.preprocessing import evaluation_transform
from firstlight.datamodules.resident import prepare
from firstlight.datamodules.shifts import Setting, Shift, chosen, chosen_severities
from firstlight.functional.augment import normalize
from firstlight.functional.corruptions import BENCHMARK, CORRUPTIONS, PUBLISHED, corrupt
from firstlight.functional.seeding import fold_in

_GROUPS = {
    group: [name for name in names if name in CORRUPTIONS] for group, names in PUBLISHED.items()
}


@dataclasses.dataclass(frozen=True)
class Corrupted(Shift):
    """The DataModule's test set under common corruptions, made when an image is read.

    One set with the sections ``<corruption>/<severity>``, where there are several. Images in memory
    are corrupted as they are stored, files after resizing and cropping, as the published sets
    were; what `firstlight.functional.corrupt` says of equality holds. What is random is keyed by
    (seed, corruption, severity, example), the same for any number of workers and ranks.

    Attributes:
        corruptions: names, or groups: benchmark (ten of its fifteen), noise, blur, weather,
            digital, extra, all.
        severities: 1 to 5.
    """

    corruptions: str | list[str] = "benchmark"
    severities: int | list[int] = 3

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        self._chosen()

    def _chosen(self) -> list[tuple[str, int]]:
        benchmark = [name for name in BENCHMARK if name in CORRUPTIONS]
        names = chosen(self.corruptions, _GROUPS, "corruption on the fly", benchmark=benchmark)
        return [(n, level) for n in names for level in chosen_severities(self.severities)]

    def loader(self, setting: Setting) -> Any:
        """Return the loader; see `Shift`."""
        own = setting.own
        if isinstance(own, ImageFiles):
            bare = dataclasses.replace(setting.how, mean=(0.0,) * 3, std=(1.0,) * 3)
            pixels = own.with_transform(evaluation_transform(bare))
            return setting.file_loader(CorruptedImages(pixels, self._chosen(), setting))
        data = CorruptedImages(own, self._chosen(), setting, normalised=False)

        def inputs(index: Tensor) -> Tensor:
            images = torch.stack([data[i][0] for i in index.tolist()])
            return prepare(images.to(setting.device), setting.how)

        return setting.array_loader(data, inputs)


class CorruptedImages(Dataset[tuple[Tensor, int]]):
    """A labelled data set several times over, each time under another corruption.

    Args:
        data: items are (image (C, H, W), target), uint8 or float on the scale 0 to 1.
        sections: corruption and severity of each time.
        setting: has the seed, the classes, mean and standard deviation.
        normalised: whether items are float32 and normalised, or uint8.
    """

    def __init__(
        self,
        data: Any,
        sections: list[tuple[str, int]],
        setting: Setting,
        normalised: bool = True,
    ) -> None:
        self._data, self._how, self._seed = data, setting.how, setting.seed
        self._chosen, self._normalised = sections, normalised
        self.targets: list[int] = list(data.targets) * len(sections)
        self.classes = list(setting.classes)
        self.sections = [f"{name}/{level}" for name, level in sections]
        self.section_numbers: NDArray[np.int64] = np.repeat(np.arange(len(sections)), len(data))
        if hasattr(data, "paths"):
            self.paths: list[str] = list(data.paths) * len(sections)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        section, example = divmod(index, len(self._data))
        image, target = self._data[example]
        pixels = image if image.dtype == torch.uint8 else image.mul(255).round().byte()
        name, level = self._chosen[section]
        key = fold_in(self._seed, list(CORRUPTIONS).index(name), level, example)
        changed = corrupt(pixels.permute(1, 2, 0).numpy(), name, level, np.random.default_rng(key))
        result = torch.from_numpy(changed).permute(2, 0, 1)
        if self._normalised:
            result = normalize(result[None], self._how.mean, self._how.std)[0]
        return result, target
