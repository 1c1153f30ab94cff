"""What all DataModules share: arguments, protocol, names and counts, probe and hold-out."""

from abc import ABC, abstractmethod
from typing import Any, Generic

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Sampler

from firstlight.datamodules.arguments import at_least_one, plain
from firstlight.datamodules.prediction import prediction_loader
from firstlight.datamodules.preparation import PreparedDataModule
from firstlight.datamodules.samplers import (
    Sampling,
    check_sampling,
    class_draw_weights,
    training_order,
)
from firstlight.datamodules.shifts import Setting, Shift, plain_shifts, read_shifts
from firstlight.datamodules.splits import (
    Protocols,
    Sources,
    Splits,
    T,
    class_counts,
    cut_splits,
    slice_fractions,
    warn_of_other_examples,
    warn_of_protocol,
)
from firstlight.datamodules.summary import describe
from firstlight.functional.seeding import resolve_seed


class ImageDataModule(PreparedDataModule, ABC, Generic[T]):
    """Base of the DataModules; arguments that all of them take.

    Each works with any LightningModule, and without a trainer after ``setup("fit")``. Training and
    evaluation batches are ``(images, targets)``: float32 (B, C, H, W), normalised, and int64 (B,).

    Args:
        model_name: a timm model whose pretrained configuration decides image size, crop,
            interpolation, mean and std where these are not given. None: the data set's own.
        img_size: height and width that the network sees.
        crop_pct: share of the resized image that the centre crop keeps in evaluation.
        interpolation: ``bilinear`` or ``bicubic``.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1.
        batch_size: examples per training batch and process.
        eval_batch_size: examples per evaluation batch and process; None: ``batch_size``.
        drop_last: leave out an incomplete last training batch.
        sampling: ``instance``: every training example once an epoch; ``class_balanced`` and
            ``square_root``: as many draws, with replacement, of classes in equal shares or in
            proportion to the root of their size, see `ClassSampler`. The trap: a loss that is
            weighted or shifted by class counts then corrects a second time.
        protocol: ``honest`` selects on a slice of the training data and leaves the test set alone;
            ``legacy`` validates on the test set, as many long-tail papers do.
        val: share of the training data for validation; None: 0.1 (honest), 0 (legacy). Not cut
            where the data has a validation set.
        holdout: share of the training data never trained or selected on; None: as ``val``.
        probe_size: how many training examples ``probe_dataloader()`` holds at most.
        seed: key of splits, order and augmentations; None: the run's (``seed_everything``), or 0.
        num_workers: processes that decode image files.
        predict_dir: folder of images for ``predict``, searched recursively.
        test_sets: further sets to test on beside the data's own, by name: a `Shift`, or its
            ``{"class_path", "init_args"}``. Their metrics have the keys ``test/<name>/...``.

    Raises:
        ValueError: in the constructor, for values that cannot be right.
    """

    def __init__(
        self,
        model_name: str | None = None,
        img_size: int | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        sampling: Sampling = "instance",
        protocol: Protocols = "honest",
        val: float | None = None,
        holdout: float | None = None,
        probe_size: int = 512,
        seed: int | None = None,
        num_workers: int = 2,
        predict_dir: str | None = None,
        test_sets: dict[str, Shift] | None = None,
    ) -> None:
        super().__init__()
        # Lightning refuses to log a model's and a DataModule's values of one name that differ.
        self.save_hyperparameters(logger=False)
        self.seed = resolve_seed(seed)
        # plain values only: a checkpoint that holds a Path does not load with weights_only=True
        self.hparams.update({k: plain(v) for k, v in self.hparams.items()}, seed=self.seed)
        self.test_sets = read_shifts(test_sets or {})
        self.hparams["test_sets"] = plain_shifts(self.test_sets) or None
        self.batch_size = at_least_one("batch_size", batch_size)
        self.eval_batch_size = at_least_one(
            "eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size
        )
        self.probe_size = at_least_one("probe_size", probe_size)
        self.drop_last, self.num_workers, self.predict_dir = drop_last, num_workers, predict_dir
        check_sampling(sampling)
        self.sampling: Sampling = sampling
        self.protocol: Protocols = protocol
        self.val, self.holdout = slice_fractions(protocol, val, holdout)
        self._backbone = model_name
        self._explicit = {
            "img_size": img_size,
            "crop_pct": crop_pct,
            "interpolation": interpolation,
            "mean": mean,
            "std": std,
        }
        self._class_names: list[str] | None = None
        self._splits: Splits[T] | None = None

    @abstractmethod
    def _read(self) -> Sources[T]:
        """Find or read the examples, the published construction included."""

    @abstractmethod
    def _names_for_prediction(self) -> list[str] | None:
        """Class names as far as they are known without reading examples."""

    @abstractmethod
    def _train_loader(self, data: T) -> Any:
        """Return the loader of augmented, shuffled batches."""

    @abstractmethod
    def _eval_loader(self, data: T, shared: bool = True) -> Any:
        """Return the loader of unaugmented batches in fixed order, of this rank's share or all."""

    def setup(self, stage: str | None = None) -> None:
        """Read the data and cut the splits, once, whatever the stage.

        The stage ``predict`` needs no training data and reads none.

        Raises:
            FileNotFoundError: for missing data, naming the layouts that are understood.
            ValueError: for data that cannot be right, naming the file or value.
        """
        if self._splits is not None:
            return
        if stage == "predict":
            self._class_names = self._names_for_prediction()
            return
        for shift in self.test_sets.values():
            shift.check()
        self._splits = self._cut(self._read())
        self._class_names = list(self._splits.train.classes)
        warn_of_protocol(self.protocol)
        rank_zero_info(self.summary())

    def _cut(self, sources: Sources[T]) -> Splits[T]:
        shares = self.val, self.holdout
        return cut_splits(sources, self.protocol, *shares, self.seed, self.probe_size)

    @property
    def _ready(self) -> Splits[T]:
        if self._splits is None:
            raise RuntimeError(f"{type(self).__name__}: call setup('fit') first")
        return self._splits

    @property
    def parts(self) -> dict[str, T]:
        """The data sets of the run by name: train and, where there are, val, holdout and test."""
        parts = {name: getattr(self._ready, name) for name in ("train", "val", "holdout", "test")}
        return {name: data for name, data in parts.items() if data is not None}

    @property
    def class_names(self) -> list[str]:
        """Names by class number."""
        if self._class_names is None:
            return list(self._ready.train.classes)
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_ids(self) -> list[str]:
        """What further test sets may call the classes by (ImageNet: wnids), by class number."""
        return self.class_names

    @property
    def class_counts(self) -> list[int]:
        """Examples per class trained on."""
        return class_counts(self._ready.train.targets, self.num_classes)

    @property
    def full_class_counts(self) -> list[int]:
        """Training examples per class before validation and hold-out were cut: for shot groups."""
        return list(self._ready.full_class_counts)

    @property
    def sampling_weights(self) -> list[float] | None:
        """How often an example of each class is drawn, up to scale; None: every one once."""
        return class_draw_weights(self.sampling, self.class_counts)

    def train_dataloader(self) -> Any:
        """Batches to train on, augmented and shuffled."""
        return self._train_loader(self._ready.train)

    def plain_train_dataloader(self) -> Any:
        """The training examples unaugmented, in fixed order: for what is measured on them."""
        return self._eval_loader(self._ready.train)

    def val_dataloader(self) -> Any:
        """Batches for selection; no loader at all where there is no validation set."""
        return [] if self._ready.val is None else self._eval_loader(self._ready.val)

    def test_dataloader(self) -> Any:
        """Batches to report on: one loader, or with ``test_sets`` a mapping that begins with it.

        Raises:
            FileNotFoundError: for a further test set that is not there.
            ValueError: if the data has no test set, or a further one does not fit the data.
        """
        if self._ready.test is None:
            raise ValueError(
                f"{type(self).__name__} has no test set: add a folder (or a manifest split) "
                "'test', or have one cut from data without splits (test=0.1)"
            )
        own = self._eval_loader(self._ready.test)
        if not self.test_sets:
            return own
        setting = Setting(
            self._ready.test,
            self.class_names,
            self.class_ids,
            self.preprocessing,
            self.eval_batch_size,
            self.num_workers,
            self._device,
            self._shard,
            self.seed,
        )
        return {"test": own} | {name: s.loader(setting) for name, s in self.test_sets.items()}

    def holdout_dataloader(self) -> Any:
        """Unaugmented batches of training examples that are neither trained nor selected on.

        Raises:
            ValueError: if nothing is held out.
        """
        if self._ready.holdout is None:
            raise ValueError(
                f"{type(self).__name__} holds nothing out: pass holdout=0.1 (a tenth of the "
                "training data, stratified) before training"
            )
        return self._eval_loader(self._ready.holdout)

    def probe_dataloader(self) -> Any:
        """Unaugmented batches of a fixed random part of the training examples, in random order.

        Every rank gets all of them: who measures deals them out himself.
        """
        return self._eval_loader(self._ready.probe, shared=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches ``(images, number)`` of all images under ``predict_dir``.

        ``dataset.paths[number]`` is the file.

        Raises:
            ValueError: without ``predict_dir``.
            FileNotFoundError: if it does not exist or holds no image.
        """
        return prediction_loader(
            self.predict_dir, self.preprocessing, self.eval_batch_size, self.num_workers
        )

    def summary(self) -> str:
        """What is trained, selected and tested on, and how images are prepared, in a few lines."""
        return describe(
            type(self).__name__,
            self._ready,
            self.preprocessing,
            self._sources,
            f"protocol {self.protocol}, seed {self.seed}"
            + ("" if self.sampling == "instance" else f", {self.sampling} sampling"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Seed and fingerprint of the training examples, to notice if they change on resuming."""
        return {"seed": self.seed, "train": self._splits.fingerprint if self._splits else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the checkpoint was trained on other examples: they may be in val or test now."""
        if self._splits is not None and len(self._splits.train):
            warn_of_other_examples(state_dict, self._splits.fingerprint, self.seed)

    def _train_sampler(self, data: T) -> Sampler[int]:
        shuffled = not getattr(self.trainer, "overfit_batches", 0)  # then Lightning wants none
        how = self.seed, *self._shard, self._epoch_of_run
        return training_order(data, self.sampling, shuffled, *how)
