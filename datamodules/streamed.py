"""Images packed by ``firstlight data pack``, from a folder or from object storage."""

import json
import os
from collections.abc import Mapping
from copy import copy
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from torch.utils.data import Sampler

from firstlight.datamodules.chunk_cache import (
    REMOTE,
    ChunkCache,
    bytes_of,
    download,
    need_litdata,
)
from firstlight.datamodules.chunks import Chunk, ChunkedExamples
from firstlight.datamodules.decoding import DecodingDataModule
from firstlight.datamodules.image_files import ImageFiles, shared_number
from firstlight.datamodules.preprocessing import IMAGENET_PREPROCESSING
from firstlight.datamodules.samplers import ChunkSampler, chunk_order
from firstlight.datamodules.splits import Sources, Splits
from firstlight.datamodules.tree_index import user_cache
from firstlight.functional.seeding import keyed_generator

PACK = "pack.json"
VERSION = 1  # of what pack.json says, and of the items
SPLITS = ("train", "val", "holdout", "test", "probe")


class PackedImages(ImageFiles):
    """Labelled images of a pack's split; items are as those of `ImageFiles`, which has no paths.

    Args:
        examples: where they are read.
        targets: class numbers.
        classes: names by class number.
    """

    def __init__(self, examples: ChunkedExamples, targets: list[int], classes: list[str]) -> None:
        self.examples, self.targets, self.classes = examples, targets, classes
        self._read, self._seed, self._epoch = None, None, shared_number()

    @property
    def sources(self) -> ChunkedExamples:
        """The encoded images."""
        return self.examples

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch, and with it the order of the chunks, to worker processes too."""
        super().set_epoch(epoch)
        if self._seed is not None:
            order = chunk_order(len(self.examples.chunks), keyed_generator(self._seed, epoch))
            self.examples.announce(order)

    def first(self, count: int) -> "PackedImages":
        """Return the first examples."""
        fewer = copy(self)
        fewer.targets = self.targets[:count]
        return fewer

    def subset(self, index: Tensor) -> "PackedImages":
        """Refuse: what is packed is divided already."""
        raise TypeError("the splits of packed images were cut when they were packed")


class StreamedDataModule(DecodingDataModule):
    """Images in the chunk files that ``firstlight data pack`` wrote, here or in object storage.

    Splits, classes and the examples left out are those of the DataModule that was packed.
    Training examples lie in random order in the chunks. An epoch visits the chunks in an order
    drawn by (seed, epoch) and shuffles the examples of eight of them at a time; each process takes
    a stretch of that order, so that a machine loads its share of the chunks and no more. Order and
    augmentations depend on no worker, and a run killed at any point resumes exactly. Every example
    is compared with a checksum as it is read.

    Args:
        root: folder that was packed to, or where it was copied: ``s3://``, ``gs://``, ``azure://``
            or ``r2://``, loaded by litdata with its credentials (extra ``streaming``).
        cache_dir: where chunks of a remote root are kept; None: in the user's cache folder.
        max_cache_size: what they may take there: bytes, or a number with KB, MB, GB or TB.
        **kwargs: the arguments of `DecodingDataModule` and `ImageDataModule`. ``val``, ``holdout``
            and ``protocol`` were settled by packing, and ``sampling`` is by instance: others are
            refused. ``probe_size`` is at most the number packed.

    Raises:
        ValueError: for arguments that cannot be honoured.
        ImportError: for a remote root without litdata.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str | None = None,
        max_cache_size: int | str = "100GB",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, only in (("val", None), ("holdout", None), ("protocol", "honest")):
            if kwargs.get(name, only) != only:
                raise ValueError(
                    f"{name}={kwargs[name]!r} cannot be honoured: the splits of {root} were cut "
                    f"when it was packed. Leave out {name}, or pack again"
                )
        if self.sampling != "instance":
            raise ValueError(
                f"sampling={self.sampling!r} draws single examples, but packed images are read "
                "chunk by chunk: leave out sampling, or train on the files"
            )
        self.root = str(root)
        self.cache_dir = user_cache() / "streamed" if cache_dir is None else Path(cache_dir)
        self.max_cache_size = bytes_of(max_cache_size)
        self._pack: dict[str, Any] = {}
        if self._remote:
            need_litdata()
        elif "://" in self.root:
            raise ValueError(f"root is a folder or begins with {', '.join(REMOTE)}: {self.root}")
        self._settle_preprocessing(IMAGENET_PREPROCESSING)

    @property
    def _remote(self) -> bool:
        return self.root.startswith(REMOTE)

    @property
    def class_ids(self) -> list[str]:
        """What further test sets may call the classes by, as the DataModule that was packed did."""
        self._ready  # noqa: B018  # raises before setup
        return list(self._pack["class_ids"])

    def _names_for_prediction(self) -> list[str]:
        names: list[str] = self._load()[0]["class_names"]
        return names

    def _load(self) -> tuple[dict[str, Any], str]:
        text = _remote_pack(self.root) if self._remote else _local_pack(Path(self.root))
        try:
            pack = json.loads(text)
            version = pack["version"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.root}/{PACK} is damaged ({error}): copy it again") from error
        if version != VERSION:
            raise ValueError(
                f"{self.root}/{PACK} is of version {version}, and this firstlight reads {VERSION}: "
                "update firstlight, or pack the images again"
            )
        return pack, blake2b(text.encode(), digest_size=8).hexdigest()

    def _read(self) -> Sources[ImageFiles]:
        self._pack, digest = self._load()
        cached = None
        if self._remote:
            cached = ChunkCache(self.root, self.cache_dir / digest, self.max_cache_size)
        sets = {name: self._split(one, cached) for name, one in self._pack["splits"].items()}
        self.protocol = self._pack["protocol"]
        self._sets: dict[str, PackedImages] = sets
        return Sources(sets["train"], sets.get("val"), sets.get("test"), self._pack["notes"])

    def _split(self, one: Mapping[str, Any], cached: ChunkCache | None) -> PackedImages:
        chunks, targets = [Chunk(*chunk) for chunk in one["chunks"]], one["targets"]
        where = one["folder"] if cached else f"{self.root}/{one['folder']}"
        if sum(chunk.examples for chunk in chunks) != len(targets):
            raise ValueError(f"{self.root}/{PACK}: chunks and targets differ in number: {where}")
        largest = max(chunk.size for chunk in chunks)
        if cached and largest > cached.limit:
            raise ValueError(f"max_cache_size={cached.limit} holds no chunk of {largest} bytes")
        examples = ChunkedExamples(where, chunks, targets, cached)
        return PackedImages(examples, targets, self._pack["class_names"])

    def _cut(self, sources: Sources[ImageFiles]) -> Splits[ImageFiles]:
        return Splits(
            train=sources.train,
            val=sources.val,
            holdout=self._sets.get("holdout"),
            test=sources.test,
            probe=self._sets["probe"].first(self.probe_size),
            full_class_counts=self._pack["full_class_counts"],
            fingerprint=self._pack["fingerprint"],
            notes=list(sources.notes),
        )

    def _train_sampler(self, data: ImageFiles) -> Sampler[int]:
        if getattr(self.trainer, "overfit_batches", 0) or not isinstance(data, PackedImages):
            return super()._train_sampler(data)
        how = self.seed, *self._shard, self._epoch_of_run
        return ChunkSampler(data.examples.ends, *how)


def _local_pack(root: Path) -> str:
    try:
        return (root / PACK).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root.absolute()}: give what 'data pack' wrote to")
    if any(root.glob("*/*.bin")):
        raise FileNotFoundError(
            f"{root} has no {PACK}: packing was interrupted, or the copy is not complete. Copy it "
            "again, or remove it and pack again"
        )
    raise FileNotFoundError(
        f"{root} was not packed, it has no {PACK}. Images are packed by: firstlight data pack "
        f"{root} OUT; then root is OUT. ImageFolderDataModule reads them as they are"
    )


def _remote_pack(root: str) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / PACK
        try:
            os.close(download(root, PACK, path))
        except OSError as error:
            raise FileNotFoundError(
                f"no {PACK} can be loaded from {root}: give what 'firstlight data pack' wrote to, "
                f"once it is copied there. {error}"
            ) from error
        return path.read_text(encoding="utf-8")
