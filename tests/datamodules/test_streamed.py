import importlib.util
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

pytest.importorskip("litdata", reason="the extra 'streaming' is not installed")

from firstlight.data import data_check, data_pack
from firstlight.datamodules import Corrupted, ImageFolderDataModule, StreamedDataModule
from firstlight.datamodules.chunk_cache import ChunkCache, bytes_of
from firstlight.datamodules.chunks import ChunkedExamples
from firstlight.datamodules.image_files import ImageFiles, LabelledFiles
from firstlight.datamodules.samplers import MIXED, ChunkSampler, chunk_order
from firstlight.functional.seeding import keyed_generator

SCRIPT = Path(__file__).with_name("resume_script.py")
spec = importlib.util.spec_from_file_location("resume_script", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

DAMAGES = ("cut", "gone", "changed", "header", "emptied")
HOW = {"img_size": 8, "batch_size": 5, "seed": 3, "num_workers": 0, "erasing": 0.5}


@pytest.fixture
def source(folder_root):
    return ImageFolderDataModule(str(folder_root), probe_size=9, **HOW)


@pytest.fixture
def pack(source, tmp_path):
    """39 training images less the hold-out, in about twelve chunks."""
    data_pack(source, tmp_path / "pack", chunk_size="3KB")
    return tmp_path / "pack"


@pytest.fixture
def make(pack, tmp_path):
    """A function to a DataModule that is set up, of the pack as it lies or through the cache."""

    def build(remote=False, **changes):
        root = f"local:{pack}" if remote else str(pack)
        data = StreamedDataModule(root, str(tmp_path / "cache"), **HOW | changes)
        data.setup()
        return data

    return build


def chunks_of(folder):
    return sorted(Path(folder).glob("**/train/*.bin"))


def batches(loader):
    return [torch.cat(part) for part in zip(*loader, strict=True)]


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_that_of_the_files(make, source, remote, workers):
    data = make(remote, num_workers=workers)
    for name in ("val", "holdout", "test", "probe"):
        ours, theirs = (batches(getattr(d, f"{name}_dataloader")()) for d in (data, source))
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]), name
    for fact in ("class_names", "class_ids", "class_counts", "full_class_counts", "num_classes"):
        assert getattr(data, fact) == getattr(source, fact), fact
    first = data.summary().splitlines()[0]
    assert first.partition(":")[2] == source.summary().splitlines()[0].partition(":")[2]


def test_litdata_reads_the_untouched_files(pack, source, folder_root):
    from litdata import StreamingDataset

    found = [StreamingDataset(str(pack / "train"))[i] for i in range(len(source._ready.train))]
    files = {bytes(name).decode(): bytes(content) for content, _, _, name, _ in found}
    assert files == {path: Path(path).read_bytes() for path in source._ready.train.paths}
    classes = {bytes(name).decode(): target for _, target, _, name, _ in found}
    train = source._ready.train
    assert classes == dict(zip(train.paths, train.targets, strict=True))
    assert [number for _, _, number, _, _ in found] == list(range(len(found)))


def in_order(pack, source):
    """The training files as `ImageFiles`, in the order in which they were packed."""
    from litdata import StreamingDataset

    found = [StreamingDataset(str(pack / "train"))[i] for i in range(len(source._ready.train))]
    paths = [bytes(item[3]).decode() for item in found]
    return ImageFiles(LabelledFiles(paths, [item[1] for item in found], source.class_names))


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_images_are_augmented_as_the_files_are(make, pack, source, remote, workers):
    """An oracle for augmentations and order: files read by the loader of files, in this order."""
    data = make(remote, num_workers=workers, color_jitter=0.3)
    files = in_order(pack, source)
    loader, reference = data.train_dataloader(), data._train_loader(files)
    before = torch.get_rng_state()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        order = list(loader.sampler)
        reference.dataset.set_epoch(epoch)
        images, targets = batches(loader)
        assert targets.tolist() == [files.targets[i] for i in order]
        for five, rows in zip(images.split(5), torch.tensor(order).split(5), strict=True):
            items = [reference.dataset[i] for i in rows.tolist()]
            (crops, drawn), _ = reference.collate_fn(items)
            assert torch.equal(five, reference.finish(crops, drawn))
        assert sorted(order) == list(range(len(files)))
        orders.append(order)
    assert orders[0] != orders[1]
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_take_stretches_of_one_order():
    sizes = torch.tensor([7, 5, 9] * 12)
    ends = sizes.cumsum(0)
    chunk_of = np.repeat(np.arange(len(sizes)), sizes)
    whole = list(ChunkSampler(ends, 1))
    shares = [list(ChunkSampler(ends, 1, 4, rank)) for rank in range(4)]
    assert [*chain(*shares)] == whole and sorted(whole) == list(range(int(ends[-1])))
    read = [len(set(chunk_of[share])) for share in shares]
    assert sum(read) <= len(sizes) + 3 * MIXED
    window = len(set(chunk_of[whole[:40]]))
    assert 2 < window <= MIXED  # of which several are mixed
    padded = [*chain(*(ChunkSampler(ends, 1, 5, rank) for rank in range(5)))]
    assert padded == whole + whole[: len(padded) - len(whole)] and len(padded) == 255


def test_chunks_are_random_samples(tree, tmp_path):
    """60 to 40 in the data: so in every chunk, within four standard deviations."""
    tree(tmp_path / "t", {"a": 600, "b": 400}, (8, 8))
    source = ImageFolderDataModule(str(tmp_path / "t"), test=0, val=0, holdout=0)
    pack = data_pack(source, tmp_path / "o", "30KB")
    train = json.loads(pack.read_text())["splits"]["train"]
    assert len(train["chunks"]) > 8
    start = 0
    for _, count, _ in train["chunks"]:
        share = np.mean(train["targets"][start : start + count])
        assert abs(share - 0.4) < 4 * (0.24 / count) ** 0.5
        start += count


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    ("workers", "remote"), [(0, False), (2, False), (2, True)], ids=["0", "2", "2 remote"]
)
def test_a_run_killed_at_any_step_resumes_bitwise(make, tmp_path, workers, remote):
    seen = []

    class Seen(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen[-1].append(batch[0].clone())

    def fit(*checkpoint, callbacks=()):
        seen.append([])
        how = {"max_epochs": 2, "make_data": lambda: make(remote, num_workers=workers)}
        return script.fit(tmp_path, *checkpoint, callbacks=[Seen(), *callbacks], **how)

    every_step = script.saver(tmp_path / "c", every_n_train_steps=1)
    whole, trainer = fit(callbacks=[every_step])
    steps = trainer.global_step
    each = torch.cat(seen[0][: steps // 2]).flatten(1)
    assert len(each.unique(dim=0)) == len(each) == len(trainer.datamodule._ready.train)
    checkpoints = sorted((tmp_path / "c").glob("*.ckpt"))
    assert len(checkpoints) == steps >= 10
    for checkpoint in checkpoints if workers == 0 else checkpoints[::3]:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # another machine
        resumed, _ = fit(checkpoint)
        assert script.same(whole, resumed), checkpoint.name
        done = int(checkpoint.stem.partition("=")[2])
        assert len(seen[-1]) == steps - done
        assert all(map(torch.equal, seen[-1], seen[0][done:]))


def test_two_processes_share_the_examples_and_resume_bitwise(pack, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path), f"local:{pack}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"resumed \d+ checkpoints bitwise", done.stdout)


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_next_chunks_are_loaded_meanwhile(make, pack, tmp_path, epoch):
    data = make(True)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    loader.dataset.set_epoch(epoch)
    examples = loader.dataset.sources
    chunk_of = np.searchsorted(examples.ends.numpy(), list(loader.sampler), "right")
    visits = chunk_order(len(examples.chunks), keyed_generator(3, epoch)).tolist()
    assert set(visits[:MIXED]) == set(chunk_of[: sum(c in visits[:MIXED] for c in chunk_of)])
    examples[int(examples.ends[visits[2]]) - 1]
    expected = {examples.chunks[c].file for c in visits[2 : 3 + MIXED]}
    deadline = time.monotonic() + 20
    while {file.name for file in chunks_of(tmp_path / "cache")} != expected:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_small_cache_holds_no_more_than_it_may(make, pack, source, tmp_path, workers):
    total = sum(file.stat().st_size for file in pack.rglob("*.bin"))
    data = make(True, max_cache_size=total // 4, num_workers=workers)
    expected = batches(make().train_dataloader())
    for _ in range(2):
        images, targets = batches(data.train_dataloader())
        assert torch.equal(images, expected[0]) and torch.equal(targets, expected[1])
    kept = list((tmp_path / "cache").rglob("*.bin"))
    assert 0 < sum(file.stat().st_size for file in kept) <= total // 4 + 6000  # two at a time
    assert not list((tmp_path / "cache").rglob(".*"))  # nothing half loaded
    with pytest.raises(ValueError, match="max_cache_size=100 holds no chunk"):
        make(True, max_cache_size=100)


def test_files_are_readable_however_soon_others_make_room(pack, tmp_path):
    """Eight readers in a cache of two files."""
    files = chunks_of(pack)
    limit = 2 * max(file.stat().st_size for file in files)
    cache = ChunkCache(f"local:{pack}", tmp_path / "cache/pack", limit)

    def read(number):
        file = files[number % len(files)]
        descriptor = cache.open(f"train/{file.name}", file.stat().st_size)
        content = os.pread(descriptor, 10**6, 0)
        os.close(descriptor)
        return content == file.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, np.random.default_rng(0).integers(0, 99, 400).tolist()))


def test_images_packed_anew_are_loaded_anew(make, pack, source, tmp_path):
    before = batches(make(True).test_dataloader())[0]
    shutil.rmtree(pack)
    (source.root / "test/ant/000.jpg").write_bytes((source.root / "test/bee/000.jpg").read_bytes())
    source._splits = None
    data_pack(source, pack, chunk_size="4KB")
    assert not torch.equal(batches(make(True).test_dataloader())[0], before)


@pytest.mark.parametrize(
    ("damage", "remote", "workers"),
    [
        *((damage, remote, 0) for damage in DAMAGES for remote in (False, True)),
        ("changed", False, 1),
        ("gone", True, 1),
    ],
)
def test_damaged_chunks_are_named(make, pack, damage, remote, workers):
    file = chunks_of(pack)[-1]
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 1
    if damage == "header":
        content[6] ^= 255
    file.write_bytes({"cut": content[:-100], "emptied": b""}.get(damage, content))
    if damage == "gone":
        file.unlink()
    with pytest.raises((ValueError, OSError), match=f"{file.name}.*(again|complete)"):
        list(make(remote, num_workers=workers).train_dataloader())


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_damage_in_the_cache_is_mended_or_named(make, tmp_path, how):
    expected = batches(make(True).train_dataloader())[0]
    file = chunks_of(tmp_path / "cache")[0]
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content if how == "changed" else content[:-30])
    if how == "changed":
        with pytest.raises(ValueError, match=f"{file.name}.*checksum.*delete it"):
            list(make(True).train_dataloader())
        file.unlink()
    assert torch.equal(batches(make(True).train_dataloader())[0], expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_named(make, tmp_path, workers):
    data = make(True, num_workers=workers)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(OSError, match=r"chunk.*Free space, lower max_cache_size, or give"):
            list(data.train_dataloader())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not chunks_of(tmp_path / "cache")


def test_roots_that_are_no_pack_are_refused(folder_root, pack, tmp_path):
    def setup(root):
        StreamedDataModule(str(root)).setup()

    with pytest.raises(FileNotFoundError, match=f"firstlight data pack {folder_root} OUT"):
        setup(folder_root)
    with pytest.raises(FileNotFoundError, match=r"no pack\.json can be loaded from local:"):
        setup(f"local:{folder_root}")
    with pytest.raises(FileNotFoundError, match="no folder"):
        setup(tmp_path / "nothing")
    with pytest.raises(ValueError, match="begins with s3://"):
        setup("ftp://here/pack")
    told = json.loads((pack / "pack.json").read_text())
    (pack / "pack.json").write_text(json.dumps(told | {"version": 99}))
    with pytest.raises(ValueError, match=r"version 99, and this firstlight reads 1: update"):
        setup(pack)
    (pack / "pack.json").write_text(json.dumps(told)[:-100])
    with pytest.raises(ValueError, match=r"pack\.json is damaged"):
        setup(pack)
    told["splits"]["train"]["targets"].pop()
    (pack / "pack.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="differ in number"):
        setup(pack)
    (pack / "pack.json").unlink()
    with pytest.raises(FileNotFoundError, match="packing was interrupted"):
        setup(pack)


@pytest.mark.parametrize(
    "given",
    [{"val": 0.2}, {"holdout": 0}, {"protocol": "legacy"}, {"sampling": "class_balanced"}],
    ids=lambda given: next(iter(given)),
)
def test_what_packing_settled_is_refused_by_name(given):
    with pytest.raises(ValueError, match=next(iter(given)) + "="):
        StreamedDataModule("anywhere", **given)


def test_other_splits_on_resuming_are_noticed(make, source, pack):
    state = make().state_dict()
    shutil.rmtree(pack)
    data_pack(source, pack, chunk_size="8KB")  # the same images in another order of reading
    with pytest.warns(UserWarning, match="trained on other examples"):
        make().load_state_dict(state)
    assert make().state_dict() != state


def test_prediction_needs_the_names_alone(pack, source):
    data = StreamedDataModule(str(pack))
    data.setup("predict")
    assert data.class_names == source.class_names and data._splits is None


def test_examples_survive_a_pickle_and_slices(make):
    examples = make()._ready.train.sources
    again = pickle.loads(pickle.dumps(examples))
    assert again[3] == examples[3] and again[2:5] == [examples[i] for i in (2, 3, 4)]
    assert isinstance(again, ChunkedExamples) and len(again) == len(examples)


def test_packed_images_are_checked_and_corrupted(make, source, tmp_path):
    data = make(test_sets={"fog": Corrupted("fog")})
    found, expected = (data_check(one, tmp_path / "report") for one in (data, source))
    assert list(map(str, found)) == list(map(str, expected))
    assert len(batches(data.test_dataloader()["fog"])[0]) == len(data._ready.test)


def test_the_whole_runs_without_network_and_reads_without_litdata(source, folder_root, tmp_path):
    code = f"""
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
import firstlight.datamodules as d
from firstlight.data import data_pack
assert "litdata" not in sys.modules
data_pack(d.ImageFolderDataModule({str(folder_root)!r}), {str(tmp_path / "p")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    code = f"""
import sys
sys.modules["litdata"] = None
from firstlight.datamodules import StreamedDataModule
data = StreamedDataModule({str(tmp_path / "p")!r}, num_workers=0)
data.setup()
assert len(list(data.train_dataloader()))
try:
    StreamedDataModule("s3://bucket/pack")
except ImportError as error:
    assert "firstlight[streaming]" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_overfitting_takes_the_same_batches_every_epoch(make, tmp_path):
    how = {"overfit_batches": 2, "max_epochs": 2, "limit_val_batches": 0}
    _, trainer = script.fit(tmp_path, make_data=make, **how)
    assert trainer.global_step == 4
    assert list(trainer.train_dataloader.sampler)[:10] == list(range(10))


@pytest.mark.parametrize(
    ("given", "size"), [("100GB", 10**11), ("2 kb", 2000), (7, 7), ("1.5M", 1_500_000)]
)
def test_sizes(given, size):
    assert bytes_of(given) == size


@pytest.mark.parametrize("given", ["many", "0", "-5GB", "3PB"])
def test_no_sizes(given):
    with pytest.raises(ValueError, match=re.escape(repr(given))):
        bytes_of(given)
