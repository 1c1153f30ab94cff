"""Accuracy by several labels; oracles: counting by hand, and timm's own evaluator."""

import json
import math

import numpy as np
import pytest
import torch
from timm.data.real_labels import RealLabelsImagenet

from firstlight.functional import accepted_predictions, multi_label_accuracy


def test_by_hand():
    score = multi_label_accuracy([0, 1, 2, 2, 5], [[0], [0, 1], [1], [], [3, 4]])
    assert (score.n, score.unlabelled) == (4, 1)
    assert score.accuracy == 2 / 4
    assert math.isnan(multi_label_accuracy([1], [[]]).accuracy)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        multi_label_accuracy([1, 2], [[1]])


def test_timms_evaluator_gives_the_same(tmp_path):
    random = np.random.default_rng(0)
    labels = [random.choice(7, random.integers(0, 4), replace=False).tolist() for _ in range(200)]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    names = [f"val/x/ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(200)]
    peer = RealLabelsImagenet(names, tmp_path / "real.json")
    logits = torch.from_numpy(random.normal(size=(200, 7)))
    peer.add_result(logits)
    score = multi_label_accuracy(logits.argmax(1).tolist(), labels)
    assert score.accuracy == pytest.approx(peer.get_accuracy(k=1) / 100, rel=1e-12)
    assert 0 < score.unlabelled < 200


def test_runs_are_judged_like_one_by_one():
    """Each row's mean over labelled images is `multi_label_accuracy`; each cell is membership."""
    random = np.random.default_rng(1)
    labels = [random.choice(7, random.integers(0, 5), replace=False).tolist() for _ in range(90)]
    pred = random.integers(0, 7, (4, 90))
    right, labelled = accepted_predictions(pred, labels)
    assert labelled.tolist() == [bool(accepted) for accepted in labels]
    assert right.tolist() == [[p in a for p, a in zip(row, labels, strict=True)] for row in pred]
    for row, judged in zip(pred.tolist(), right, strict=True):
        assert judged[labelled].mean() == multi_label_accuracy(row, labels).accuracy
    empty, none = accepted_predictions(np.zeros((2, 3)), [[], [], []])
    assert not empty.any() and not none.any()
    with pytest.raises(ValueError, match="a column for each image"):
        accepted_predictions(pred, labels[1:])
