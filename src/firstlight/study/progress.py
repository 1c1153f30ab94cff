"""What a study shows while it trains: runs done, running and failed, and the time left."""

import statistics
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from firstlight.studyfolder import StudyFolder


class StudyProgress:
    """A bar where there is a terminal, and a line for every run that starts or ends anywhere.

    Args:
        console: where to.
        folder: the study.
        where: what computes the runs.
        room: how many at a time.
    """

    def __init__(self, console: Console, folder: StudyFolder, where: str, room: int) -> None:
        self._console, self._folder, self._room = console, folder, room
        self._begun: dict[str, float] = {}
        self._whole: list[float] = []  # seconds of runs that began and ended under our eyes
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("runs", total=len(folder.runs), left="")
        self._print(f"Computed by {where}, {room} at a time.")

    def __enter__(self) -> "StudyProgress":
        self._bar.start()
        self.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def started(self, run: dict[str, Any]) -> None:
        """Say that a run began, and how."""
        self._begun[run["id"]] = time.monotonic()
        self._print(f"{run['id']} {run['note']}")

    def ended(self, run: dict[str, Any]) -> None:
        """Say how a run ended."""
        self._begun.pop(run["id"])
        if run["status"] == "finished":
            self._whole.append(run["seconds"])
            self._print(f"{run['id']} finished in {shown_time(run['seconds'])}")
            return
        code = run["error"]["exit"]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        self._print(f"{run['id']} failed ({how}); its log: {self._folder.path / run['log']}")
        for line in run["error"]["lines"]:
            self._print(f"    {line}")

    def refresh(self) -> None:
        """Bring the bar up to date."""
        states = [run["status"] for run in self._folder.runs]
        failed, done = states.count("failed"), states.count("finished")
        text = f"{done} done, {len(self._begun)} running"
        text += f", [red]{failed} failed[/]" if failed else ""
        self._bar.update(
            self._task, completed=len(states) - self._to_come() - len(self._begun),
            description=text, left=self._left(),
        )  # fmt: skip

    def _to_come(self) -> int:
        return sum(run["status"] in ("waiting", "interrupted") for run in self._folder.runs)

    def _left(self) -> str:
        """By the mean of the runs that ended; nothing before the first did."""
        if not self._whole:
            return ""
        mean, now = statistics.mean(self._whole), time.monotonic()
        rest = sum(max(mean - (now - begun), 0.0) for begun in self._begun.values())
        busy = min(self._room, max(self._to_come() + len(self._begun), 1))
        return f"about {shown_time((rest + mean * self._to_come()) / busy)} left"

    def _print(self, line: str) -> None:
        self._bar.console.print(line, soft_wrap=True, highlight=False, markup=False)


def shown_time(seconds: float) -> str:
    """A time in the two units that matter.

    >>> shown_time(42.4), shown_time(200), shown_time(8000)
    ('42 s', '3 min 20 s', '2 h 13 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"
