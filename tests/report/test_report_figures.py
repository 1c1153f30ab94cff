"""Figures of comparisons and runs: what they draw against the arrays that were written."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm, rankdata, sem, ttest_ind
from scipy.stats import t as student
from simulated_runs import Cell, null_runs, runs_of, with_effects, write_runs

from firstlight.compare import compare
from firstlight.figures.before_after import ROWS, draw_before_after
from firstlight.figures.best_strengths import draw_best_strengths
from firstlight.figures.class_effects import _tilt, draw_by_accuracy, draw_evidence
from firstlight.figures.class_strengths import _differ, draw_strengths, draw_worst_classes
from firstlight.figures.compared_folder import ComparedFolder
from firstlight.figures.confusions import draw_confusions
from firstlight.figures.evaluations import (
    Classes,
    Counts,
    Pair,
    main_split,
    read_evaluations,
    read_pairs,
)
from firstlight.figures.moved_predictions import draw_confusion_shifts, draw_receiving_classes
from firstlight.figures.per_class import draw_per_class
from firstlight.figures.picture import NothingToDrawError, Picture, label
from firstlight.figures.training_curves import draw_training_curves, read_curves
from firstlight.functional import best_by_chance, best_strengths, confusion_shifts
from firstlight.runfolder import RunFolder

CELL = Cell(200, 20, 0.7, 0.10, spread=0.1)
STRENGTHS = [0.0, 0.5, 2.0]
ARMS = [{"arm": f"s{s:g}", "factor": "s", "strength": s} for s in STRENGTHS]
LAST = "s2 against s0"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    generator = np.random.default_rng(3)
    before = CELL.chances(generator)
    after, _ = with_effects(CELL, before, 0.4, 5, generator)
    runs = runs_of(CELL, [before, (before + after) / 2, after], 4, generator)
    root = tmp_path_factory.mktemp("compared")
    paths = write_runs(root / "runs", runs, ARMS, generator)
    preds = np.stack([RunFolder.open(p).read("predictions")["pred"].to_numpy() for p in paths])
    return ComparedFolder.open(compare(paths, out=root / "out", draws=20)), runs, preds


def numbers(text):
    return [float(one) for one in re.findall(r"[-+]?\d+\.\d+", text)]


def test_small_multiples_hold_the_means_of_their_class(compared):
    folder, runs, _ = compared
    effects = folder.effects("line over s 0 to 2")
    picture = draw_strengths(folder)
    order = np.argsort(effects["shrunk"])
    panels = [axes for axes in picture.figure.axes if axes.lines]
    assert len(panels) == 6
    means = np.stack([runs.accuracy[runs.arms == arm].mean(0) for arm in range(3)])
    for axes, c in zip(panels, [*order[:3], *order[::-1][:3]], strict=True):
        line = next(one for one in axes.lines if one.get_linestyle() == "-")
        np.testing.assert_allclose(line.get_ydata(orig=False), 100 * means[:, c])
        np.testing.assert_allclose(line.get_xdata(orig=False), STRENGTHS)
        assert f"class {c} " in axes.get_title(loc="left")
        (bars,) = axes.containers
        for arm, segment in enumerate(bars[2][0].get_segments()):
            values = 100 * runs.accuracy[runs.arms == arm, c]
            if np.ptp(values):
                interval = student.interval(0.95, 3, values.mean(), sem(values))
                np.testing.assert_allclose(segment[:, 1], interval)
        dashed = next(one for one in axes.lines if one.get_linestyle() == "--")
        np.testing.assert_allclose(dashed.get_ydata(), 100 * means.mean(1))


def test_the_worst_classes_against_strength_are_numpys(compared):
    """Percentiles of numpy over the classes of every run, Welch's test of scipy over runs."""
    folder, runs, _ = compared
    picture = draw_worst_classes(folder)
    accuracy = 100 * runs.accuracy
    expected = {
        "mean over classes": accuracy.mean(1),
        "5th percentile": np.percentile(accuracy, 5, axis=1),
        "mean of the worst 1 %": np.sort(accuracy, 1)[:, :2].mean(1),
        "worst class": accuracy.min(1),
    }
    (axes,) = picture.figure.axes
    drawn = {bars.get_label(): bars.lines[0].get_ydata(orig=False) for bars in axes.containers}
    assert {"mean over classes", "worst class"} <= drawn.keys()
    for name, values in drawn.items():
        if name in expected:
            means = [expected[name][runs.arms == arm].mean() for arm in range(3)]
            np.testing.assert_allclose(values, means, err_msg=name)
    macro = expected["mean over classes"]
    first, last = macro[runs.arms == 0], macro[runs.arms == 2]
    assert numbers(picture.finding)[:2] == pytest.approx([first.mean(), last.mean()], abs=0.05)
    worst = expected["worst class"]
    sure = ttest_ind(worst[runs.arms == 0], worst[runs.arms == 2], equal_var=False).pvalue < 0.05
    said = "more than" if sure else "within what"
    assert picture.finding.endswith(f"({said} seeds explain)")


def test_evidence_is_each_class_s_p(compared):
    folder, _, _ = compared
    effects = folder.effects(LAST)
    (axes,) = draw_evidence(folder, LAST).figure.axes
    dots = axes.lines[0]
    np.testing.assert_allclose(dots.get_xdata(), 100 * effects["effect"])
    np.testing.assert_allclose(10 ** -dots.get_ydata(), effects["p"], rtol=1e-9, atol=1e-16)
    reported = (effects["q"] < 0.05) & (abs(effects["effect"]) >= 0.02)
    marked = sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() in "^v")
    assert marked == reported.sum() >= 8
    assert f"{marked} of 200 classes are reported" in draw_evidence(folder, LAST).finding


def test_accuracy_before_is_the_first_arm_s(compared):
    """The correlation that is said is with the mean of both arms, by numpy on ranks."""
    folder, runs, _ = compared
    picture = draw_by_accuracy(folder, LAST)
    (axes,) = picture.figure.axes
    before, after = (runs.accuracy[runs.arms == arm].mean(0) for arm in (0, 2))
    np.testing.assert_allclose(axes.lines[1].get_xdata(), 100 * before)
    rho = np.corrcoef(rankdata(np.round(before + after, 9)), rankdata(np.round(after - before, 9)))
    assert numbers(picture.finding)[0] == pytest.approx(rho[0, 1], abs=0.006)


def test_the_tilt_is_no_regression_to_the_mean():
    """Without any effect the accuracy before leans against the change; the mean of both does not.

    The sentence's correlation is Pearson's of ranks, and its false alarms are within four standard
    errors of 5 %.
    """
    generator, against_before, alarms, repeats = np.random.default_rng(0), [], 0, 200
    for _ in range(repeats):
        accuracy = null_runs(Cell(100, 20, 0.7, 0.15), 2, generator).accuracy
        before, after = accuracy[:2].mean(0), accuracy[2:].mean(0)
        against_before.append(np.corrcoef(rankdata(before), rankdata(after - before))[0, 1])
        said = _tilt((before + after) / 2, after - before)
        ranks = [rankdata(values.round(9)) for values in (before + after, after - before)]
        rho = np.corrcoef(*ranks)[0, 1]
        assert numbers(said)[0] == pytest.approx(rho, abs=0.006)
        alarms += "fare worse" in said
    assert np.mean(against_before) < -0.2
    assert abs(alarms - 0.05 * repeats) < 4 * np.sqrt(repeats * 0.05 * 0.95)
    assert norm.sf(4) < 1e-4


def test_welch_tells_runs_apart_like_scipy():
    """scipy.stats.ttest_ind; and where no run differs from its arm, means that differ do."""
    generator, said = np.random.default_rng(0), []
    for number in range(60):
        first, second = generator.normal(0, 1, 3), generator.normal(number / 20, 2, 4)
        said.append(_differ(first, second))
        assert said[-1] == (ttest_ind(first, second, equal_var=False).pvalue < 0.05)
    assert 5 < sum(said) < 55
    alike = np.array([0.1 + 0.2, 0.3])
    assert not _differ(alike, alike[::-1]) and _differ(alike, alike + 0.01)


def test_receiving_classes_are_counted_by_hand(compared):
    folder, runs, preds = compared
    picture = draw_receiving_classes(folder, LAST)
    wrong = [np.bincount(row[row != runs.targets], minlength=200) for row in preds]
    growth = np.mean(wrong[8:12], 0) - np.mean(wrong[:4], 0)
    (axes,) = picture.figure.axes
    widths = [bar.get_width() for bar in axes.patches]
    names = [text.get_text() for text in axes.get_yticklabels()]
    for name, width in zip(names, widths, strict=True):
        assert width == pytest.approx(growth[int(name.split()[1])])
    assert sorted(np.abs(widths)) == pytest.approx(sorted(np.sort(np.abs(growth))[-10:]))
    assert f"class {growth.argmax()}" in picture.finding


def test_the_largest_shift_is_counted_by_hand(compared):
    folder, runs, preds = compared
    picture = draw_confusion_shifts(folder, LAST)
    target, pred = (int(one) for one in re.findall(r"class (\d+)", picture.finding))
    of_class = runs.targets == target
    shares = [100 * (preds[rows][:, of_class] == pred).mean() for rows in (slice(4), slice(8, 12))]
    rows = np.isin(runs.arms, (0, 2))
    found = confusion_shifts(preds[rows], runs.targets, runs.arms[rows] // 2)
    interval = [100 * found.low[0], 100 * found.high[0]]
    assert numbers(picture.finding) == pytest.approx([*shares, *interval], abs=0.06)
    (axes,) = picture.figure.axes
    bars = [line.get_xdata() for line in axes.lines if line.get_marker() == "|"]
    assert len(bars) == 10
    first = np.maximum(0, shares[0] + np.array(interval))
    np.testing.assert_allclose(bars[0], first, rtol=1e-6)
    with pytest.raises(NothingToDrawError, match="no confusion of two classes changed"):
        draw_confusion_shifts(folder, "line over s 0 to 2")


def test_best_strengths_are_drawn_over_chance(compared):
    folder, runs, _ = compared
    found, chance = best_strengths(runs), best_by_chance(runs, draws=20)
    picture = draw_best_strengths(folder)
    (axes,) = picture.figure.axes
    (bars,) = axes.containers
    assert [bar.get_height() for bar in bars] == pytest.approx(found.histogram)
    bands = [(one.get_y(), one.get_y() + one.get_height()) for one in axes.patches[3:]]
    assert bands == [pytest.approx(ends) for ends in zip(chance.low, chance.high, strict=True)]
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx(chance.median)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.5", "2"]
    regret = numbers(picture.note)
    expected = [100 * found.regret.mean(), 100 * chance.mean_regret.mean()]
    assert regret[-2:] == pytest.approx(expected, abs=0.06)


def told(classes, low, high, p=0.01):
    chance = {"low": low, "median": low, "high": high}
    found = {"strengths": [0.0, 1.0], "classes": classes, "by_chance": chance, "p": p,
             "average_best": 1.0, "regret": -0.02, "regret_by_chance": [-0.01] * 3}  # fmt: skip
    arms = [{"arm": "a", "factor": "x"}]
    return {"comparisons": [{"best_strengths": found}], "settings": {"level": 0.95}, "arms": arms}


def test_best_strengths_say_what_chance_does_not(tmp_path):
    """More and fewer than the band, all explained together, no draws, no line over strength."""
    more = draw_best_strengths(ComparedFolder(tmp_path, told([30, 70], [10, 80], [20, 90])))
    assert more.finding.startswith("30 of 100 classes are best at 0, more than the 10 to 20")
    fewer = draw_best_strengths(ComparedFolder(tmp_path, told([30, 70], [25, 85], [40, 90])))
    assert fewer.finding.startswith("70 of 100 classes are best at 1, fewer than the 85 to 90")
    inside = draw_best_strengths(ComparedFolder(tmp_path, told([30, 70], [10, 80], [20, 90], 0.06)))
    assert "chance explains that" in inside.finding
    summary = told([30, 70], [], [])
    for key in ("by_chance", "regret_by_chance"):
        del summary["comparisons"][0]["best_strengths"][key]
    without = draw_best_strengths(ComparedFolder(tmp_path, summary))
    assert "no draws say what chance" in without.finding and "by chance alone" not in without.note
    with pytest.raises(NothingToDrawError, match="needs three arms or more"):
        draw_best_strengths(ComparedFolder(tmp_path, {"comparisons": [{}]}))


def test_comparisons_never_share_a_file(compared):
    """Names that differ in what a file's name cannot hold, and long ones."""
    names = ["a/b against x", "a b against x", f"{'y' * 300} against x", f"{'y' * 301} against x"]
    folder = ComparedFolder(compared[0].path, {"comparisons": [{"comparison": n} for n in names]})
    files = [folder.file_name(name, "-evidence") for name in names]
    assert len(set(files)) == 4 and max(map(len, files)) < 150


def test_no_class_receives_more(compared):
    folder, _, _ = compared
    columns = folder.effects(LAST)
    columns["received_after"] = columns["received_before"] - 1 - columns["class"] / 1000

    class Fewer(ComparedFolder):
        def effects(self, comparison):
            return columns

    said = draw_receiving_classes(Fewer(folder.path, folder.summary), LAST).finding
    assert "no class receives more wrong predictions, class 199 fewest of all" in said


# ------------------------------------------------------------------ of a run


def counts(correct, n=10, split="val", step=0, epoch=0):
    correct = np.array(correct, float)
    return Counts(split, step, epoch, np.full(len(correct), float(n)), correct)


def unnamed(number):
    return Classes([f"c{i}" for i in range(number)], None, [None] * number)


def test_before_and_after_of_classes():
    pair = Pair("x", "A change", (counts([10, 2, 5]), "a"), (counts([8, 6, 5]), "b"))
    picture = draw_before_after(pair, unnamed(3))
    assert numbers(picture.finding) == pytest.approx([56.7, 63.3, 20.0, 60.0])
    assert "c1, the worst" in picture.finding and picture.finding.endswith("1 of 3 classes fall")
    (axes,) = picture.figure.axes
    ends = [line.get_xdata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert ends == [[100, 80], [50, 50], [20, 60]]  # by change


def test_of_many_classes_the_ends_are_drawn():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 11, (2, 100))
    pair = Pair("x", "It", (counts(first), "a"), (counts(second), "b"))
    (axes,) = draw_before_after(pair, unnamed(100)).figure.axes
    changes = [np.ptp(line.get_xdata()) * np.sign(line.get_xdata()[1] - line.get_xdata()[0])
               for line in axes.lines if len(line.get_xdata()) == 2]  # fmt: skip
    expected = np.sort(10.0 * (second - first))
    assert len(changes) == ROWS
    np.testing.assert_allclose(np.sort(changes), [*expected[:15], *expected[-15:]])


def evaluated(folder, split, correct, step=10, **more):
    columns = {"class": range(len(correct)), "n": 10, "correct": correct, **more}
    folder.write("per_class", columns, step=step, epoch=step // 10, split=split)


def test_pairs_are_found_in_the_order_of_what_was_done(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    evaluated(folder, "val", [1, 2])
    assert read_pairs(folder, read_evaluations(folder)) == []
    evaluated(folder, "val", [3, 4], step=20)
    (pair,) = read_pairs(folder, read_evaluations(folder))
    assert (pair.before[0].step, pair.after[0].step) == (10, 20) and "epoch 2" in pair.after[1]
    for rule, correct in {"before": [3, 4], "good": [6, 6], "kept_one": [5, 5]}.items():
        evaluated(folder, f"retrain/{rule}", correct, step=20)
    (pair,) = read_pairs(folder, read_evaluations(folder))
    assert pair.after[1] == "good (best mean, not kept)" and pair.after[0].correct.tolist() == [
        6,
        6,
    ]
    reasons = {"kind": ["retrain"], "block": ["fc"], "reason": ["kept_one: mean .5, kept"]}
    folder.write("events", reasons, step=20)
    for split in ("val", "test"):
        evaluated(folder, f"{split}/prior_uncorrected", [3, 3])
        evaluated(folder, f"{split}/prior_corrected", [4, 4])
    retrained, corrected = read_pairs(folder, read_evaluations(folder))
    assert retrained.after[1] == "kept_one (kept)"
    assert corrected.name == "prior_corrected-test"
    assert main_split(read_evaluations(folder)) == "val"
    evaluated(folder, "test/odd", [1, 1])
    assert main_split(read_evaluations(folder)) == "test/odd"


def curves(folder, **series):
    for key, values in series.items():
        for step, value in values.items():
            columns = {"key": [key.replace("__", "/")], "value": [value]}
            folder.write("scalars", columns, step=step, split=key)


def test_curves_come_from_the_scalars_first(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    (tmp_path / "metrics.csv").write_text(
        "step,epoch,train_loss,val_acc\n9,0,2.5,\n9,0,,0.25\n19,1,1.5,\n19,1,,0.75\n"
    )
    found, source = read_curves(folder)
    assert "metrics.csv" in source and found["loss", "training"].values.tolist() == [2.5, 1.5]
    np.testing.assert_allclose(found["accuracy", "validation"].values, [25, 75])
    evaluated(folder, "test", [5, 10], step=20)
    assert read_curves(folder)[0]["accuracy", "test"].values.tolist() == [75]
    curves(folder, train__loss={10: 3.0, 20: 2.0}, val__loss={10: 2.0, 20: 1.0, 30: 1.5},
           val__top1={10: 0.5, 20: 0.8, 30: 0.7})  # fmt: skip
    found, source = read_curves(folder)
    assert "module" in source and found["loss", "training"].values.tolist() == [3, 2]
    said = draw_training_curves(folder).finding
    assert "Validation accuracy ends at 70.0 %, after 80.0 % at step 20" in said
    assert "lowest at step 20 and has risen from 1.00 to 1.50" in said


def test_a_foreign_csv_is_no_curve(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    for text in ("a,b\n1,2\n", "step,loss\nx,1\n", "step,loss\n1,much\n", "\x00"):
        (tmp_path / "metrics.csv").write_text(text)
        with pytest.raises(NothingToDrawError, match="neither loss nor accuracy"):
            draw_training_curves(folder)


@pytest.mark.parametrize("number", [1, 12, 60, 1000])
def test_any_number_of_classes_can_be_drawn(number):
    generator = np.random.default_rng(0)
    trained = np.arange(number, 0, -1.0)
    shots = [("many", "medium", "few")[i % 3] for i in range(number)]
    for classes in (unnamed(number), Classes([f"name {i}" for i in range(number)], trained, shots)):
        drawn = draw_per_class(counts(generator.integers(0, 11, number)), classes)
        assert len(drawn.svg()) < 400_000 and drawn.finding


def test_many_classes_are_dots_by_training_images():
    generator = np.random.default_rng(0)
    correct, trained = generator.integers(0, 11, 500), generator.permutation(500) + 1.0
    classes = Classes([str(i) for i in range(500)], trained, [None] * 500)
    (axes,) = draw_per_class(counts(correct), classes).figure.axes
    *_, dots, line = axes.lines
    order = np.argsort(trained)
    np.testing.assert_allclose(dots.get_xydata(), np.stack([trained, 10 * correct], 1)[order])
    means = 10 * correct[order].reshape(10, 50).mean(1)
    np.testing.assert_allclose(line.get_ydata(), means)


def test_confusions_say_the_first(tmp_path):
    pairs = [("cat", "dog", 30, 0.3), ("owl", "cat", 12, 0.6), ("ox", "cow", 1, 0.01)]
    picture = draw_confusions(pairs, "test/odd")
    assert picture.name == "confusions-test_odd"
    assert picture.finding == "cat is most often taken for dog: 30 images, 30 % of it"
    (axes,) = picture.figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([30, 60, 1])


# ------------------------------------------------------------------ as files and in a page


def some_picture(finding="It $rises"):
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#222222")
    axes.set_xlabel(label("a $x$ <b> & c\x07"))
    return Picture("one.figure", finding, figure)


def test_an_svg_in_a_page_keeps_to_itself(tmp_path):
    picture = some_picture()
    picture.write(tmp_path)
    first = picture.svg()
    assert "rises" not in first, "the title of the file stays out of the page"
    root = ET.fromstring(first)
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert ids and all(one.startswith("one_figure-") for one in ids)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", first)
    assert "a $x$ &lt;b&gt; &amp; c" in first and "\x07" not in first
    assert "currentColor" in first and "#222222" not in first
    assert root.get("width") is None and root.get("viewBox")
    assert "It $rises" in (tmp_path / "one.figure.svg").read_text()


def test_two_lines_of_one_long_title_stay_inside(tmp_path):
    from PIL import Image

    short, long = some_picture("It"), some_picture("It rises and rises " * 10)
    heights = [np.asarray(Image.open(one.write(tmp_path))).shape for one in (short, long)]
    assert heights[0] == heights[1]
