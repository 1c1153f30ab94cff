"""The best strength of every class through ``firstlight compare``."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from simulated_runs import Cell, runs_of, write_runs

from firstlight.compare import compare
from firstlight.functional import ScoredRuns, best_by_chance, best_strengths

CELL = Cell(40, 30, 0.7, 0.10)


def study(root, strengths, replicas=2):
    generator = np.random.default_rng(0)
    chances = [CELL.chances(generator)] * len(strengths)
    arms = [{"arm": f"arm {n}", "factor": "drop", "strength": s} for n, s in enumerate(strengths)]
    runs = runs_of(CELL, chances, replicas, generator)
    return write_runs(root, runs, arms, generator), runs


def line(out):
    rows = pq.ParquetFile(out / "class_effects.parquet").read().to_pylist()
    summary = json.loads((out / "summary.json").read_text())
    of_line = [row for row in rows if row["comparison"].startswith("line over")]
    return of_line, rows, summary["comparisons"][-1]["best_strengths"]


def test_the_table_holds_what_the_functions_say(tmp_path, capsys):
    paths, runs = study(tmp_path / "runs", [0.0, 0.1, 0.5])
    rows, everything, told = line(compare(paths, out=tmp_path / "out", draws=50))
    found, chance = best_strengths(runs), best_by_chance(runs, draws=50)
    strengths = np.array([0.0, 0.1, 0.5])
    for c, row in enumerate(rows):
        assert row["best_strength"] == strengths[found.best[c]].min()
        assert row["best_ties"] == found.best[c].sum()
        assert row["regret"] == pytest.approx(found.regret[c])
        assert row["regret_by_chance"] == pytest.approx(chance.regret[c])
    assert any(row["best_ties"] > 1 for row in rows)
    others = [row for row in everything if row not in rows]
    assert len(others) == 80 and all(row["best_strength"] is None for row in others)
    assert told["classes"] == pytest.approx(found.histogram)
    assert told["by_chance"]["high"] == pytest.approx(chance.high)
    assert told["regret_by_chance"][0] == pytest.approx(chance.mean_regret.mean())
    assert told["p"] == chance.p
    assert told["average_best"] == strengths[found.average_best]
    said = capsys.readouterr().out
    assert (
        f"(if strength did the same to all of them; p = {chance.p:.3f}".replace("0.", ".") in said
    )
    assert "points off their own best; chance alone would make that -" in said


def test_without_draws_no_chance_is_told(tmp_path, capsys):
    paths, _ = study(tmp_path / "runs", [0.0, 0.1, 0.5])
    rows, _, told = line(compare(paths, out=tmp_path / "out", draws=0))
    assert "by_chance" not in told and rows[0]["regret_by_chance"] is None
    assert "Classes by their best strength: 0: " in capsys.readouterr().out


def test_arms_of_one_strength_are_taken_together(tmp_path):
    paths, runs = study(tmp_path / "runs", [0.5, 0.0, 0.5])
    rows, _, told = line(compare(paths, out=tmp_path / "out", draws=20))
    pooled = ScoredRuns(runs.correct, runs.targets, np.array([1, 0, 1])[runs.arms])
    found = best_strengths(pooled)
    assert told["strengths"] == [0.0, 0.5]
    assert told["classes"] == pytest.approx(found.histogram)
    assert [row["regret"] for row in rows] == pytest.approx(found.regret)


def test_two_arms_have_no_best_strength(tmp_path, capsys):
    paths, _ = study(tmp_path / "runs", [0.0, 0.5])
    out = compare(paths, out=tmp_path / "out", draws=20)
    assert not (out / "figures" / "best_strengths.png").exists()
    assert "not counted by their best strength" in capsys.readouterr().out
