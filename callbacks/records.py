"""Where a callback's numbers go: loggers, callback metrics, the run folder, the terminal."""

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
import yaml
from rich.console import Console

from firstlight.callbacks.run_identity import describe_run, identify_run
from firstlight.functional import ClassifierScores
from firstlight.functional.ranks import Ranks
from firstlight.functional.seeding import fold_in, keyed_randomness
from firstlight.runfolder import RunFolder, replacing

console = Console(markup=False, emoji=False)  # names are data

_folders: WeakKeyDictionary[Any, dict[str | None, RunFolder]] = WeakKeyDictionary()
"""Open folders by trainer and ``run_dir`` argument: the callbacks of one run share one folder."""

_ours: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""Keys by trainer that `log_scalars` logged: what they say has tables of its own."""


def gather(value: Any) -> list[Any]:
    """Return every rank's value, in the order of ranks, on every rank. Collective."""
    ranks = Ranks.current()
    return ranks.gather({ranks.rank: value})


@contextmanager
def forked_random_states(device: torch.device | None = None) -> Iterator[None]:
    """Leave the random states (Python, NumPy, torch; of ``device`` if CUDA) as they were."""
    devices = [device] if device is not None and device.type == "cuda" else []
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002  # not to be moved
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002  # put back as it was


@contextmanager
def keyed_random_states(
    seed: int, *keys: int, device: torch.device | None = None
) -> Iterator[None]:
    """Draw from all generators of `forked_random_states` as seeded by the keys; then as before."""
    with forked_random_states(device), keyed_randomness(seed, *keys, device=device):
        random.seed(fold_in(seed, *keys))
        np.random.seed(fold_in(seed, *keys) % 2**32)  # noqa: NPY002  # what transforms draw from
        yield


def say(trainer: Any, message: str) -> None:
    """Print a line on the first rank."""
    if trainer.is_global_zero:
        console.print(message, highlight=False, soft_wrap=True, markup=False)


class Voice:
    """Says each of a callback's sentences once a run, with the callback's name before it."""

    def __init__(self, who: str) -> None:
        self.who = who
        self._said: set[str] = set()

    def forget(self) -> None:
        """Begin a new run."""
        self._said.clear()

    def __call__(self, trainer: Any, message: str, sep: str = ": ") -> None:
        """Print ``<who><sep><message>`` on the first rank, unless that was said."""
        if message not in self._said:
            self._said.add(message)
            say(trainer, f"{self.who}{sep}{message}")


def log_scalars(trainer: Any, scalars: Mapping[str, float]) -> None:
    """Send scalars to every logger at once, at the current step, and to ``callback_metrics``.

    ``self.log`` would drop what is measured between two logging steps.
    """
    _ours.setdefault(trainer, set()).update(scalars)
    for key, value in scalars.items():
        trainer.callback_metrics[key] = torch.tensor(value)
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=trainer.global_step)


STUDY_KEYS = ("arm", "factor", "strength")
"""What ``run.json`` says of a run's place in a study."""


def _checked_study(study: Mapping[str, str | float]) -> dict[str, str | float]:
    unknown = sorted(set(study) - set(STUDY_KEYS))
    if unknown:
        raise ValueError(f"study has keys {unknown}; known are {', '.join(STUDY_KEYS)}")
    strength = study.get("strength", 0.0)
    if isinstance(strength, str | bool) or not math.isfinite(strength):
        raise ValueError(f"study's strength must be a finite number, got {strength!r}")
    return {key: value if key == "strength" else str(value) for key, value in study.items()}


class RunRecords:
    """One callback's access to the run folder; every method may be called on every rank.

    Args:
        run_dir: the folder, or None for ``<trainer.log_dir>/firstlight``; made unique, never
            overwritten, kept in the checkpoint and used again on resume.
        study: values of `STUDY_KEYS` for ``run.json``.

    Raises:
        ValueError: on other keys, or a strength that is no finite number.
    """

    def __init__(
        self, run_dir: str | None = None, study: Mapping[str, str | float] | None = None
    ) -> None:
        self.run_dir = run_dir
        self.study = _checked_study(study or {})
        self.folder: RunFolder | None = None
        self._opened_for: ref[Any] | None = None
        self.start()

    def start(self) -> None:
        """Forget what a checkpoint told an earlier run; called in every ``setup``."""
        self._restored: str | None = None
        self._loaded: tuple[int, int] | None = None

    def open(self, trainer: Any, pl_module: Any) -> None:
        """Find or make the folder, on the first rank. Collective, since ``log_dir`` is.

        A fit that a checkpoint resumes goes on in the checkpoint's folder, and what was written
        there after the checkpoint's step is removed: it will be written again. An evaluation of a
        checkpoint has a folder of its own and leaves the training run's as it is.
        """
        # Asked alike on all ranks: only the first has a folder, and log_dir is collective.
        if self._opened_for is not None and self._opened_for() is trainer:
            return
        self._opened_for, self.folder = ref(trainer), None
        if trainer.fast_dev_run:
            return
        log_dir = trainer.log_dir
        if not trainer.is_global_zero:
            return
        shared = _folders.setdefault(trainer, {})
        if self.run_dir not in shared:
            shared[self.run_dir] = self._find(trainer, pl_module, log_dir)
        self.folder = shared[self.run_dir]
        if self.study:  # another callback may have made the folder
            self.folder.update(**self.study)

    def _find(self, trainer: Any, pl_module: Any, log_dir: str | None) -> RunFolder:
        resumed = self._restored if trainer.state.fn == "fit" else None
        if resumed is not None and Path(resumed, "run.json").exists():
            folder = RunFolder.open(resumed)
            folder.truncate(trainer.global_step)
            return folder
        if resumed is not None:
            say(trainer, f"The run folder {resumed} of the checkpoint is gone; a new one is made.")
        config = describe_run(trainer, pl_module)
        path = Path(self.run_dir or Path(log_dir or ".", "firstlight"))
        folder = RunFolder.create(
            path, status="running", **identify_run(trainer, pl_module, config)
        )
        with replacing(folder.path / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False))
        return folder

    def place(self, trainer: Any) -> tuple[int, int]:
        """Step and epoch of the weights at hand: a loaded checkpoint's, outside a fit."""
        if self._loaded is not None and trainer.state.fn != "fit":
            return self._loaded
        return trainer.global_step, trainer.current_epoch

    def loaded(self, step: int, epoch: int) -> None:
        """Note the step and epoch of a checkpoint that was loaded."""
        self._loaded = step, epoch

    def mark(self, status: str) -> None:
        """Say in ``run.json`` how the run stands."""
        if self.folder is not None:
            self.folder.update(status=status)

    def event(
        self,
        trainer: Any,
        kind: str,
        blocks: list[str],
        reasons: list[str],
        trainable: int | None = None,
        split: str | None = None,
    ) -> None:
        """Write what happens before the next update into the table ``events``.

        Args:
            trainer: says when.
            kind: of the event.
            blocks: one row each.
            reasons: of each row.
            trainable: numbers that are trained from now on.
            split: names the part, beside those of other callbacks; default: the kind.
        """
        if self.folder is not None:
            step, epoch = self.place(trainer)
            self.folder.write(
                "events",
                {"kind": kind, "block": blocks, "reason": reasons, "trainable": trainable},
                step=step,
                epoch=epoch,
                split=split or kind,
            )

    def logged(self, trainer: Any, stage: str, step: int, epoch: int) -> None:
        """Write what the module logged in an epoch of a stage into the table ``scalars``.

        Keys that begin with ``val`` or ``test`` are those stages', all others are training's.
        Collective, since reading a trainer's metrics is.
        """
        ours, evaluated = _ours.get(trainer, set()), ("val", "test")
        found = {
            key: float(value)
            for key, value in trainer.callback_metrics.items()
            if key not in ours
            and (key.startswith(stage) if stage in evaluated else not key.startswith(evaluated))
        }
        if self.folder is not None and found:
            columns = {"key": list(found), "value": list(found.values())}
            self.folder.write("scalars", columns, step=step, epoch=epoch, split=stage)

    def scored(self, trainer: Any, scores: Mapping[str, ClassifierScores], split: str) -> None:
        """Write the classes' accuracies under several classifiers into the table ``per_class``.

        Args:
            trainer: says when.
            scores: by classifier, which names the split ``<split>/<classifier>``.
            split: before that.
        """
        if self.folder is None:
            return
        step, epoch = self.place(trainer)
        for name, one in scores.items():
            correct = (one.accuracy.nan_to_num() * one.counts).round()
            columns = {"class": range(len(one.counts)), "n": one.counts.long().tolist(),
                       "correct": correct.long().tolist()}  # fmt: skip
            where = f"{split}/{name}"
            self.folder.write("per_class", columns, step=step, epoch=epoch, split=where)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"run_dir": None if self.folder is None else str(self.folder.path)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the checkpoint's folder, if this is a fit."""
        self._restored = state["run_dir"]
