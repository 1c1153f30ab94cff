"""PredictionWriter: a row for every image that ``predict`` saw."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from firstlight.callbacks.records import gather, say
from firstlight.functional.loaders import offered
from firstlight.runfolder import replacing


class PredictionWriter(BasePredictionWriter):
    """Writes path, class name, probability and the five likeliest classes of every image, as CSV.

    Rows are in the order of the data set, also under DDP. ``predict_step`` must return
    probabilities (N, C). Names are the module's ``class_names`` (from its checkpoint), or the data
    module's, or class numbers. Paths are the data set's ``paths``, or positions.

    Args:
        output: the file; None for ``<trainer.log_dir>/predictions.csv``. An existing one is kept:
            the run is refused before it starts.

    Raises:
        FileExistsError: in ``setup``.
        TypeError: where ``predict_step`` returns something else.
    """

    def __init__(self, output: str | None = None) -> None:
        super().__init__("batch")  # Lightning tells a batch's indices to such a writer only
        self.output = output
        self._rows: list[tuple[int, list[float], list[int]]] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse to overwrite. Collective, since ``log_dir`` is."""
        if stage != "predict":
            return
        log_dir = trainer.log_dir
        self._file = Path(self.output or Path(log_dir or ".", "predictions.csv"))
        if trainer.is_global_zero and self._file.exists():
            raise FileExistsError(
                f"PredictionWriter: {self._file} exists; move it, or choose another output"
            )

    def on_predict_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget what came before."""
        self._rows = []

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the five likeliest classes of the batch."""
        if not isinstance(prediction, Tensor) or prediction.ndim != 2:
            raise TypeError(
                "PredictionWriter needs predict_step to return probabilities (N, C), got "
                f"{type(prediction).__name__} {tuple(getattr(prediction, 'shape', ()))}"
            )
        if not batch_indices:  # loaders that are no DataLoader, and trainers of pytorch_lightning
            if trainer.world_size > 1:
                raise RuntimeError(
                    "PredictionWriter cannot tell which images a rank has seen; predict with "
                    "devices=1, or give the trainer of lightning.pytorch a DataLoader"
                )
            batch_indices = range(len(self._rows), len(self._rows) + len(prediction))
        top = prediction.topk(min(5, prediction.shape[1]))
        self._rows += zip(batch_indices, top.values.tolist(), top.indices.tolist(), strict=True)

    def on_predict_epoch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Write the rows of all ranks. Collective."""
        rows = sorted(row for rank in gather(self._rows) for row in rank)
        if not trainer.is_global_zero:
            return
        names = getattr(pl_module, "class_names", None)
        if names is None:
            names = offered(trainer.datamodule, "class_names")
        dataset = getattr(trainer.predict_dataloaders, "dataset", None)
        _write(self._file, rows, names, getattr(dataset, "paths", None))
        say(trainer, f"{len(rows)} predictions: {self._file}")


def _write(
    file: Path,
    rows: Sequence[tuple[int, list[float], list[int]]],
    names: Sequence[str] | None,
    paths: Sequence[Path] | None,
) -> None:
    ranks = range(1, 1 + (len(rows[0][1]) if rows else 0))
    header = ["path", "class", "probability"]
    header += [f"{column}_{rank}" for rank in ranks for column in ("class", "probability")]
    with replacing(file) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for index, probabilities, classes in rows:
            labels = [str(c) if names is None else names[c] for c in classes]
            pairs = [f"{p:.6g}" for p in probabilities]
            top = [cell for pair in zip(labels, pairs, strict=True) for cell in pair]
            path = index if paths is None else paths[index]
            writer.writerow([path, labels[0], pairs[0], *top])
