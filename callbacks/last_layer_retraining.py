"""LastLayerRetraining: after a fit, a last layer that serves the classes the data starved."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.extraction import Features, extract, missing_classes
from firstlight.callbacks.labelled_sets import (
    LabelledSet,
    Source,
    check_source,
    find_set,
    number_of_batches,
    validation_sets,
)
from firstlight.callbacks.linear_head import Head, check_head
from firstlight.callbacks.probe_report import progress
from firstlight.callbacks.records import RunRecords, Voice, log_scalars, say
from firstlight.callbacks.retrained_checkpoint import (
    checkpoint_of,
    keep_head,
    retrained_path,
    start_from,
)
from firstlight.callbacks.retraining import (
    BEFORE,
    DEFAULT_RULES,
    USUAL_RIDGE,
    NotRetrainedError,
    Retraining,
    Ridge,
    by_measure,
    check_ridge_choice,
    check_rules,
    fit_and_compare,
    outcomes,
)
from firstlight.callbacks.retraining_report import show_comparison
from firstlight.callbacks.strategies import refuse_sharded
from firstlight.functional.class_weights import name_classes

WHO = "LastLayerRetraining"


class LastLayerRetraining(Callback):
    """Fits the last linear layer anew at the end of a fit, and says which classes gained and paid.

    Each rule of ``rules`` gives a head; all are compared with the one that is there: worst class,
    mean over classes, accuracy, calibration error and Brier score, on validation data. The head of
    ``rule`` is then put into the module, and written to ``<checkpoint>-retrained.ckpt`` beside the
    last (or best) checkpoint, with the old head under the key ``last_layer_retraining``.

    Nothing but the head changes, and that only when the fit has ended and its checkpoints are
    written. Cost: a forward pass over the data to fit to and one over the validation data, and
    ``4 N d`` bytes for their features, in a file of the run folder that goes by itself where that
    is more than a quarter of the free memory (logistic rules then still standardise one copy in
    memory; rules of squared loss need none); the fits take seconds. Under DDP every rank takes its
    share, and the heads are those of one process.

    The last layer is the ``torch.nn.Linear`` whose output is the logits; heads of another kind are
    refused by name when training starts.

    Args:
        rule: which head is kept, a name of `firstlight.functional.RULES`; None: compare only.
        rules: those that are fitted.
        data: ``"holdout"`` (the DataModule's ``holdout_dataloader()``), ``"val"`` or ``"train"``.
        ridge: of the fits; see `firstlight.functional.retrain_last_layer`. ``"loo"``: of rules of
            squared loss that of least leave-one-out error, of logistic ones .01.
        every_n_epochs: also compare every n epochs, changing nothing; None: at the end only.
        ckpt_path: the weights to start from, ``"last"`` (those that training ended with) or
            ``"best"`` (ModelCheckpoint's; the module then has them, with the new head).
        class_names: one a class; otherwise from the data module or the data set.
        name: tells two instances of one trainer apart; added to keys and files.
        run_dir: the run folder, by default ``<trainer.log_dir>/firstlight``.
        adapter: ``(pl_module, batch) -> (inputs, targets, forward)`` for unusual batches.

    Raises:
        ValueError: on a bad argument; in ``setup``, where there is no hold-out or no checkpoint
            to start from; when training starts, on a class without examples to fit to, where the
            data set tells, or is small enough to be read. Found at the end only, such a class is
            warned of, and the head stays as it was.
        HeadError: when training starts, on a head that is no linear layer with a bias.
        BatchError: when training starts, on batches that are no classifier's.
    """

    def __init__(
        self,
        rule: str | None = "logit_adjustment",
        rules: Iterable[str] = DEFAULT_RULES,
        data: Source = "holdout",
        ridge: Ridge = USUAL_RIDGE,
        every_n_epochs: int | None = None,
        ckpt_path: Literal["last", "best"] = "last",
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.rules = check_rules(rule, rules)
        check_source(data)
        check_ridge_choice(ridge)
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, or None, not {every_n_epochs}")
        if ckpt_path not in ("last", "best"):
            raise ValueError(f"ckpt_path must be 'last' or 'best', not {ckpt_path!r}")
        self.rule, self.data, self.ridge = rule, data, ridge
        self.every_n_epochs, self.ckpt_path = every_n_epochs, ckpt_path
        self.class_names, self.name, self.adapter = class_names, name, adapter
        self.records = RunRecords(run_dir)
        self._head: Head | None = None
        self._say = Voice(WHO)
        self.result: Retraining | None = None

    @property
    def state_key(self) -> str:
        """Unique per configuration, so that two can run together."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """The run folder."""
        return self.records.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the checkpoint's run folder."""
        self.records.load_state_dict(state_dict)

    # ---------------------------------------------------------------- before

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, before training."""
        if stage != "fit":
            return
        self.records.start()
        self._head, self.result = None, None
        self._say.forget()
        refuse_sharded(trainer, WHO, "Retrain afterwards: firstlight retrain-last-layer CKPT")
        if self.data == "holdout":
            find_set(trainer, "holdout", WHO)
        if self.ckpt_path == "best" and trainer.checkpoint_callback is None:
            raise ValueError(
                f"{WHO} starts from the best checkpoint, but the trainer keeps none: add a "
                "ModelCheckpoint(monitor=...), or take ckpt_path='last'"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Announce the cost; find the head."""
        self.records.open(trainer, pl_module)
        self.records.mark("running")
        done = "nothing is changed" if self.rule is None else f"the head of {self.rule!r} is kept"
        when = "when the fit ends"
        if self.every_n_epochs is not None:
            when = f"every {self.every_n_epochs} epochs (changing nothing) and {when}"
        self._say(
            trainer,
            f" fits the last layer by {', '.join(self.rules)} {when}; {done}. Each time costs "
            f"a forward pass over the data to fit to ({self.data}) and one over the validation "
            "data.",
            sep="",
        )
        if self.data != "val" or trainer.val_dataloaders is not None:
            self._check(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the head where validation data were not known before."""
        if self._head is None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check(trainer, pl_module)

    def _check(self, trainer: Any, pl_module: Any) -> Head:
        found = find_set(trainer, self.data, WHO)
        how = trainer.strategy.batch_to_device, WHO, self.adapter
        self._head = head = check_head(pl_module, found.loader, *how)
        missing = missing_classes(pl_module, head, found, *how)
        if missing:
            raise NotRetrainedError(
                f"{WHO}: {name_classes(missing)} no examples in {found.name}: cut it so that every "
                "class keeps one, or choose other data"
            )
        self._say(
            trainer,
            f"the last layer is {head.name!r}, {head.width} features to {head.num_classes} "
            f"classes, to be fitted to {found.name}.",
        )
        unknown = (
            f"which classes are in {found.name} is not known before they are read; if one is "
            "missing then, the head stays as it was."
        )
        for note in (*found.notes, *([unknown] if missing is None else [])):
            self._say(trainer, note)
        return head

    # ---------------------------------------------------------------- during

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare, where this epoch is one of those asked for; nothing changes."""
        every = self.every_n_epochs
        if every is None or (trainer.current_epoch + 1) % every or trainer.fast_dev_run:
            return
        try:
            found = self._retrain(trainer, pl_module)
        except NotRetrainedError as error:
            self._say(trainer, f"there is nothing to compare: {error}.")
            return
        self._record(trainer, found, applied=None)
        best = max(found.heads.heads, key=lambda rule: found.scores[rule].macro, default=BEFORE)
        say(
            trainer,
            f"{WHO}, epoch {trainer.current_epoch}: mean over classes "
            f"{100 * found.scores[BEFORE].macro:.1f} % with the head as it is, "
            f"{100 * found.scores[best].macro:.1f} % by {best}.",
        )

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Fit, compare, print; put the chosen head in, and write the checkpoint. Collective."""
        if trainer.fast_dev_run:
            return
        self.records.open(trainer, pl_module)  # a fit that was finished already did not start
        home = pl_module.device  # Lightning has moved the module to the CPU by now
        try:
            started = start_from(trainer, pl_module, self.ckpt_path)
            pl_module.to(trainer.strategy.root_device)
            self.result = found = self._retrain(trainer, pl_module)
        except NotRetrainedError as error:
            self._leave(trainer, str(error))
        else:
            pl_module.to(home)
            self._finish(trainer, pl_module, found, started)
        finally:
            pl_module.to(home)
        self.records.mark("finished")

    def _leave(self, trainer: Any, why: str) -> None:
        """Say that nothing came of it; what was trained is there all the same."""
        self._event(trainer, [f"the head stays as it was, since {why}"])
        if trainer.is_global_zero:
            warnings.warn(
                f"{WHO}: the head stays as it was, since {why}. The checkpoints of training are "
                "there: firstlight retrain-last-layer CKPT fits them to other data",
                stacklevel=2,
            )

    def _retrain(self, trainer: Any, pl_module: Any) -> Retraining:
        head = self._head or self._check(trainer, pl_module)
        fit_to = find_set(trainer, self.data, WHO)
        fitted = self._features(trainer, pl_module, head, fit_to)
        val = validation_sets(trainer)
        if not val or self.data == "val":
            self._say(
                trainer,
                "the heads are compared on the data that they are fitted to "
                f"({fit_to.name}), which flatters them; what is before is not flattered.",
            )
            evaluated = fitted
        else:
            found = LabelledSet("val", val[0][1], "the validation data")
            evaluated = self._features(trainer, pl_module, head, found)
        return fit_and_compare(pl_module, head, fitted, evaluated, self.rules, self.ridge)

    def _features(self, trainer: Any, pl_module: Any, head: Head, source: LabelledSet) -> Features:
        batches = number_of_batches(source.loader) or 0
        with progress(trainer, f"features of {source.name}", batches) as tick:
            found = extract(
                pl_module, head, source.loader, trainer.strategy.batch_to_device, WHO,
                self.adapter, self._folder(trainer), tick,
            )  # fmt: skip
        if found.note:
            self._say(trainer, f"features of {source.name}, {found.note}.")
        return found

    def _folder(self, trainer: Any) -> Path:
        """The run folder, which the first rank knows. Collective."""
        run = self.records.folder.path if self.records.folder is not None else None
        return Path(trainer.strategy.broadcast(str(run)))

    # ----------------------------------------------------------------- after

    def _record(self, trainer: Any, found: Retraining, applied: str | None) -> None:
        end = "" if self.name is None else f"/{self.name}"
        scalars = by_measure(found.scores)
        log_scalars(trainer, {f"retrain{end}/{key}": value for key, value in scalars.items()})
        self.records.scored(trainer, found.scores, f"retrain{end}")
        self._event(trainer, outcomes(found, applied))

    def _event(self, trainer: Any, reasons: list[str]) -> None:
        name, size = (self._head.name, self._head.size) if self._head else ("", None)
        split = "retrain" if self.name is None else f"retrain-{self.name}"
        self.records.event(trainer, "retrain", [name] * len(reasons), reasons, size, split)

    def _show(self, trainer: Any, found: Retraining, rule: str | None) -> None:
        for note in found.notes:
            self._say(trainer, note)
        if not trainer.is_global_zero:
            return
        same = self.data == "val" or not validation_sets(trainer)
        where = "the data fitted to" if same else "validation data"
        fell = show_comparison(
            trainer, f"Last layer, fitted to {found.fitted:,} examples; on {where}", found.scores,
            BEFORE, rule, by_class=f"{rule}, by class", class_names=self.class_names,
            undefined=found.heads.undefined,
        )  # fmt: skip
        if fell:
            say(trainer, fell)

    def _finish(self, trainer: Any, pl_module: Any, found: Retraining, started: str) -> None:
        rule = self.rule if self.rule in found.heads.heads else None
        self._record(trainer, found, applied=rule)
        self._show(trainer, found, rule)
        if rule is None:
            if self.rule is not None:
                why = found.heads.undefined[self.rule]
                say(trainer, f"{WHO}: the head stays as it was, since {self.rule} is {why}.")
            return
        named = checkpoint_of(trainer, self.ckpt_path, self._folder(trainer))
        path, new = retrained_path(named, self.name), found.heads.heads[rule]
        done = keep_head(trainer, pl_module, found.head, new, self.data, started, path)
        say(trainer, f"{WHO} {done}")
