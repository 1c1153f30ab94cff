"""Class effects: power and false discoveries beside plain tests, and what a comparison costs.

    python benchmarks/class_effects.py

Every test sees the same simulated runs (`simulated_runs.py`): 1,000 classes of 50 images, accuracy
.76, churn .10; where there are effects, 20 classes lose 10 points and 20 gain as much. Claims are
those of Benjamini-Hochberg at 5 %. The cost is that of ``firstlight compare``, in a process of its
own, on twenty run folders of 50,000 predictions: four arms of five, all bands, figures included.
"""

import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, ttest_ind
from side_by_side import RESULTS, publish
from simulated_runs import Cell, null_runs, runs_of, with_effects, write_runs

from firstlight.functional import ScoredRuns, benjamini_hochberg, class_effects

REPEATS = 40
EQUAL, UNEQUAL = Cell(1000, 50, 0.76, 0.10), Cell(1000, 50, 0.76, 0.10, spread=0.15)
SHOCK = 0.02
Floats = NDArray[np.float64]


def sides_of(runs: ScoredRuns) -> list[Floats]:
    """Accuracies of the two arms, (runs, classes) each."""
    return [runs.accuracy[runs.arms == arm] for arm in (0, 1)]


def welch(runs: ScoredRuns) -> Floats:
    """Test by Welch's t (scipy), class by class; classes where no run differs are not rejected."""
    before, after = sides_of(runs)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, of runs that do not differ
        p = ttest_ind(after, before, equal_var=False).pvalue
    return np.where(np.isfinite(p), p, 1.0)


def two_proportions(runs: ScoredRuns) -> Floats:
    """The pooled z-test of two proportions, which takes each run's images for new ones."""
    before, after = (side.mean(0) for side in sides_of(runs))
    pooled, trials = (before + after) / 2, runs.n * runs.replicas[0]
    error = np.sqrt(np.maximum(2 * pooled * (1 - pooled) / trials, 1e-12))
    return 2 * norm.sf(np.abs(after - before) / error)


TESTS: dict[str, Callable[[ScoredRuns], Floats]] = {
    "moderated t": lambda runs: class_effects(runs).p,
    "moderated t, trend": lambda runs: class_effects(runs, trend=True).p,
    "Welch (scipy)": welch,
    "two proportions": two_proportions,
}


def power(cell: Cell, replicas: int, shock: float) -> dict[str, tuple[float, float, float]]:
    """Power, rate of false discoveries and their standard errors' larger one, by test."""
    generator = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TESTS}
    for _ in range(REPEATS):
        before = cell.chances(generator)
        after, moved = with_effects(cell, before, 0.1, 20, generator)
        runs = runs_of(cell, [before, after], replicas, generator, shock)
        for name, test in TESTS.items():
            said = benjamini_hochberg(test(runs)) < 0.05
            wrong = (said & ~moved).sum() / max(1, said.sum())
            found[name].append((said[moved].mean(), wrong))
    return {
        name: (*np.mean(values, axis=0), max(np.std(values, axis=0)) / np.sqrt(REPEATS))
        for name, values in found.items()
    }


def rejections(replicas: int) -> dict[str, tuple[float, float]]:
    """Without any effect: the rate of p < .05, and claims per comparison of 1,000 classes."""
    generator = np.random.default_rng(1)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TESTS}
    for _ in range(REPEATS):
        runs = null_runs(EQUAL, replicas, generator)
        for name, test in TESTS.items():
            p = test(runs)
            found[name].append(((p < 0.05).mean(), (benjamini_hochberg(p) < 0.05).sum()))
    return {name: tuple(np.mean(values, axis=0)) for name, values in found.items()}


def study(root: Path) -> list[Path]:
    """Twenty run folders: four arms of five, effects that grow with strength."""
    generator = np.random.default_rng(0)
    before = UNEQUAL.chances(generator)
    after, _ = with_effects(UNEQUAL, before, 0.1, 20, generator)
    strengths = (0.0, 0.1, 0.2, 0.4)
    chances = [before + (after - before) * s / strengths[-1] for s in strengths]
    arms = [{"arm": f"jitter {s:g}", "factor": "jitter", "strength": s} for s in strengths]
    return write_runs(root, runs_of(UNEQUAL, chances, 5, generator), arms, generator)


def cost() -> tuple[float, float, float]:
    """Seconds with and without the interpreter's start and imports, and peak MiB, of compare."""
    with TemporaryDirectory() as folder:
        paths = study(Path(folder))
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, __file__, *map(str, paths)],
            capture_output=True, text=True, check=True, cwd=folder,
        )  # fmt: skip
        whole = time.perf_counter() - start
        (figure,) = Path(folder).rglob("jitter_0.4_against_jitter_0.png")
        shutil.copy(figure, RESULTS / "class_effects.png")
    inside, peak = run.stdout.split()[-2:]
    return whole, float(inside), float(peak)


def report_cost(paths: list[str]) -> None:
    """The other end of `cost`."""
    from firstlight.compare import compare

    start = time.perf_counter()
    compare(paths)
    inside = time.perf_counter() - start
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    print(inside, int(line.split()[1]) / 1024)


def main() -> None:
    """Measure and publish."""
    costs = [cost() for _ in range(3)]
    cells = {"equal means": (EQUAL, 0.0), "unequal means": (UNEQUAL, 0.0),
             "unequal, shock .02": (UNEQUAL, SHOCK)}  # fmt: skip
    rows = []
    for name, (cell, shock) in cells.items():
        for replicas in (2, 3, 5):
            row = {"data": name, "runs an arm": str(replicas)}
            for test, (found, wrong, error) in power(cell, replicas, shock).items():
                row[test] = f"{found:.2f} / {wrong:.2f} (± {error:.2f})"
            rows.append(row)
    for replicas in (3, 5):
        row = {"data": "no effect: rate of p < .05 / claims", "runs an arm": str(replicas)}
        for test, (rate, claims) in rejections(replicas).items():
            row[test] = f"{rate:.3f} / {claims:.2f}"
        rows.append(row)
    inside = sorted(one[1] for one in costs)
    publish(
        "class_effects",
        "Finding 40 of 1,000 classes that change by 10 points: power / false discoveries",
        rows,
        f"{REPEATS} repetitions each, all tests on the same runs; ± is the larger standard error "
        "over repetitions. With two runs an arm the moderated test's false discoveries exceed 5 %, "
        "so that `class_effects` gives no q there; the column shows what it would be. The test of "
        "two proportions ignores that both arms see the same images.\n\n"
        "`firstlight compare` on 20 runs (four arms of five) x 50,000 images x 1,000 classes, four "
        f"comparisons with all bands, tables and figures, in a fresh process: {inside[1]:.1f} s "
        f"(three times: {', '.join(f'{one:.1f}' for one in inside)}), "
        f"{min(one[0] for one in costs):.1f} s at best with Python's start and imports; peak "
        f"{max(one[2] for one in costs):.0f} MiB.",
    )


if __name__ == "__main__":
    report_cost(sys.argv[1:]) if len(sys.argv) > 1 else main()
