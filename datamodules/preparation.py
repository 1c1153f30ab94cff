"""How a DataModule's images are prepared, and who decided it."""

from typing import Any

from firstlight.datamodules.placement import PlacedDataModule
from firstlight.datamodules.preprocessing import Preprocessing, resolve_preprocessing


class PreparedDataModule(PlacedDataModule):
    """A DataModule whose preprocessing follows arguments, a backbone, or the data set.

    A subclass sets ``_explicit``, values of `Preprocessing` fields or None, and ``_backbone``, a
    timm name or None, in its constructor, and ends it by `_settle_preprocessing`.
    """

    preprocessing: Preprocessing
    _explicit: dict[str, Any]
    _backbone: str | None
    _sources: dict[str, str]

    def _settle_preprocessing(self, native: Preprocessing, follow_crop: bool = True) -> None:
        """Resolve the preprocessing; every subclass ends its constructor with this.

        Args:
            native: the data set's own values.
            follow_crop: whether the backbone's ``crop_pct`` is meant for data of this kind.
        """
        explicit = dict(self._explicit)
        if not follow_crop and explicit["crop_pct"] is None:
            explicit["crop_pct"] = native.crop_pct
        self.preprocessing, self._sources = resolve_preprocessing(explicit, self._backbone, native)
        if explicit["crop_pct"] != self._explicit["crop_pct"]:
            self._sources["crop_pct"] = "data set"

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel that images are normalised with."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel that images are normalised with."""
        return self.preprocessing.std

    @property
    def img_size(self) -> int:
        """Height and width of the images that the network sees."""
        return self.preprocessing.img_size
