"""PerClassMonitor: what an evaluation does to every class, in anyone's trainer."""

from collections.abc import Mapping, Sequence
from typing import Any

from firstlight.callbacks.batches import Adapter, LogitsTap
from firstlight.callbacks.class_groups_report import report_groups
from firstlight.callbacks.classes import Classes, check_lengths, dataset_of, find_classes
from firstlight.callbacks.evaluation import Evaluation, agree
from firstlight.callbacks.per_class_report import save_examples, show_worst
from firstlight.callbacks.per_class_tables import (
    write_classes,
    write_counts,
    write_predictions,
    writer,
)
from firstlight.callbacks.records import RunRecords, log_scalars, say
from firstlight.callbacks.shift_report import report_shifts
from firstlight.callbacks.stages import STAGES, Stage, StageCallback, loaders_of
from firstlight.functional import summarise_classes
from firstlight.functional.loaders import named_sets, offered


class PerClassMonitor(StageCallback):
    """Counts, for every class, what an evaluation did to it; changes nothing.

    Each epoch of each stage (and of each loader, where there are several) logs the twelve scalars
    ``<stage>/per_class/`` micro, macro, min, p1, p5, worst_1pct, std, worst_class, absent, many,
    medium, few (see `firstlight.functional.summarise_classes`), and writes the table ``per_class``
    of the run folder, beside what the module logged itself (table ``scalars``). The last epoch's
    predictions, confusions and worst examples are written when fit, validate or test end, with a
    printed table of the worst classes, and of the groups that the data module's ``class_groups``
    puts classes into (the ranks above a species); of several sets of a stage these are the first
    one's, followed by a table of all sets (`firstlight.callbacks.shift_report.report_shifts`).

    Logits are caught on their way through the step's own forward: no second forward pass. Under
    ``DistributedSampler`` padded repeats are not counted. Memory: linear in the classes, and 52
    bytes an example for the predictions of an epoch.

    The stage ``train`` counts while the weights move, on augmented inputs, under soft targets
    against the heaviest class; it writes no predictions.

    Args:
        stages: any of ``"train"``, ``"val"``, ``"test"``.
        class_names: one a class; otherwise from the data module or the data set.
        class_counts: training examples of each class, for the shot groups; otherwise likewise.
        shot_thresholds: few below the first, many above the second.
        predictions_every_n_epochs: also write predictions and confusions every n epochs; None
            writes them once, at the end.
        ignore_index: targets that mean "no label".
        worst: how many of the worst classes are printed and illustrated.
        name: tells two monitors of one trainer apart, which Lightning refuses otherwise; added to
            the splits and keys.
        run_dir: the run folder, by default ``<trainer.log_dir>/firstlight``.
        adapter: ``(pl_module, batch) -> (inputs, targets, forward)`` for unusual batches.
        study: what this run is part of, for ``firstlight compare``, kept in ``run.json``: any of
            ``arm`` (a name that runs of other seeds share), ``factor`` (what the arms differ by)
            and ``strength`` (how much of it, a number).

    Raises:
        ValueError: on a bad argument.
        BatchError: at the first batch (of the sanity check, in a fit) that is no classifier's.
    """

    def __init__(
        self,
        stages: Sequence[Stage] = ("val", "test"),
        class_names: Sequence[str] | None = None,
        class_counts: Sequence[int] | None = None,
        shot_thresholds: tuple[int, int] = (20, 100),
        predictions_every_n_epochs: int | None = None,
        ignore_index: int | None = None,
        worst: int = 10,
        name: str | None = None,
        run_dir: str | None = None,
        adapter: Adapter | None = None,
        study: Mapping[str, str | float] | None = None,
    ) -> None:
        unknown = sorted(set(stages) - set(STAGES))
        if unknown or not stages or isinstance(stages, str):
            raise ValueError(f"stages must be a list of {STAGES}, got {stages!r}")
        if predictions_every_n_epochs is not None and predictions_every_n_epochs < 1:
            raise ValueError(
                f"predictions_every_n_epochs must be at least 1, or None for the last epoch only, "
                f"not {predictions_every_n_epochs}"
            )
        if worst < 1:
            raise ValueError(f"worst must be at least 1, not {worst}")
        few, many = shot_thresholds
        if not 0 < few <= many:
            raise ValueError(f"shot_thresholds must satisfy 0 < few <= many, got {shot_thresholds}")
        self.stages = tuple(stages)
        self.class_names = class_names
        self.class_counts = class_counts
        self.shot_thresholds = (few, many)
        self.predictions_every_n_epochs = predictions_every_n_epochs
        self.ignore_index = ignore_index
        self.worst = worst
        self.name = name
        self.adapter = adapter
        self.records = RunRecords(run_dir, study)
        self._tap: LogitsTap | None = None
        # By stage: a validation runs in the middle of a training epoch.
        self._running: dict[Stage, dict[str, Evaluation]] = {}
        self._finished: dict[str, Evaluation] = {}
        self._classes: Classes | None = None
        self._unfinished: dict[str, Any] = {}
        self._epoch = 0
        self._said: set[str] = set()

    @property
    def state_key(self) -> str:
        """Unique per configuration, so that two monitors can run together."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """The run folder and the unfinished epoch's training counts. Collective."""
        running = self._running.get("train", {})
        unfinished = {split: e.state() for split, e in running.items() if e.metric is not None}
        return {**self.records.state_dict(), "epoch": self._epoch, "train": unfinished}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note the step of the weights, which Lightning does not restore outside a fit."""
        self.records.loaded(checkpoint["global_step"], checkpoint["epoch"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the checkpoint's run folder, with the counts of its unfinished epoch."""
        self.records.load_state_dict(state_dict)
        self._epoch, self._unfinished = state_dict["epoch"], state_dict["train"]

    # What a stage does, whichever it is.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the hooks on; announce what will be measured."""
        self._remove_tap()  # an exception may have kept it on
        self._tap = LogitsTap(pl_module)
        self.records.start()
        self._running, self._finished, self._classes = {}, {}, None
        self._say_once(
            trainer,
            f"PerClassMonitor counts every class in {', '.join(self.stages)}: no extra forward or "
            "backward pass.",
        )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the hooks off."""
        self._remove_tap()

    def _remove_tap(self) -> None:
        if self._tap is not None:
            self._tap.remove()
        self._tap = None

    def start(self, stage: Stage) -> None:
        """Forget the epoch before."""
        self._running[stage] = {}

    def before_batch(self, stage: Stage) -> None:
        """Begin to look."""
        if self._tap is not None and stage in self.stages:
            self._tap.armed = True

    def after_batch(
        self, stage: Stage, trainer: Any, pl_module: Any, batch: Any, index: int
    ) -> None:
        """Count the batch."""
        self._epoch = trainer.current_epoch
        if stage not in self.stages or self._tap is None:
            return
        evaluation = self._evaluation(stage, trainer, index)
        for note in evaluation.update(pl_module, batch, self._tap, self.adapter):
            self._say_once(trainer, f"PerClassMonitor: {note}")
        if evaluation.metric is not None:
            check_lengths(evaluation.metric.num_classes, self.class_names, self.class_counts)

    def _evaluation(self, stage: Stage, trainer: Any, index: int) -> Evaluation:
        split, loader = self._sets(stage, trainer)[index]
        running = self._running.setdefault(stage, {})
        if split not in running:
            width = self._known_width(trainer, loader)
            running[split] = Evaluation(split, loader, width, self.ignore_index, first=index == 0)
        return running[split]

    def _sets(self, stage: Stage, trainer: Any) -> list[tuple[str, Any]]:
        end = "" if self.name is None else f"/{self.name}"
        return [(name + end, one) for name, one in named_sets(stage, loaders_of(trainer, stage))]

    def _known_width(self, trainer: Any, loader: Any) -> int | None:
        if self.class_names is not None:
            return len(self.class_names)
        told: int | None = offered(trainer.datamodule, "num_classes")
        names = getattr(dataset_of(loader), "classes", None)
        return told if told is not None or names is None else len(names)

    def finish(self, stage: Stage, trainer: Any, pl_module: Any) -> None:
        """Sum up, log, write; before checkpoints and early stopping look at the metrics."""
        if stage not in self.stages or trainer.sanity_checking:
            return
        self.records.open(trainer, pl_module)
        for evaluation in agree(self._running.pop(stage, {}), pl_module.device):
            evaluation.finish(*self.records.place(trainer))
            self._finished[evaluation.split] = evaluation
            self._record(trainer, evaluation)
        every = self.predictions_every_n_epochs
        if every is not None and (trainer.current_epoch + 1) % every == 0:
            self._write_predictions(trainer)

    def _record(self, trainer: Any, evaluation: Evaluation) -> None:
        counts = evaluation.result
        classes = self._find_classes(trainer, len(counts["n"]))
        if not counts["n"].any():
            say(trainer, f"PerClassMonitor: no labelled example in {evaluation.split}.")
            return
        summary = summarise_classes(counts, classes.shots)
        prefix = f"{evaluation.split}/per_class"
        log_scalars(trainer, {f"{prefix}/{key}": value for key, value in summary.items()})
        if self.records.folder is not None:
            write_counts(self.records.folder, evaluation)

    def _find_classes(self, trainer: Any, num_classes: int) -> Classes:
        if self._classes is None or len(self._classes.names) != num_classes:
            self._classes = found = find_classes(
                trainer, num_classes, self.class_names, self.class_counts, self.shot_thresholds
            )
            self._say_once(trainer, f"PerClassMonitor: {'; '.join(found.sources)}.")
            if self.records.folder is not None:
                write_classes(self.records.folder, found)
        return self._classes

    def _write_predictions(self, trainer: Any) -> None:
        """Write predictions and confusions of the finished evaluations. Collective."""
        for evaluation in self._finished.values():
            if evaluation.split.split("/")[0] == "train":
                continue
            evaluation.collect()
            if self.records.folder is None or not evaluation.table:
                continue
            write_predictions(self.records.folder, evaluation)
            if not evaluation.in_order:
                self._say_once(
                    trainer,
                    f"PerClassMonitor: {evaluation.split} is not visited in the data set's order, "
                    "so predictions cannot be told apart by index and the table predictions is not "
                    "written. Evaluate with a DataLoader that has shuffle=False to get it.",
                )

    def _end(self, trainer: Any) -> None:
        """Write what the last epoch left, and print the worst classes. Collective."""
        self._write_predictions(trainer)
        for evaluation in self._finished.values():
            if not trainer.is_global_zero or self._classes is None or not evaluation.table:
                continue
            if not evaluation.first:  # of several sets; they are shown side by side
                continue
            show_worst(evaluation, self._classes, self.worst)
            folder = self.records.folder
            write = None if folder is None else writer(folder, evaluation)
            report_groups(evaluation, offered(trainer.datamodule, "class_groups") or {}, write)
            if self.records.folder is not None and evaluation.in_order:
                note = save_examples(
                    self.records.folder.path, evaluation, self.worst, trainer.datamodule
                )
                say(trainer, note) if note else None
        for stage in STAGES[1:]:
            names = [name for name, _ in self._sets(stage, trainer)]
            sets = [self._finished[name] for name in names if name in self._finished]
            if len(sets) > 1 and self._classes is not None:
                report_shifts(trainer, sets, self._classes, self.records)
        self.records.mark("finished")
        if self.records.folder is not None and self._finished:
            say(trainer, f"Per-class tables: {self.records.folder.path}")

    def _say_once(self, trainer: Any, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            say(trainer, message)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Go on counting a checkpoint's unfinished epoch, which has no start of its own.

        A checkpoint of an epoch's last batch resumes in the next epoch, also without a start.
        The run folder is opened before the first checkpoint, which has to know it.
        """
        self.records.open(trainer, pl_module)
        self.records.mark("running")
        unfinished, self._unfinished = self._unfinished, {}
        for state in unfinished.values():
            if self._epoch == trainer.current_epoch:
                self._evaluation("train", trainer, 0).restore(state, trainer.is_global_zero)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Keep what the module logged when the last epoch ended, which is after our hook there."""
        self.records.logged(trainer, "train", trainer.global_step, self._epoch)
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep what the module logged in the last epoch."""
        self.records.logged(trainer, "train", trainer.global_step, self._epoch)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the last epoch's predictions; print the worst classes.

        A fit that a checkpoint resumes with nothing left to do opens its folder here, so that an
        evaluation by the same trainer goes on in it.
        """
        self.records.open(trainer, pl_module)
        self._end(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep what the module logged; after ``trainer.validate`` the rest as at the fit's end."""
        if not trainer.sanity_checking:
            self.records.logged(trainer, "val", *self.records.place(trainer))
        if trainer.state.fn == "validate":
            self._end(trainer)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Likewise, after ``trainer.test``."""
        self.records.logged(trainer, "test", *self.records.place(trainer))
        self._end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the hooks off; say in the run folder that the run did not end by itself."""
        self._remove_tap()
        self.records.mark("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")
