"""Sums over batches against the same numbers of all examples at once, by other code."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, recall_score
from torchmetrics.functional.classification import multiclass_calibration_error

from firstlight.functional import (
    Ranks,
    calibration,
    classifier_scores,
    fit_temperature,
    score_classifier,
)
from firstlight.functional.classifier_scores import TEMPERATURES

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


@pytest.mark.parametrize(("size", "chunk"), [(1, 1 << 22), (7, 100), (400, 1)])
def test_each_half_is_scaled_by_the_others_temperature(size, chunk, examples, monkeypatch):
    """Temperatures by scikit-learn's log loss, the error by torchmetrics; the whole by scipy."""
    monkeypatch.setattr(classifier_scores, "CHUNK", chunk)
    logits, targets = examples[0][3:], examples[1][3:]
    found = score_classifier(batches(logits, targets, size), K)

    def best(z, y):
        losses = [log_loss(y, softmax(z / t, axis=1), labels=range(K)) for t in TEMPERATURES]
        return TEMPERATURES[int(np.argmin(losses))]

    z, y = logits.numpy(), targets.numpy()
    temperatures = [best(z[half::2], y[half::2]) for half in (0, 1)]
    assert len({*temperatures, best(z, y)}) > 1
    probabilities = np.stack([softmax(z[i] / temperatures[1 - i % 2]) for i in range(len(z))])
    expected = multiclass_calibration_error(
        torch.tensor(probabilities), targets, num_classes=K, n_bins=15, norm="l1"
    )
    assert found.ece_scaled == pytest.approx(float(expected), abs=1e-6)
    assert found.ece_scaled < found.ece
    assert found.temperature == best(z, y)
    assert abs(math.log2(found.temperature / fit_temperature(logits, targets))) <= 1 / 16
    assert (min(TEMPERATURES), max(TEMPERATURES)) == (1 / 8, 8)


def test_positions_say_which_half_whatever_the_order(examples):
    logits, targets = examples[0][3:], examples[1][3:]
    alone = score_classifier([(logits, targets)], K)
    order = torch.randperm(397, generator=torch.Generator().manual_seed(1))
    batches = [(logits[part], targets[part], part) for part in order.split(90)]
    found = score_classifier(batches, K)
    assert found.ece_scaled == pytest.approx(alone.ece_scaled, abs=1e-12)
    assert found.temperature == alone.temperature
    shuffled = score_classifier([(logits[order], targets[order])], K)
    assert abs(shuffled.ece_scaled - alone.ece_scaled) > 1e-6


def test_a_single_half_has_no_calibration_after_scaling(examples):
    found = score_classifier([(examples[0][:1], examples[1][:1])], K)
    assert math.isnan(found.ece_scaled) and found.temperature in TEMPERATURES


def test_absent_classes_do_not_count_and_scores_that_are_no_posteriors_have_no_calibration(
    examples,
):
    logits, targets = examples
    kept = targets != 2
    found = score_classifier([(logits[kept], targets[kept])], K, probabilities=False)
    assert math.isnan(found.accuracy[2])
    for measure in ("ece", "brier", "ece_scaled", "temperature"):
        assert math.isnan(getattr(found, measure)), measure
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
    for measure in ("micro", "ece", "brier", "ece_scaled", "temperature"):
        assert getattr(both, measure) == pytest.approx(getattr(alone, measure)), measure
