"""Sums over batches against the same numbers of all examples at once, by other code."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from firstlight.functional import Ranks, calibration, score_classifier

K = 5


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(K, (400,), generator=generator)
    logits = torch.randn(400, K, generator=generator, dtype=torch.float64) * 2
    logits[torch.arange(400), targets] += 1.5
    logits[:3] *= 300  # a confidence of 1
    return logits, targets


def batches(logits, targets, size):
    return zip(torch.split(logits, size), torch.split(targets, size), strict=True)


@pytest.mark.parametrize("size", [1, 7, 400])
def test_against_scikit_learn_and_torchmetrics(examples, size):
    logits, targets = examples
    found = score_classifier(batches(*examples, size), K)
    pred = logits.argmax(1)
    assert found.micro == pytest.approx(accuracy_score(targets, pred), abs=1e-12)
    assert found.macro == pytest.approx(balanced_accuracy_score(targets, pred), abs=1e-12)
    recall = recall_score(targets, pred, average=None)
    np.testing.assert_allclose(found.accuracy.numpy(), recall, atol=1e-12)
    assert found.worst == pytest.approx(recall.min()) and found.worst_class == recall.argmin()
    prior = torch.tensor([5.0, 1, 1, 1, 2])
    expected = accuracy_score(targets, pred, sample_weight=(prior / found.counts)[targets])
    assert found.under(prior) == pytest.approx(expected, abs=1e-12)
    whole = calibration(logits, targets)
    assert found.ece == pytest.approx(whole.ece, abs=1e-6)  # torchmetrics bins in float32
    assert found.brier == pytest.approx(whole.brier, abs=1e-12)


def test_absent_classes_do_not_count_and_scores_that_are_no_posteriors_have_no_calibration(
    examples,
):
    logits, targets = examples
    kept = targets != 2
    found = score_classifier([(logits[kept], targets[kept])], K, probabilities=False)
    assert math.isnan(found.accuracy[2]) and math.isnan(found.ece) and math.isnan(found.brier)
    rest = found.accuracy[[0, 1, 3, 4]]
    assert found.macro == pytest.approx(float(rest.mean()))
    assert found.worst == pytest.approx(float(rest.min()))
    with pytest.raises(ValueError, match="no class of the prior"):
        found.under(torch.tensor([0.0, 0, 1, 0, 0]))


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        score_classifier([], K)


def test_ranks_add_their_sums(examples):
    class Doubled(Ranks):
        def sum(self, value):
            return 2 * value

    alone = score_classifier([examples], K)
    both = score_classifier([examples], K, ranks=Doubled(0, 2))
    assert both.counts.tolist() == (2 * alone.counts).tolist()
    assert (both.micro, both.ece, both.brier) == pytest.approx(
        (alone.micro, alone.ece, alone.brier)
    )
