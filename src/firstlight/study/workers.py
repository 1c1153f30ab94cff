"""Where the runs of a study are computed: processes of this machine, or tasks of Ray."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from firstlight.study.run import GRACE

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Worker(Protocol):
    """A run being computed."""

    def poll(self) -> int | None:
        """Exit code of its process, negative for a signal; None while it goes on."""

    def ask_to_stop(self) -> None:
        """Let it end in its own time, which is at most `GRACE` seconds."""

    def stop(self) -> None:
        """Ask, wait until it has ended, and end it by force where it does not."""


class Workers(Protocol):
    """What starts runs.

    Attributes:
        name: for the user.
        room: how many runs it computes at a time.
    """

    name: str
    room: int

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Worker:
        """Start a process whose output goes to the end of a file."""

    def close(self) -> None:
        """Give back what it holds."""


class LocalWorker:
    """A process of this machine, with a group of its own, that ends with its standard input."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is for who started it, who then stops it in order
            )

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        code = self._process.poll()
        if code is not None:
            self.ask_to_stop()
        return code

    def wait(self) -> int:
        """Exit code, once it has ended."""
        self._process.wait()
        self.ask_to_stop()
        return self._process.returncode

    def ask_to_stop(self) -> None:
        """Close its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self) -> None:
        """Ask, wait, then kill it and what it started."""
        self.ask_to_stop()
        try:
            self._process.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class LocalWorkers:
    """Processes of this machine, one at a time unless more are asked for.

    Args:
        at_once: how many.
        gpus: GPUs of each.

    Raises:
        ValueError: for several at once on GPUs, which nothing here would share out.
    """

    name = "this machine, without Ray"

    def __init__(self, at_once: int | None, gpus: float) -> None:
        self.room = at_once or 1
        if self.room > 1 and gpus:
            raise ValueError(
                f"{self.room} runs at once on GPUs need Ray, which gives each its own: pip install "
                "'firstlight[study]', or leave out at_once"
            )

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Worker:
        """Start a process."""
        return LocalWorker(command, log, environment)

    def close(self) -> None:
        """Nothing is held."""


def run_to_end(command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: str) -> int:
    """What a task of Ray does: start the process, return its exit code."""
    os.chdir(cwd)
    return LocalWorker(command, log, environment).wait()


class RayWorker:
    """A task of Ray; its process ends with it."""

    def __init__(self, ray: Any, task: Any, log: Path) -> None:
        self._ray, self._task, self._log = ray, task, log

    def poll(self) -> int | None:
        """Exit code; -9 where Ray lost the task's worker or its machine.

        1, and the reason in the log, where a machine could not start the process, such as one that
        lacks the folder.
        """
        done, _ = self._ray.wait([self._task], timeout=0)
        if not done:
            return None
        try:
            code: int = self._ray.get(self._task)
        except self._ray.exceptions.RayTaskError as error:
            with self._log.open("a") as log:
                log.write(f"{error}\n")
            return 1
        except self._ray.exceptions.RayError:
            return -signal.SIGKILL
        return code

    def ask_to_stop(self) -> None:
        """Kill the task's worker, whose end closes the process's standard input."""
        self._ray.cancel(self._task, force=True)

    def stop(self) -> None:
        """Ask; the process, wherever it is, then has `GRACE` seconds."""
        self.ask_to_stop()


class RayWorkers:
    """Tasks of Ray, each with its share of CPUs and GPUs.

    On a cluster the study's folder, the data and the environment have to be the same on every
    machine (a shared file system).

    Args:
        cpus: of each run.
        gpus: likewise.
        at_once: how many at most; None: as many as there is room for.
        address: of a cluster; None starts Ray on this machine, for this study.

    Raises:
        ValueError: where no run fits.
    """

    def __init__(self, cpus: int, gpus: float, at_once: int | None, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray = ray
        local = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
        ray.init(
            address=address or "local",
            configure_logging=False,
            log_to_driver=False,
            **({} if address else {**local, "num_cpus": _cpus()}),
        )
        there = ray.cluster_resources()
        shares = [there.get("CPU", 0) // cpus] + ([there.get("GPU", 0) // gpus] if gpus else [])
        self.room = int(min(shares)) if at_once is None else at_once
        if min(shares) < 1:
            ray.shutdown()
            raise ValueError(
                f"no run fits: it needs {cpus} CPUs and {gpus:g} GPUs, and Ray has "
                f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
            )
        self.name = f"Ray at {address}" if address else "Ray on this machine"
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}
        self._task = ray.remote(**options)(run_to_end)

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Worker:
        """Start a task."""
        task = self._task.remote(command, log, environment, str(Path.cwd()))
        return RayWorker(self._ray, task, log)

    def close(self) -> None:
        """Leave Ray; one that was started here ends."""
        self._ray.shutdown()


def workers_for(
    cpus: int, gpus: float | None, at_once: int | None, address: str | None, sequential: bool
) -> Workers:
    """Choose: Ray where it is installed, unless ``sequential``; else this machine's processes.

    Raises:
        ValueError: for an address without Ray, or what a choice cannot do.
    """
    if gpus is None:
        gpus = 1.0 if _has_gpu() else 0.0
    if sequential or find_spec("ray") is None:
        if address is not None:
            raise ValueError(f"address {address!r} is that of a Ray cluster: pip install "
                             "'firstlight[study]', and leave out sequential")  # fmt: skip
        return LocalWorkers(at_once, gpus)
    return RayWorkers(cpus, gpus, at_once, address)


def environment_for(cpus: int) -> dict[str, str]:
    """Variables of a run's process: its thread budget, and a log that is written line by line."""
    return {**dict.fromkeys(THREADS, str(cpus)), "PYTHONUNBUFFERED": "1"}


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
