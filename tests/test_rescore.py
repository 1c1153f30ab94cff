"""`firstlight rescore` on run folders written by hand."""

import json
import pkgutil

import pytest

from firstlight.rescore import rescore
from firstlight.runfolder import RunFolder, RunFolderError

REAL = json.loads(pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json"))
EMPTY = next(i for i, accepted in enumerate(REAL) if not accepted)
SEVERAL = next(i for i, accepted in enumerate(REAL) if len(accepted) > 1)


def write(tmp_path, numbers, pred, target, classes=1000, name="ILSVRC2012_val_{:08d}.JPEG@5+7"):
    folder = RunFolder.create(tmp_path / "run")
    folder.write("classes", {"class": range(classes), "name": [f"c{i}" for i in range(classes)]})
    columns = {"idx": range(len(pred)), "pred": pred, "target": target}
    columns["path"] = [f"x.tar/{name.format(i + 1)}" for i in numbers]
    folder.write("predictions", columns, step=3, split="test")
    return str(tmp_path)


def test_predictions_are_judged_by_the_labels_of_their_image(tmp_path, capsys):
    """Out of order: images are told by their names, not by their place."""
    numbers = [SEVERAL, EMPTY, 49_999]
    pred = [REAL[SEVERAL][1], 4, REAL[49_999][0]]
    run = write(tmp_path, numbers, pred, [REAL[SEVERAL][0], 4, REAL[49_999][0]])
    assert rescore(run) == (1.0, 2, 1)
    said = capsys.readouterr().out
    assert "ReaL top-1 100.00 % of 2 images (1 without" in said
    assert "top-1 66.67 % of 3" in said


def test_labels_of_a_file(tmp_path):
    run = write(tmp_path, [1, 0], [7, 8], [0, 0])
    (tmp_path / "real.json").write_text("[[8], [6]]")
    assert rescore(run, str(tmp_path / "real.json")).accuracy == 0.5
    (tmp_path / "real.json").write_text("[[8]]")
    with pytest.raises(ValueError, match="labels of 1 images, none of 2"):
        rescore(run, str(tmp_path / "real.json"))
    (tmp_path / "real.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a list with a list"):
        rescore(run, str(tmp_path / "real.json"))


def test_other_runs_are_refused(tmp_path):
    with pytest.raises(RunFolderError, match="is no ILSVRC2012_val"):
        rescore(write(tmp_path / "a", [0], [1], [1], name="cat{}.jpg"))
    with pytest.raises(RunFolderError, match="has 10 classes"):
        rescore(write(tmp_path / "b", [0], [1], [1], classes=10))
    with pytest.raises(RunFolderError, match="no predictions of 'val'"):
        rescore(write(tmp_path / "c", [0], [1], [1]), split="val")
