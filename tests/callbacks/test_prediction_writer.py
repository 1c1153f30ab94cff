"""PredictionWriter in a trainer that is not the command line's."""

import csv

import lightning.pytorch as L
import pytest
import torch
from contract_modules import Images, TupleBatch
from torch.utils.data import DataLoader

from firstlight.callbacks import PredictionWriter


class Predicts(TupleBatch):
    def predict_step(self, batch, index):
        return self.logits(batch).softmax(1)


def predict(root, module, output=None):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=root,
        callbacks=[PredictionWriter(output)],
    )  # fmt: skip
    trainer.predict(module, DataLoader(Images(), 8))


def test_rows_are_the_networks_probabilities(tmp_path):
    module = Predicts()
    predict(tmp_path, module)
    module.eval()
    with torch.no_grad():
        expected = torch.cat([module.predict_step(b, 0) for b in DataLoader(Images(), 8)])
    with (tmp_path / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [str(i) for i in range(37)]
    for row, probabilities in zip(rows, expected, strict=True):
        assert int(row["class"]) == probabilities.argmax()
        ranked = [float(row[f"probability_{k}"]) for k in (1, 2, 3)]
        assert ranked == pytest.approx(sorted(probabilities.tolist(), reverse=True), rel=1e-5)


@pytest.mark.parametrize("name", [None, "mine.csv"])
def test_an_existing_file_is_kept(name, tmp_path):
    file = tmp_path / (name or "predictions.csv")
    file.write_text("dear")
    with pytest.raises(FileExistsError, match=f"{file.name} exists; move it"):
        predict(tmp_path, Predicts(), name and str(file))
    assert file.read_text() == "dear"


def test_other_outputs_are_refused(tmp_path):
    class Labels(TupleBatch):
        def predict_step(self, batch, index):
            return self.logits(batch).argmax(1)

    with pytest.raises(TypeError, match=r"return probabilities \(N, C\), got Tensor \(8,\)"):
        predict(tmp_path, Labels())
