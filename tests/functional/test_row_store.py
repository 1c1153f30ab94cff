"""Rows in memory and in a file against torch.cat; when the file begins; what is left of it."""

import sys
from pathlib import Path

import pytest
import torch

from firstlight.functional import row_store
from firstlight.functional.row_store import RowStore, free_memory

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def filled(batches, folder, width=5, **kwargs):
    """The rows, and what is said of a file."""
    with RowStore(width, CPU, folder, **kwargs) as store:
        for batch in batches:
            store.append(batch)
        return store.collected(), store.note


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_come_back_as_they_were(share, kind, monkeypatch, tmp_path):
    monkeypatch.setattr(row_store, "SHARE", share)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 5, generator=generator, dtype=kind) for n in (3, 0, 1, 40)]
    folder = tmp_path / "made"
    found, note = filled([*batches, batches[0].T.contiguous().T], folder)
    assert found.dtype == kind
    assert torch.equal(found, torch.cat([*batches, batches[0]]))
    assert (str(folder) in note) == (share == 0)
    assert not list(tmp_path.glob("*/*"))  # a file without a name


def test_no_rows_are_an_empty_table(monkeypatch, tmp_path):
    monkeypatch.setattr(row_store, "SHARE", 0.0)
    assert filled([torch.empty(0, 5)], tmp_path)[0].shape == (0, 5)


@pytest.mark.parametrize("processes", [1, 4])
def test_the_file_begins_beyond_a_quarter_of_each_process_share(processes, monkeypatch, tmp_path):
    monkeypatch.setattr(row_store, "free_memory", lambda device: 40_000 * processes)
    rows = torch.zeros(500, 5)  # 10,000 bytes
    for more, in_file in ((0, False), (1, True)):
        _, note = filled([rows, torch.zeros(more, 5)], tmp_path, processes=processes)
        assert ("a quarter of the free memory" in note) == in_file


def anonymous():
    """Bytes of this process that are not cached from a file."""
    lines = dict(x.split(":") for x in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) << 10


@linux
def test_rows_in_a_file_are_nowhere_held_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(row_store, "SHARE", 0.0)
    batch, seen = torch.ones(1000, 256), [anonymous()]

    def batches():
        for _ in range(100):
            yield batch
            seen.append(anonymous())

    found, _ = filled(batches(), tmp_path, width=256)
    assert float(found.sum()) == found.numel() == 100 * batch.numel()
    assert max(*seen, anonymous()) - seen[0] < 0.1 * 4 * found.numel()


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(row_store, "SHARE", 0.0)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs a device that is full")
    with full.open("wb", 0) as file:
        monkeypatch.setattr(row_store.tempfile, "TemporaryFile", lambda dir: file)
        with pytest.raises(OSError, match=rf"do not fit into {tmp_path}: .*No space left"):
            filled([torch.ones(3, 5)], tmp_path)


@linux
def test_free_memory_is_what_the_system_says():
    lines = dict(x.split(":") for x in Path("/proc/meminfo").read_text().splitlines())
    system = int(lines["MemAvailable"].split()[0]) * 1024
    found = free_memory(CPU)
    assert 0 < found <= 1.1 * system
    if not row_store._of_control_groups():
        assert found >= 0.9 * system


def test_the_tightest_control_group_counts_and_cached_files_do_not(tmp_path):
    def group(path, limit, current, file):
        path.mkdir(exist_ok=True)
        (path / "memory.max").write_text(f"{limit}\n")
        (path / "memory.current").write_text(f"{current}\n")
        (path / "memory.stat").write_text(f"anon 1\nfile {file}\nkernel 3\n")

    root, own = tmp_path / "cgroup", tmp_path / "own"
    root.mkdir()
    group(root / "job", 1000, 700, 200)
    group(root / "job" / "step", "max", 600, 100)
    group(root / "job" / "step" / "task", 900, 500, 50)
    own.write_text("1:memory:/old\n0::/job/step/task\n")
    assert row_store._of_control_groups(root, own) == [450, 500]
    assert row_store._of_control_groups(root, tmp_path / "none") == []
