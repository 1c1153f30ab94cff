"""PriorCorrection: a classifier's own prior taken out of its logits, without retraining."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.kept_prior import KeptPrior, diagnosis
from firstlight.callbacks.labelled_sets import (
    Source,
    check_source,
    find_set,
    nearest_loader,
    training_counts,
)
from firstlight.callbacks.logit_shift import LogitShift, check_maker
from firstlight.callbacks.paired_evaluation import PairedWatch
from firstlight.callbacks.records import RunRecords, Voice, log_scalars
from firstlight.callbacks.retraining import by_measure
from firstlight.callbacks.retraining_report import show_comparison
from firstlight.callbacks.stages import Stage, StageCallback, loaders_of
from firstlight.callbacks.strategies import refuse_sharded
from firstlight.callbacks.training_loss import TrainingLoss, as_sampled, read_loss
from firstlight.functional import ClassifierScores, prior_offset
from firstlight.functional.loaders import named_sets

WHO = "PriorCorrection"
BEFORE, AFTER = "as trained", "prior corrected"


class PriorCorrection(StageCallback):
    """Replaces the prior that a classifier learned by another in its logits (Prior2Posterior).

    ``test`` and ``predict`` see logits ``z + o - tau log p + log u``: p is the prior that the
    classifier has, its mean posterior over examples of the training distribution; u the target
    prior; o what the training loss added to the logits, read from the module's ``loss``. See
    `firstlight.functional.prior_offset`. Validation and training see the logits as they are, so
    that checkpoints and early stopping do too: validation gets further keys,
    ``val/prior_corrected/worst|macro|micro|ece|ece_scaled|temperature|brier``.

    p is estimated anew before each validation, and at a test or prediction unless the checkpoint
    holds that of the very same weights. Cost: each time a forward pass over the data it is
    estimated on. The correction is a hook on the module that makes the logits, on it during test
    and predict only.

    Args:
        data: what p is estimated on: ``"holdout"`` (the DataModule's ``holdout_dataloader()``),
            ``"val"`` or ``"train"``. Labels serve class-weighted losses only.
        prior: p itself, (K,), above 0; nothing is estimated then.
        tau: 0 leaves the prior in, 1 takes it out.
        target_prior: u, (K,), above 0; None: uniform.
        offsets: o, (K,), where the loss does not tell.
        class_names: one a class; otherwise from the data module or the data set.
        name: tells two instances of one trainer apart; added to keys and files. Two of them
            correct a test's logits twice.
        run_dir: the run folder, by default ``<trainer.log_dir>/firstlight``.
        adapter: ``(pl_module, batch) -> (inputs, targets, forward)`` for unusual batches.

    Raises:
        ValueError: on a bad argument; in ``setup`` of a fit, where there is no hold-out; when
            training starts, for losses after which no correction is established (LDAM, vector
            scaling, CDT) unless ``offsets`` are given.
        MakerError: when training starts, where no module puts the logits out.
        BatchError: when training starts, on batches that are no classifier's.
    """

    def __init__(
        self,
        data: Source = "holdout",
        prior: Sequence[float] | None = None,
        tau: float = 1.0,
        target_prior: Sequence[float] | None = None,
        offsets: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        check_source(data)
        self.data, self.tau = data, tau
        self.prior, self.target_prior, self.offsets = map(_tensor, (prior, target_prior, offsets))
        given = [one for one in (self.prior, self.target_prior, self.offsets) if one is not None]
        any_prior = torch.ones(len(given[0]) if given else 2) if self.prior is None else self.prior
        self._shift(any_prior, self.offsets)  # refuses what cannot be right
        self.class_names, self.name, self.adapter = class_names, name, adapter
        self.records = RunRecords(run_dir)
        self._say = Voice(WHO)
        self._maker: tuple[str, int] | None = None
        self.effective_prior: Tensor | None = None
        self._kept = KeptPrior()
        self._step = -1
        self._watching: PairedWatch | None = None
        self._hook: LogitShift | None = None
        self._finished: dict[str, tuple[ClassifierScores, ClassifierScores]] = {}

    @property
    def state_key(self) -> str:
        """Unique per configuration, so that two can run together."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """The run folder, the effective prior, and a checksum of the weights that have it."""
        return {
            **self.records.state_dict(),
            "effective_prior": self.effective_prior,
            "weights": self._kept.weights,
            "maker": None if self._maker is None else list(self._maker),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the checkpoint's run folder, with its prior."""
        self.records.load_state_dict(state_dict)
        self.effective_prior = state_dict["effective_prior"]
        self._kept = KeptPrior(self.effective_prior, state_dict["weights"])
        maker = state_dict["maker"]
        self._maker = None if maker is None else (maker[0], maker[1])

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note the step of the weights, which Lightning does not restore outside a fit."""
        self.records.loaded(checkpoint["global_step"], checkpoint["epoch"])

    # ---------------------------------------------------------------- beginnings

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, before anything runs."""
        self._off()
        self.records.start()
        self._say.forget()
        self._finished, self._step = {}, -1
        refuse_sharded(trainer, WHO, "Correct the checkpoint: firstlight correct-prior CKPT")
        if stage == "fit" and self.prior is None and self.data == "holdout":
            find_set(trainer, "holdout", WHO)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Announce the cost; find what makes the logits."""
        self.records.open(trainer, pl_module)
        self.records.mark("running")
        cost = f"each time a forward pass over the data ({self.data}) gives its prior"
        if self.prior is not None:
            cost = "its prior is given: no extra pass"
        self._say(
            trainer,
            f" corrects the logits of test and predict, and adds keys to validation; {cost}.",
            sep="",
        )
        if self.prior is not None or self.data != "val" or trainer.val_dataloaders is not None:
            self._find_maker(trainer, pl_module)
        self._loss(pl_module, trainer)

    def _find_maker(self, trainer: Any, pl_module: Any) -> tuple[str, int]:
        if self._maker is None:
            loader = nearest_loader(trainer) or find_set(trainer, self.data, WHO).loader
            move = trainer.strategy.batch_to_device
            self._maker = check_maker(pl_module, loader, move, WHO, self.adapter)
            name, classes = self._maker
            self._say(trainer, f"logits are the output of {name!r}, {classes} classes.")
        return self._maker

    def _loss(self, pl_module: Any, trainer: Any) -> TrainingLoss:
        found = TrainingLoss(self.offsets, None, "offsets are the argument's.")
        if self.offsets is None:
            found = read_loss(pl_module, WHO)
        found = as_sampled(found, trainer.datamodule)
        self._say(trainer, found.note)
        return found

    # ---------------------------------------------------------------- the prior

    def _prepare(self, trainer: Any, pl_module: Any) -> Tensor:
        """Bring the prior up to these weights; return what to add to the logits. Collective."""
        self.records.open(trainer, pl_module)
        _, classes = self._find_maker(trainer, pl_module)
        loss = self._loss(pl_module, trainer)
        prior = self.prior
        if prior is None:
            prior = self._kept.brought_up(
                trainer, pl_module, classes, self.data, loss, self._say, self.adapter
            )
        self.effective_prior, self._step = prior, trainer.global_step
        return self._shift(prior, loss.offsets)

    def _shift(self, prior: Tensor, offsets: Tensor | None) -> Tensor:
        return prior_offset(prior, offsets=offsets, tau=self.tau, target_prior=self.target_prior)

    # ---------------------------------------------------------------- evaluations

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Estimate the prior of these weights; watch the logits."""
        if trainer.sanity_checking:
            return
        shift = self._prepare(trainer, pl_module)
        self._watch(pl_module, torch.zeros_like(shift), shift)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Estimate the prior where no validation did, for the checkpoints to come."""
        if self._step != trainer.global_step and not trainer.fast_dev_run:
            self._prepare(trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Correct the logits from here on."""
        shift = self._correct(trainer, pl_module)
        self._watch(pl_module, -shift, torch.zeros_like(shift))

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Correct the logits from here on."""
        self._correct(trainer, pl_module)

    def _correct(self, trainer: Any, pl_module: Any) -> Tensor:
        self._off()
        shift = self._prepare(trainer, pl_module)
        name, _ = self._find_maker(trainer, pl_module)
        self._hook = LogitShift(pl_module.get_submodule(name), shift)
        self._say(
            trainer, f"the logits of {name!r} are corrected in this {trainer.state.fn.value}."
        )
        return shift

    def _watch(self, pl_module: Any, before: Tensor, after: Tensor) -> None:
        if self._watching is not None:
            self._watching.remove()
        self._watching = PairedWatch(pl_module, before, after, WHO, self.adapter)

    def before_batch(self, stage: Stage) -> None:
        """Begin to look."""
        if self._watching is not None and stage != "train":
            self._watching.arm()

    def after_batch(
        self, stage: Stage, trainer: Any, pl_module: Any, batch: Any, index: int
    ) -> None:
        """Count the batch twice, as it is and corrected."""
        if self._watching is None or stage == "train":
            return
        split, loader = named_sets(stage, loaders_of(trainer, stage))[index]
        for note in self._watching.update(split, loader, batch):
            self._say(trainer, note)

    def finish(self, stage: Stage, trainer: Any, pl_module: Any) -> None:
        """Sum up, log, write."""
        if self._watching is None or stage == "train":
            return
        found, self._watching = self._watching.finish(), None
        self._finished |= found
        for split, (before, after) in found.items():
            words = {"prior_corrected": after}
            if stage == "test":  # whose own metrics are corrected already
                words["prior_uncorrected"] = before
            end = "" if self.name is None else f"/{self.name}"
            log_scalars(trainer, {f"{split}{end}/{k}": v for k, v in by_measure(words).items()})
            both = {"prior_uncorrected": before, "prior_corrected": after}
            self.records.scored(trainer, both, f"{split}{end}")
        if self._maker is not None:
            self._record(trainer, *self._maker)

    def _record(self, trainer: Any, maker: str, classes: int) -> None:
        said = diagnosis(self.effective_prior, training_counts(trainer, classes))
        reasons = [
            f"{split}: mean {a.macro:.4f} becomes {b.macro:.4f}, all {a.micro:.4f} becomes "
            f"{b.micro:.4f}; {said}"
            for split, (a, b) in self._finished.items()
        ]
        split = "prior" if self.name is None else f"prior-{self.name}"
        self.records.event(trainer, "prior", [maker] * len(reasons), reasons, split=split)

    # ---------------------------------------------------------------- ends

    def _end(self, trainer: Any) -> None:
        """Print the last evaluations before and after."""
        self.records.mark("finished")
        if not self._finished or not trainer.is_global_zero or self._maker is None:
            return
        prior = training_counts(trainer, self._maker[1])
        self._say(trainer, f"the effective prior {diagnosis(self.effective_prior, prior)}.")
        for split, (before, after) in self._finished.items():
            fell = show_comparison(
                trainer, f"Prior correction, {split}", {BEFORE: before, AFTER: after}, BEFORE,
                AFTER, by_class=f"{split}, by class", class_names=self.class_names,
            )  # fmt: skip
            self._say(trainer, f"{split}: {fell}")

    def _off(self) -> None:
        """Take all hooks off."""
        for one in (self._watching, self._hook):
            if one is not None:
                one.remove()
        self._watching = self._hook = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the last validation's table."""
        self._end(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the table, after ``trainer.validate``."""
        if trainer.state.fn == "validate":
            self._end(trainer)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the logits as they are; print the table."""
        self._off()
        self._end(trainer)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the logits as they are."""
        self._off()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take all hooks off."""
        self._off()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take all hooks off; say in the run folder that the run did not end by itself."""
        self._off()
        self.records.mark("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")


def _tensor(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor([float(x) for x in values]).double()
