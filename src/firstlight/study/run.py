"""One run of a study, in a process of its own: a fit, then the evaluation by the same trainer.

``python -m firstlight.study CONFIG SPLIT [CHECKPOINT]``; started by ``firstlight study``.
"""

import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

GRACE = 20.0
"""Seconds that a run has to end by itself when it is to stop."""


LOCK = "lock"
"""A file's name, in the folder of a study and in that of each run's work."""


def lock_of(folder: Path) -> FileLock:
    """The lock that a study's process, or a run's, holds while it lives, whoever started it."""
    return FileLock(folder / LOCK)


def stop_with_parent() -> None:
    """Interrupt this process when its standard input ends: when who started it closes it or dies.

    Works wherever pipes do, and for any death of the parent's, SIGKILL included.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def main(config: str, split: str, checkpoint: str | None = None) -> None:
    """Train as the configuration says, from the checkpoint where there is one; evaluate.

    What is evaluated are the weights that training ended with.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        lock = lock_of(Path(config).parent)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            sys.exit(f"{lock.lock_file} is locked: another process trains this run")
        stop_with_parent()
    from firstlight.cli import lightning  # after the lock: it takes seconds
    from firstlight.studyfolder import StudyFolder

    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # meant so

    resume = [] if checkpoint is None else ["--ckpt_path", checkpoint]
    cli = lightning(["fit", "--config", config, *resume])
    folder = StudyFolder.open(Path(config).parents[2])
    if split == "test":
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    elif not folder.holds(folder.run(Path(config).parent.name)):
        # Killed after its last checkpoint, before the fit wrote the last epoch's predictions.
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
