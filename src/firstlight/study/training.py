"""Training a study's runs: each prepared, started, watched, and written down as it ended."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import yaml
from filelock import Timeout

from firstlight.checkpoints import CheckpointError, read_checkpoint
from firstlight.runfolder import replacing
from firstlight.study.plan import PlannedRun
from firstlight.study.progress import StudyProgress
from firstlight.study.run import GRACE, lock_of
from firstlight.study.workers import Worker, Workers, environment_for
from firstlight.studyfolder import StudyFolder
from firstlight.terminal import console

POLL = 0.2
LAST_LINES = 5


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Be the only process that trains a study's runs, once one that ends now has ended.

    Raises:
        ValueError: where another goes on.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = lock_of(path)
    try:
        lock.acquire(timeout=GRACE + 5)
    except Timeout:
        raise ValueError(f"another process trains the study in {path}: wait for it, or stop it "
                         f"({lock.lock_file} is locked)") from None  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def refuse_running(folder: StudyFolder, waiting: Sequence[PlannedRun]) -> None:
    """Wait for what an earlier call left running to stop; refuse to train a run twice."""
    for run in waiting:
        work = folder.path / "work" / run.id
        work.mkdir(parents=True, exist_ok=True)
        try:
            with lock_of(work).acquire(timeout=GRACE + 5):
                pass
        except Timeout:
            raise ValueError(f"{run.id} is being trained by another process: wait for it, or stop "
                             f"it ({work / 'lock'} is locked)") from None  # fmt: skip


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def train(folder: StudyFolder, plan: Sequence[PlannedRun], workers: Workers, threads: int) -> None:
    """Train these runs, as many at a time as there is room for; none of them ends the study.

    Args:
        folder: the study, whose ``study.json`` is kept up to date.
        plan: the runs, in order.
        workers: what computes them.
        threads: of each.

    Raises:
        KeyboardInterrupt: on Ctrl-C and SIGTERM, when all runs have been stopped and
            ``study.json`` says so.
    """
    waiting, running = list(plan), dict[str, tuple[Worker, float]]()
    environment = environment_for(threads)
    with (
        _terminated_as_interrupted(),
        StudyProgress(console, folder, workers.name, workers.room) as progress,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < workers.room:
                    run = waiting.pop(0)
                    command, log = _prepared(folder, run)
                    running[run.id] = workers.start(command, log, environment), time.monotonic()
                    progress.started(folder.run(run.id))
                for run_id, (worker, begun) in list(running.items()):
                    if (code := worker.poll()) is not None:
                        del running[run_id]
                        _settle(folder, run_id, code, time.monotonic() - begun)
                        progress.ended(folder.run(run_id))
                progress.refresh()
                time.sleep(POLL)
        except BaseException:
            _stop(folder, {run_id: worker for run_id, (worker, _) in running.items()})
            raise


def _stop(folder: StudyFolder, running: Mapping[str, Worker]) -> None:
    """Stop the runs that go on, all told before the first is waited for."""
    console.print(f"Stopping {len(running)} run(s)...", highlight=False)
    for worker in running.values():
        worker.ask_to_stop()
    for run_id, worker in running.items():
        worker.stop()
        folder.run(run_id)["status"] = "interrupted"
    folder.study["status"] = "interrupted"
    folder.write()
    console.print("Interrupted: the same command goes on from here.", highlight=False)


def _prepared(folder: StudyFolder, run: PlannedRun) -> tuple[list[str], Path]:
    """Write the run's configuration; return the command that trains it, or goes on, and its log."""
    entry, work = folder.run(run.id), folder.path / "work" / run.id
    moved = _was_elsewhere(work / "config.yaml", run)
    checkpoint, step = (None, 0) if moved else _resume_point(work)
    if checkpoint is None:  # what is left of a run without a checkpoint cannot be gone on with
        for left in (folder.path / entry["folder"], work / "checkpoints"):
            rmtree(left, ignore_errors=True)
    with replacing(work / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(run.config, sort_keys=False))
    note = "begins" if not entry["attempts"] else "begins anew: there is no checkpoint"
    note = "begins anew: the study has been moved" if moved else note
    if checkpoint is not None:
        note = f"goes on from its checkpoint at step {step}"
    entry.update(status="running", attempts=entry["attempts"] + 1, note=note, error=None)
    folder.write()
    log = folder.path / entry["log"]
    with log.open("a") as file:
        file.write(f"=== attempt {entry['attempts']}: {note}\n")
    resume = [] if checkpoint is None else [str(checkpoint)]
    return [sys.executable, "-m", "firstlight.study", str(work / "config.yaml"),
            folder.study["split"], *resume], log  # fmt: skip


def _was_elsewhere(config: Path, run: PlannedRun) -> bool:
    """Whether the run began in another folder, into which its checkpoint would go on writing."""
    if not config.exists():
        return False
    before: str = yaml.safe_load(config.read_text())["trainer"]["default_root_dir"]
    now: str = run.config["trainer"]["default_root_dir"]
    return before != now


def _resume_point(work: Path) -> tuple[Path | None, int]:
    """The newest checkpoint that a fit can go on from, and its step.

    Not a file that a kill cut off, one without an optimiser's state, or one made after the fit.
    """
    found = [file for file in work.rglob("*.ckpt") if not file.stem.endswith("-retrained")]
    for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            checkpoint = read_checkpoint(file)
        except CheckpointError:
            continue
        if "optimizer_states" in checkpoint:
            return file, int(checkpoint["global_step"])
    return None, 0


def _settle(folder: StudyFolder, run_id: str, code: int, seconds: float) -> None:
    """Write down how a run ended."""
    run = folder.run(run_id)
    run["seconds"] = round(seconds, 1)
    if code == 0 and folder.holds(run):
        run.update(status="finished", error=None)
    else:
        text = (folder.path / run["log"]).read_text(errors="replace").replace("\r", "\n")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
        if code == 0:
            lines.append(f"(it ended well, and left no predictions of {folder.study['split']!r})")
        run.update(status="failed", error={"exit": code, "lines": lines})
    folder.write()
