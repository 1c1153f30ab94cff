"""``firstlight data pack``: images written to a few large files, which can be streamed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from firstlight.datamodules.base import ImageDataModule
from firstlight.datamodules.chunk_cache import bytes_of, need_litdata
from firstlight.datamodules.chunks import FORMAT, Chunk, ChunkedExamples, checksum
from firstlight.datamodules.image_files import ImageFiles, for_each_file, read_bytes
from firstlight.datamodules.image_files_datamodule import ImageFilesDataModule
from firstlight.datamodules.streamed import PACK, SPLITS, VERSION
from firstlight.functional.seeding import keyed_generator
from firstlight.runfolder import replacing

CHUNK_SIZE = "32MB"
"""Of a chunk file, about: some hundred photographs, loaded from object storage in a second."""

_ORDER = 6  # key, beside those of the cuts in splits.py and subsets.py
_AT_ONCE = 64  # files in memory while they are written


def data_pack(
    data: "ImageDataModule[Any]", output: str | Path, chunk_size: int | str = CHUNK_SIZE
) -> Path:
    """Write the splits of a DataModule of image files, for `StreamedDataModule`.

    ``output`` gets a folder of litdata chunks for each split, whose items are the file's untouched
    bytes, target, number, path and checksum; and last of all ``pack.json``. Training examples are
    written in a random order keyed by the seed, so that every chunk is a random sample of them: to
    read them chunk by chunk then does no harm. The probe is a split of its own.

    Args:
        data: set up here, every file decoded once; its ``on_bad_image`` says what about bad ones.
        output: a folder that does not exist, or is empty.
        chunk_size: of a chunk file, about.

    Returns:
        The path of ``pack.json``.

    Raises:
        ValueError: for data that are no image files, bad images by name, or a folder in use.
        OSError: if a file cannot be read or written.
        ImportError: without litdata.
    """
    need_litdata()
    if not isinstance(data, ImageFilesDataModule):
        raise ValueError(
            f"{type(data).__name__} reads no image files: pack a folder, a manifest, or a "
            "DataModule of image files"
        )
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new folder, or remove what is in it")
    data.verify = True
    data.setup("fit")
    splits = data._ready
    parts = {name: getattr(splits, name) for name in SPLITS}
    order = torch.randperm(len(splits.train), generator=keyed_generator(data.seed, _ORDER))
    parts["train"] = splits.train.subset(order)
    written: dict[str, dict[str, Any]] = {}
    for name, images in parts.items():
        if name == "test" and images is not None and images is parts["val"]:  # protocol legacy
            written[name] = written["val"]
        elif images is not None and len(images):
            written[name] = _write(name, images, folder / name, bytes_of(chunk_size))
    layout = json.dumps([splits.fingerprint, written["train"]["chunks"]])
    pack = {
        "version": VERSION,
        "class_names": data.class_names,
        "class_ids": data.class_ids,
        "full_class_counts": splits.full_class_counts,
        "fingerprint": hashlib.sha256(layout.encode()).hexdigest(),
        "seed": data.seed,
        "protocol": data.protocol,
        "notes": splits.notes,
        "splits": written,
    }
    with replacing(folder / PACK) as temporary:
        temporary.write_text(json.dumps(pack), encoding="utf-8")
    rank_zero_info(f"Packed {', '.join(f'{n} {len(p)}' for n, p in parts.items() if p)}: {folder}")
    return folder / PACK


def _write(name: str, images: ImageFiles, folder: Path, chunk_bytes: int) -> dict[str, Any]:
    """Write a split; return what ``pack.json`` says of it."""
    from litdata.streaming import Cache

    try:
        folder.mkdir(parents=True)
        writer = Cache(str(folder), chunk_bytes=chunk_bytes)
        contents = for_each_file(read_bytes, images.paths, f"Packing {name}", _AT_ONCE)
        rows = zip(contents, images.targets, images.paths, strict=True)
        for number, (content, target, path) in enumerate(rows):
            title = os.fsencode(path)
            kept = checksum(content, target, number, title)
            writer[number] = (content, target, number, title, kept)
        writer.done()
        writer.merge()
        index = json.loads((folder / "index.json").read_text())
    except OSError as error:
        where = f"could not pack {name} to {folder}"
        raise OSError(f"{where} ({error}): remove the folder before packing again") from error
    if index["config"]["data_format"] != FORMAT or index["config"]["compression"] is not None:
        raise ValueError(f"this litdata writes {index['config']}, which firstlight cannot read")
    chunks = [Chunk(c["filename"], c["chunk_size"], c["chunk_bytes"]) for c in index["chunks"]]
    written = ChunkedExamples(str(folder), chunks, images.targets, None)
    for end in written.ends.tolist():
        written[end - 1]  # raises where it cannot be read back
    return {"folder": name, "chunks": chunks, "targets": images.targets}
