"""Oracles: torchmetrics, scikit-learn, closed forms, hand counts; never the code's own formula."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch.utils.data import DistributedSampler
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassPrecision,
)

from firstlight.functional import (
    PerClassCounts,
    example_positions,
    rank_of_target,
    score_examples,
)

CLASSES, EXAMPLES = 7, 400


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, CLASSES - 1, (EXAMPLES,), generator=generator)  # the last is absent
    logits = 2 * torch.randn(EXAMPLES, CLASSES, generator=generator, dtype=torch.float64)
    logits[torch.arange(EXAMPLES), targets] += 1.5
    return logits, targets


def counted(logits, targets, size=EXAMPLES, **kwargs):
    counts = PerClassCounts(logits.shape[1], **kwargs)
    for x, y in zip(logits.split(size), targets.split(size), strict=True):
        counts.update(x, y)
    return counts.compute()


def test_accuracy_and_precision_equal_torchmetrics(batch):
    columns = counted(*batch)
    present = columns["n"] > 0
    for metric, part, whole in [
        (MulticlassAccuracy, "correct", "n"),
        (MulticlassPrecision, "correct", "pred_count"),
    ]:
        expected = metric(CLASSES, average=None)(*batch)
        torch.testing.assert_close(
            (columns[part] / columns[whole])[present], expected[present], atol=1e-6, rtol=0
        )
    top5 = MulticlassAccuracy(CLASSES, average=None, top_k=5)(*batch)
    torch.testing.assert_close((columns["top5"] / columns["n"])[present], top5[present])


def test_absent_class_is_missing(batch):
    columns = counted(*batch)
    assert columns["n"][-1] == 0
    assert columns["nll"][-1].isnan()
    assert columns["confidence"][:-1].isfinite().all()


def test_likelihood_equals_scikit_learn(batch):
    logits, targets = batch
    columns, probabilities = counted(*batch), logits.softmax(1).numpy()
    for c in range(CLASSES - 1):
        rows = (targets == c).numpy()
        expected = log_loss(targets[rows], probabilities[rows], labels=range(CLASSES))
        assert columns["nll"][c].item() == pytest.approx(expected, rel=1e-12)


def test_scores_of_a_hand_example():
    # softmax of (ln 2, ln 1, ln 1) is (1/2, 1/4, 1/4).
    logits = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]], dtype=torch.float64).log()
    scores = score_examples(logits, torch.tensor([1, 2]))
    assert scores.pred.tolist() == [0, 2]
    assert scores.rank_true.tolist() == [1, 0]  # the tie with class 2 counts as correct
    torch.testing.assert_close(scores.p_true.tolist(), [0.25, 0.5])
    torch.testing.assert_close(scores.p_pred.tolist(), [0.5, 0.5])
    torch.testing.assert_close(scores.nll.tolist(), [np.log(4), np.log(2)])
    torch.testing.assert_close(scores.brier.tolist(), [1 / 4 + 9 / 16 + 1 / 16, 1 / 4 + 1 / 8])


def test_calibration_equals_torchmetrics_on_each_predicted_class(batch):
    logits, targets = batch
    columns = counted(*batch, calibration_bins=10)
    confidence, pred = logits.softmax(1).max(1)
    for c in range(CLASSES):
        rows = pred == c
        # Its bins hold confidence and correctness just as ours do, for one class at a time.
        oracle = BinaryCalibrationError(n_bins=10)
        oracle.confidences, oracle.accuracies = [confidence[rows]], [(targets == c)[rows].double()]
        oracle._update_count = 1  # its update() would turn confidences below 1/2 around
        assert columns["ece"][c].item() == pytest.approx(oracle.compute().item(), abs=1e-9)


def test_calibrated_predictions_have_no_error():
    # Five examples of confidence 4/5 for class 0, four of them right.
    logits = torch.tensor([[4.0, 1.0]], dtype=torch.float64).log().repeat(5, 1)
    columns = counted(logits, torch.tensor([0, 0, 0, 0, 1]))
    assert columns["ece"][0].item() == pytest.approx(0, abs=1e-12)
    assert columns["ece"][1].isnan()  # never predicted
    wrong = counted(logits, torch.ones(5, dtype=torch.long))
    assert wrong["ece"][0].item() == pytest.approx(0.8)


def test_identities(batch):
    logits, targets = batch
    columns = counted(*batch)
    assert columns["n"].sum() == columns["pred_count"].sum() == EXAMPLES
    assert columns["correct"].sum() == (logits.argmax(1) == targets).sum()


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, EXAMPLES), seed=st.integers(0, 1000))
def test_batching_and_order_do_not_matter(size, seed):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(EXAMPLES, CLASSES, generator=generator)
    targets = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(seed))
    whole, parts = counted(logits, targets), counted(logits[order], targets[order], size)
    for name, column in whole.items():
        torch.testing.assert_close(parts[name], column, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_chunks_equal_the_whole(batch, monkeypatch):
    whole = score_examples(*batch)
    monkeypatch.setattr("firstlight.functional.per_class.CHUNK", 3 * CLASSES)
    for a, b in zip(score_examples(*batch), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_macro_of_the_method_card():
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2]), 4).float()
    columns = counted(logits, torch.tensor([0, 0, 1, 1]))
    accuracy = columns["correct"] / columns["n"]
    assert accuracy.nanmean().item() == 0.75
    assert accuracy.isnan().tolist() == [False, False, True, True]


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0], [0.0, -1e4]])
    scores = score_examples(logits, torch.tensor([1, 1]))
    assert scores.nll.tolist() == [1e4, 1e4]


@pytest.mark.parametrize("calibration_bins", [None, 15])
def test_a_diverged_network_is_never_right(calibration_bins):
    logits = torch.full((6, CLASSES), float("nan"))
    logits[5] = torch.eye(CLASSES)[3]
    columns = counted(logits, torch.tensor([0, 0, 1, 2, 0, 3]), calibration_bins=calibration_bins)
    assert columns["correct"].tolist() == columns["top5"].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert columns["n"].sum() == columns["pred_count"].sum() == 6
    few = counted(logits[:5, :3], torch.tensor([0, 0, 1, 2, 0]), calibration_bins=calibration_bins)
    assert few["top5"].sum() == 0  # nor where five are more than all classes


def test_ranks_by_hand():
    nan = float("nan")
    logits = torch.tensor([[3.0, 2, 1], [1, 1, 1], [1, nan, 2], [nan, 0, 1]])
    assert rank_of_target(logits, torch.tensor([2, 1, 0, 0])).tolist() == [2, 0, 2, 3]


def test_ignored_targets_are_dropped(batch):
    logits, targets = batch
    marked = targets.clone()
    marked[::3] = -100
    kept = marked != -100
    with_marks = counted(logits, marked, ignore_index=-100)
    for name, column in counted(logits[kept], targets[kept]).items():
        torch.testing.assert_close(with_marks[name], column, equal_nan=True)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"in \[0, 3\).*from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "from -1 to 0"),
        (torch.zeros(2, 4), torch.tensor([0, 0]), "width 3.*head"),
        (torch.zeros(2, 3), torch.tensor([0]), "shapes"),
    ],
)
def test_bad_batches_are_refused_and_not_counted(logits, targets, message):
    counts = PerClassCounts(3)
    with pytest.raises(ValueError, match=message):
        counts.update(logits, targets)
    assert counts.counts.sum() == 0


@pytest.mark.parametrize("kwargs", [{"num_classes": 1}, {"top_k": 0}, {"calibration_bins": 0}])
def test_bad_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match=r"must be at least"):
        PerClassCounts(**{"num_classes": 3, **kwargs})


def test_lives_in_a_collection(batch):
    values = MetricCollection([PerClassCounts(CLASSES), MulticlassAccuracy(CLASSES)])(*batch)
    assert values["n"].sum() == EXAMPLES


def test_deterministic_algorithms(batch):
    plain = counted(*batch)
    torch.use_deterministic_algorithms(True)
    try:
        again = counted(*batch)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(plain["ece"], again["ece"])


@pytest.mark.parametrize(("total", "ranks"), [(50, 8), (10, 4), (3, 8), (50_000, 7)])
def test_positions_are_each_example_once(total, ranks):
    seen, repeats = [], 0
    for rank in range(ranks):
        sampler = DistributedSampler(range(total), ranks, rank, shuffle=False)
        indices = torch.tensor(list(sampler))
        positions = torch.cat(
            [example_positions(sampler, s, len(c)) for s, c in enumerate_chunks(indices, 7)]
        )
        kept = positions >= 0
        assert torch.equal(indices[kept], positions[kept])
        seen.append(positions[kept])
        repeats += int((~kept).sum())
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(total))
    assert repeats == -total % ranks


def enumerate_chunks(indices, size):
    start = 0
    for chunk in indices.split(size):
        yield start, chunk
        start += len(chunk)


PEAK = """
import torch
from pathlib import Path
from firstlight.functional import PerClassCounts
logits, targets = torch.randn(256, 10_000), torch.randint(0, 10_000, (256,))
counts = PerClassCounts(10_000)
counts.update(logits[:1], targets[:1])
def peak():
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 1024
# ru_maxrss would start from the parent's; Linux lets a process reset its own peak.
Path("/proc/self/clear_refs").write_text("5")
before = peak()
for _ in range(200):
    counts.update(logits, targets)
print(peak() - before)
"""


def measured_peak(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_memory_is_linear_in_the_classes():
    assert measured_peak(PEAK) < 50  # MiB; a 10,000 x 10,000 table of int64 is 763
    # Once is enough to see whether the measurement sees what is squared in the classes.
    square = PEAK.replace("counts.update(logits, targets)", "torch.zeros(10_000, 10_000).sum()")
    square = square.replace("range(200)", "range(1)")
    assert measured_peak(square) > 300
