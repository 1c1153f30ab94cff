"""Leave-one-out errors against refits without each example, and scikit-learn's RidgeCV."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

from firstlight.functional import (
    RULES,
    LastLayerStatistics,
    Ranks,
    class_weights,
    leave_one_out_ridge,
    ridge_search,
    search_ridges,
)
from firstlight.functional.ridge_search import RIDGES

COUNTS = [17, 9, 4]
D = 6


def drawn(width):
    generator = torch.Generator().manual_seed(5)
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    features = torch.randn(30, width, generator=generator, dtype=torch.float64)
    features[torch.arange(30), targets] += 2.5
    return 3 + features * torch.logspace(-1, 1, width).double(), targets


@pytest.fixture
def examples():
    return drawn(D)


def searched(features, targets, rule="inverse_frequency", size=30, **options):
    statistics = LastLayerStatistics(features.shape[1], 3)
    statistics.update(features, targets)
    weights = class_weights(torch.tensor(COUNTS), rule)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    batches = [(features[part], targets[part]) for part in order.split(size)]
    return leave_one_out_ridge(statistics, weights, batches, **options), weights.weights[targets]


@pytest.mark.parametrize(
    ("size", "standardize", "rule", "width"),
    [(1, True, "inverse_frequency", D), (7, False, "none", D), (30, True, "none", 45)],
)
def test_errors_are_those_of_refits(size, standardize, rule, width):
    """The penalty n r stays that of all examples; so does the standardisation."""
    features, targets = drawn(width)
    found, w = searched(features, targets, rule, size, standardize=standardize)
    x, y, w = features.numpy(), np.eye(3)[targets.numpy()], w.numpy()
    if standardize:
        x = (x - x.mean(0)) / x.std(0)
    assert found.ridges == RIDGES and RIDGES[0] == pytest.approx(1e-3) and RIDGES[-1] == 10
    for ridge, error in list(zip(found.ridges, found.errors, strict=True))[::4]:
        total = 0.0
        for i in range(30):
            rest = np.arange(30) != i
            peer = Ridge(alpha=30 * ridge).fit(x[rest], y[rest], sample_weight=w[rest])
            total += w[i] * ((y[i] - peer.predict(x[i : i + 1])[0]) ** 2).sum()
        assert float(error) == pytest.approx(total / 30, rel=1e-8)
    assert found.ridge == found.ridges[int(found.errors.argmin())]


@pytest.mark.parametrize("width", [D, 45])
def test_the_choice_is_that_of_scikit_learn(width):
    features, targets = drawn(width)
    found, w = searched(features, targets, ridges=np.geomspace(1e-3, 10, 60).tolist())
    x = features.numpy()
    peer = RidgeCV(alphas=30 * np.array(found.ridges))
    peer.fit((x - x.mean(0)) / x.std(0), np.eye(3)[targets.numpy()], sample_weight=w.numpy())
    assert found.ridge == pytest.approx(peer.alpha_ / 30)
    assert min(RIDGES) < found.ridge < max(RIDGES) and found.note == ""


def test_the_best_at_an_end_is_said(examples):
    found, _ = searched(*examples, ridges=[10.0, 100.0])
    assert found.ridge == 10 and "10, is an end of the grid" in found.note
    assert searched(*examples, ridges=[0.1])[0].note == ""


def test_what_cannot_be_searched_is_refused(examples):
    for ridges in ([], [0.0, 1.0], [float("nan")], [-1.0]):
        with pytest.raises(ValueError, match="ridge"):
            searched(*examples, ridges=ridges)
    statistics = LastLayerStatistics(D, 3)
    statistics.update(*examples)
    part = [(examples[0][:20], examples[1][:20])]
    with pytest.raises(ValueError, match="the batches hold 20 examples, the statistics 30"):
        leave_one_out_ridge(statistics, class_weights(torch.tensor(COUNTS), "none"), part)


def test_ranks_add_their_errors(examples):
    """Each of two processes with all examples: statistics and errors double, the mean does not."""

    class Doubled(Ranks):
        def sum(self, value):
            return 2 * value

    statistics = LastLayerStatistics(D, 3)
    for _ in range(2):
        statistics.update(*examples)
    weights = class_weights(torch.tensor(COUNTS), "none")
    both = leave_one_out_ridge(statistics, weights, [examples], ranks=Doubled(0, 2))
    alone = leave_one_out_ridge(statistics, weights, [examples, examples])
    torch.testing.assert_close(both.errors, alone.errors, rtol=1e-12, atol=0)


@pytest.mark.parametrize("largest", [1 << 30, 0])
def test_every_squared_rule_has_its_own_ridge(largest, examples, monkeypatch):
    """The same as one search each, whether a moment of each class is kept or of each weighting."""
    monkeypatch.setattr(ridge_search, "LARGEST", largest)
    monkeypatch.setattr(ridge_search, "ROWS", 4)
    found = search_ridges(*examples, RULES, 3)
    assert set(found) == {"equal_error", "balanced_midpoint", "worst_class_midpoint"}
    for name, rule in {
        "balanced_midpoint": "square_root",
        "worst_class_midpoint": "inverse_frequency",
        "equal_error": "inverse_frequency",
    }.items():
        torch.testing.assert_close(found[name].errors, searched(*examples, rule)[0].errors)
    assert search_ridges(*examples, {"unweighted": RULES["unweighted"]}, 3) == {}
