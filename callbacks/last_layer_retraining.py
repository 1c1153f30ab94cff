"""LastLayerRetraining: after a fit, a last layer that serves the classes the data starved."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback

from firstlight.callbacks.batches import Adapter
from firstlight.callbacks.classes import Classes, find_classes
from firstlight.callbacks.labelled_sets import (
    LabelledSet,
    Source,
    check_source,
    find_set,
    missing_classes,
    training_counts,
)
from firstlight.callbacks.linear_head import Features, Head, check_head, extract
from firstlight.callbacks.probe_report import progress
from firstlight.callbacks.records import RunRecords, Voice, log_scalars, say
from firstlight.callbacks.retrained_checkpoint import (
    command_that_tests,
    describe_head,
    retrained_path,
    write_retrained,
)
from firstlight.callbacks.retraining import (
    BEFORE,
    DEFAULT_RULES,
    Retraining,
    by_measure,
    check_rules,
    fit_and_compare,
    put_in,
)
from firstlight.callbacks.retraining_report import show_classes, show_scores, what_falls
from firstlight.callbacks.strategies import refuse_sharded
from firstlight.functional.class_weights import name_classes
from firstlight.functional.loaders import named_sets
from firstlight.functional.retrained_head import check_ridge

WHO = "LastLayerRetraining"


class LastLayerRetraining(Callback):
    """Fits the last linear layer anew at the end of a fit, and says which classes gained and paid.

    Each rule of ``rules`` gives a head; all are compared with the one that is there: worst class,
    mean over classes, accuracy, calibration error and Brier score, on validation data. The head of
    ``rule`` is then put into the module, and written to ``<checkpoint>-retrained.ckpt`` beside the
    last (or best) checkpoint, with the old head under the key ``last_layer_retraining``.

    Nothing but the head changes, and that only when the fit has ended and its checkpoints are
    written. Cost: a forward pass over the data to fit to and one over the validation data, and
    ``4 N d`` bytes for their features; the fits take seconds. Under DDP every rank takes its share,
    and the heads are those of one process.

    The last layer is the ``torch.nn.Linear`` whose output is the logits; heads of another kind are
    refused by name when training starts.

    Args:
        rule: which head is kept, a name of `firstlight.functional.RULES`; None: compare only.
        rules: those that are fitted.
        data: ``"holdout"`` (the DataModule's ``holdout_dataloader()``), ``"val"`` or ``"train"``.
        ridge: of the fits; see `firstlight.functional.retrain_last_layer`.
        every_n_epochs: also compare every n epochs, changing nothing; None: at the end only.
        ckpt_path: the weights to start from, ``"last"`` (those that training ended with) or
            ``"best"`` (ModelCheckpoint's; the module then has them, with the new head).
        class_names: one a class; otherwise from the data module or the data set.
        name: tells two instances of one trainer apart; added to keys and files.
        run_dir: the run folder, by default ``<trainer.log_dir>/firstlight``.
        adapter: ``(pl_module, batch) -> (inputs, targets, forward)`` for unusual batches.

    Raises:
        ValueError: on a bad argument; in ``setup``, where there is no hold-out or no checkpoint
            to start from; when training starts, on a class without examples to fit to, as far as
            the data set tells.
        HeadError: when training starts, on a head that is no linear layer with a bias.
        BatchError: when training starts, on batches that are no classifier's.
    """

    def __init__(
        self,
        rule: str | None = "logit_adjustment",
        rules: Iterable[str] = DEFAULT_RULES,
        data: Source = "holdout",
        ridge: float = 0.01,
        every_n_epochs: int | None = None,
        ckpt_path: Literal["last", "best"] = "last",
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.rules = check_rules(rule, rules)
        check_source(data)
        check_ridge(ridge)
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

    def _check(self, trainer: Any, pl_module: Any) -> None:
        found = find_set(trainer, self.data, WHO)
        move = trainer.strategy.batch_to_device
        self._head = check_head(pl_module, found.loader, move, WHO, self.adapter)
        missing = missing_classes(found, self._head.num_classes)
        if missing:
            raise ValueError(
                f"{WHO}: {name_classes(missing)} no examples in {found.name}: cut it so that every "
                "class keeps one, or choose other data"
            )
        self._say(
            trainer,
            f"the last layer is {self._head.name!r}, {self._head.width} features to "
            f"{self._head.num_classes} classes, to be fitted to {found.name}.",
        )
        for note in found.notes:
            self._say(trainer, note)

    # ---------------------------------------------------------------- during

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare, where this epoch is one of those asked for; nothing changes."""
        every = self.every_n_epochs
        if every is None or (trainer.current_epoch + 1) % every or trainer.fast_dev_run:
            return
        found = self._retrain(trainer, pl_module)
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
        home = pl_module.device  # Lightning has moved the module to the CPU by now
        started = self._start_from(trainer, pl_module)
        pl_module.to(trainer.strategy.root_device)
        try:
            self.result = found = self._retrain(trainer, pl_module)
        finally:
            pl_module.to(home)
        rule = self.rule if self.rule in found.heads.heads else None
        self._record(trainer, found, applied=rule)
        self._show(trainer, found, rule)
        if rule is not None:
            self._keep(trainer, pl_module, found, rule, started)
        elif self.rule is not None:
            say(
                trainer,
                f"{WHO}: the head stays as it was, since {self.rule} is "
                f"{found.heads.undefined[self.rule]}.",
            )
        self.records.mark("finished")

    def _start_from(self, trainer: Any, pl_module: Any) -> str:
        """Take the weights to start from; return what they are."""
        if self.ckpt_path == "last":
            return "the weights that training ended with"
        path = trainer.checkpoint_callback.best_model_path
        if not path:
            raise ValueError(
                f"{WHO} starts from the best checkpoint, but none was written in this run"
            )
        # Of this very run, whatever types the user's module put into it.
        content = torch.load(path, map_location="cpu", weights_only=False)
        pl_module.load_state_dict(content["state_dict"])
        return str(path)

    def _retrain(self, trainer: Any, pl_module: Any) -> Retraining:
        if self._head is None:
            self._check(trainer, pl_module)
        fit_to = find_set(trainer, self.data, WHO)
        fitted = self._features(trainer, pl_module, fit_to)
        val = named_sets("val", trainer.val_dataloaders)
        if not val or self.data == "val":
            self._say(
                trainer,
                "the heads are compared on the data that they are fitted to "
                f"({fit_to.name}), which flatters them; what is before is not flattered.",
            )
            evaluated = fitted
        else:
            found = LabelledSet("val", val[0][1], "the validation data")
            evaluated = self._features(trainer, pl_module, found)
        assert self._head is not None
        return fit_and_compare(pl_module, self._head, fitted, evaluated, self.rules, self.ridge)

    def _features(self, trainer: Any, pl_module: Any, source: LabelledSet) -> Features:
        assert self._head is not None
        batches = len(source.loader) if hasattr(source.loader, "__len__") else 0
        with progress(trainer, f"features of {source.name}", batches) as tick:
            return extract(
                pl_module, self._head, source.loader, trainer.strategy.batch_to_device, WHO,
                self.adapter, tick,
            )  # fmt: skip

    # ----------------------------------------------------------------- after

    def _record(self, trainer: Any, found: Retraining, applied: str | None) -> None:
        end = "" if self.name is None else f"/{self.name}"
        scalars = by_measure(found.scores)
        log_scalars(trainer, {f"retrain{end}/{key}": value for key, value in scalars.items()})
        if self.records.folder is None:
            return
        reasons = {
            rule: f"{rule}: worst {s.worst:.4f}, mean {s.macro:.4f}, all {s.micro:.4f}"
            + (", kept" if rule == applied else "")
            for rule, s in found.scores.items()
        }
        reasons |= {rule: f"{rule}: {why}" for rule, why in found.heads.undefined.items()}
        step, epoch = self.records.place(trainer)
        self.records.folder.write(
            "events",
            {
                "kind": "retrain",
                "block": [found.head.name] * len(reasons),
                "reason": list(reasons.values()),
                "trainable": found.head.num_classes * (found.head.width + 1),
            },
            step=step,
            epoch=epoch,
            split=f"retrain{end}",
        )

    def _classes(self, trainer: Any, found: Retraining) -> Classes:
        return find_classes(trainer, found.head.num_classes, self.class_names, None, (20, 100))

    def _show(self, trainer: Any, found: Retraining, rule: str | None) -> None:
        for note in found.notes:
            self._say(trainer, note)
        if not trainer.is_global_zero:
            return
        classes = self._classes(trainer, found)
        prior = training_counts(trainer, found.head.num_classes)
        where = "the data fitted to" if self.data == "val" else "validation data"
        title = f"Last layer, fitted to {found.fitted:,} examples; on {where}"
        show_scores(
            title, found.scores, classes.names, chosen=rule, undefined=found.heads.undefined,
            prior=prior,
        )  # fmt: skip
        if rule is None:
            return
        before, after = found.scores[BEFORE], found.scores[rule]
        show_classes(f"{rule}, by class", before, after, classes.names, classes.train_counts)
        say(trainer, what_falls(before, after, prior))

    def _keep(
        self, trainer: Any, pl_module: Any, found: Retraining, rule: str, started: str
    ) -> None:
        new = found.heads.heads[rule]
        old = put_in(pl_module, found.head, new)
        told = describe_head(found.head, new, old, self.data, started)
        path = retrained_path(self._checkpoint(trainer), self.name)
        write_retrained(trainer, path, found.head, new, told)
        say(
            trainer,
            f"{WHO} started from {started} and put the head of {rule!r} in; the old one is kept in "
            f"{path}. To test it:\n  {command_that_tests(trainer, pl_module, path)}",
        )

    def _checkpoint(self, trainer: Any) -> Path:
        """The file that the new one is named after."""
        saving = trainer.checkpoint_callback
        best = getattr(saving, "best_model_path", "")
        last = getattr(saving, "last_model_path", "") or best
        if given := best if self.ckpt_path == "best" else last:
            return Path(given)
        run = self.records.folder.path if self.records.folder is not None else None
        return Path(trainer.strategy.broadcast(str(run)), "last.ckpt")
