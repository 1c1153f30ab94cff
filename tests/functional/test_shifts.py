"""Accuracies of shifted sets by enumeration, by torch on the subset, and by published numbers."""

import numpy as np
import pytest
import torch

from firstlight.functional.shifts import (
    ALEXNET_ERRORS,
    by_corruption,
    class_changes,
    mean_corruption_error,
    restrict_logits,
    section_counts,
    set_accuracy,
)


def test_counts_by_enumeration():
    random = np.random.default_rng(0)
    target, pred, section = (random.integers(0, k, 500) for k in (4, 4, 3))
    n, correct = section_counts(target, pred, section, (5, 6))  # two sections, two classes empty
    assert n.shape == correct.shape == (5, 6)
    for s, c in np.ndindex(5, 6):
        rows = [i for i in range(500) if section[i] == s and target[i] == c]
        assert n[s, c] == len(rows)
        assert correct[s, c] == sum(pred[i] == c for i in rows)


def test_summary_of_a_set_with_an_absent_class():
    found = set_accuracy(np.array([10, 0, 30, 10]), np.array([9, 0, 3, 1]))
    assert found[:2] == (50, pytest.approx(0.26))
    assert found.macro == pytest.approx((0.9 + 0.1 + 0.1) / 3)
    assert (found.worst_class, found.worst) == (2, pytest.approx(0.1))
    assert set_accuracy(np.zeros(3, int), np.zeros(3, int)).worst_class == -1


def test_changes_compare_the_classes_that_both_have():
    by_class, mean = class_changes(*map(np.array, ([4, 0, 10], [1, 0, 9], [10, 10, 5], [9, 0, 4])))
    assert by_class[[0, 2]] == pytest.approx([0.25 - 0.9, 0.9 - 0.8])
    assert np.isnan(by_class[1])
    assert mean == pytest.approx((-0.65 + 0.1) / 2)
    assert np.isnan(class_changes(*map(np.array, ([1, 0], [1, 0], [0, 1], [0, 1])))[1])


def test_mce_of_the_published_resnet50():
    """Table 1 of arXiv 1903.12261: ResNet-50's errors over AlexNet's, and their mean, 76.7."""
    published = {
        "gaussian_noise": 80, "shot_noise": 82, "impulse_noise": 83, "defocus_blur": 75,
        "glass_blur": 89, "motion_blur": 78, "zoom_blur": 80, "snow": 78, "frost": 75, "fog": 66,
        "brightness": 57, "contrast": 71, "elastic_transform": 85, "pixelate": 77,
        "jpeg_compression": 77,
    }  # fmt: skip
    errors = {name: ce / 100 * ALEXNET_ERRORS[name] for name, ce in published.items()}
    spread = {"1": 0.02, "2": 0.01, "3": 0.0, "4": -0.01, "5": -0.02}  # about the mean
    accuracies = {n: {s: 1 - e + d for s, d in spread.items()} for n, e in errors.items()}
    assert mean_corruption_error(accuracies, ALEXNET_ERRORS) == pytest.approx(0.767, abs=0.005)
    same = {n: dict.fromkeys("12345", 1 - e) for n, e in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(same, ALEXNET_ERRORS) == pytest.approx(1)
    assert mean_corruption_error(same | {"snow": {"1": 0.5}}, ALEXNET_ERRORS) is None
    assert mean_corruption_error({"snow": same["snow"]}, ALEXNET_ERRORS) is None


def test_sections_by_name():
    assert by_corruption(["fog/1", "snow/1", "fog/5", "identity"], [1, 2, 3, 4]) == {
        "fog": {"1": 1, "5": 3}, "snow": {"1": 2}, "identity": {"": 4},
    }  # fmt: skip


def test_restricted_logits_are_those_of_the_subset():
    """As the authors of ImageNet-R and -A score: ``net(x)[:, indices].argmax(1)`` and softmax."""
    logits = torch.randn(64, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classes = [3, 7, 8, 15]
    found = restrict_logits(logits, classes)
    within = logits[:, classes]
    assert found.argmax(1).tolist() == [classes[i] for i in within.argmax(1).tolist()]
    assert torch.allclose(found.softmax(1)[:, classes], within.softmax(1))
    assert restrict_logits(logits, None) is logits
