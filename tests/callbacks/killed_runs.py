"""Runs of kill_worker.py, and what must be the same at the end of two of them."""

import subprocess
import sys
from pathlib import Path

import torch

from firstlight.runfolder import RunFolder

WORKER = Path(__file__).parents[1] / "kill_worker.py"


def train(folder, kill_after=0, every=4, ranks=1, mode="monitors", hook="on_train_batch_end"):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), WORKER, folder, str(kill_after),
         str(every), str(ranks), mode, hook],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def rows(folder, table):
    """As text, since NaN differs from itself; without the time that a measurement took."""
    return [str({**row, "seconds": None}) for row in folder.read(table).to_pylist()]


def end_of(path):
    return torch.load(path / "end.pt", weights_only=True)


def finished(path):
    """The run folder of the run that came to its end."""
    runs = [RunFolder.open(run) for run in path.glob("firstlight*")]
    (run,) = [run for run in runs if run.run["status"] == "finished"]
    return run


def assert_same_end(folder, whole, tables):
    assert same(end_of(folder), end_of(whole))
    killed_run, whole_run = finished(folder), finished(whole)
    for table in tables:
        assert rows(killed_run, table) == rows(whole_run, table), table
