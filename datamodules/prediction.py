"""Images without labels, to predict."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from firstlight.datamodules.image_files import UnlabelledImages, list_images
from firstlight.datamodules.preprocessing import Preprocessing, evaluation_transform


def prediction_loader(
    folder: str | None, how: Preprocessing, batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Batches ``(images, number)`` of all images under ``folder``, prepared as for evaluation.

    Raises:
        ValueError: without a folder.
        FileNotFoundError: if it does not exist or holds no image.
    """
    if folder is None:
        raise ValueError("nothing to predict: pass predict_dir, a folder of images")
    data = UnlabelledImages(
        list_images(Path(folder)),
        evaluation_transform(how),
        "RGB" if len(how.mean) == 3 else "L",
    )
    return DataLoader(data, batch_size=batch_size, num_workers=num_workers)
