"""The one schema of a study's folder: what ``firstlight study`` writes and others read.

::

    <study>/study.json        what the study is, and how each of its runs stands
    <study>/runs/<id>/        a run folder (`firstlight.runfolder`), of training and evaluation
    <study>/work/<id>/        config.yaml (of the whole run), log.txt, checkpoints/last.ckpt
    <study>/class_effects*/   tables and figures of ``firstlight compare``

``study.json`` holds, beside ``schema_version`` and ``firstlight`` (the version):

- ``name``; ``status``: ``running``, ``finished``, ``failed`` (a run failed) or ``interrupted``
- ``factor``: what the arms differ by, as in the ``run.json`` of every run
- ``split``: the evaluation that is compared, ``test`` or ``val``
- ``arms``: in order, the first is what the others are compared with; each ``arm`` (its name),
  ``strength`` (a number or null), ``set`` (keys and values) and ``config`` (overlays)
- ``seeds``, ``base`` (configs) and ``set`` (keys and values that all arms share)
- ``runs``: arm by arm, seed by seed; each of `RUN_KEYS`
- ``comparison``: folder of the last comparison, or null; ``compare``: its options
- ``omissions``: sentences on what is missing

Paths are relative to the study's folder. One process writes the file, whole, by renaming.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from firstlight.runfolder import RunFolder, RunFolderError, replacing

SCHEMA_VERSION = 1

Status = Literal["waiting", "running", "finished", "failed", "interrupted"]
"""How a run stands. One found ``running`` in a study that nobody runs was killed with it."""

RUN_KEYS = ("id", "arm", "strength", "seed", "status", "folder", "log", "attempts", "seconds",
            "note", "error")  # fmt: skip
"""Keys of a run: ``id`` names its folders; ``folder`` and ``log`` are paths; ``attempts`` counts
its starts; ``seconds`` are those of the last; ``note`` says whether that began anew or went on from
a checkpoint; ``error`` is null, or of a failed run ``{"exit": code, "lines": [last of the log]}``,
a negative code being the number of a signal."""


class StudyFolder:
    """One study's folder, made when it is first written; `open` reads an old one.

    Attributes:
        path: the folder.
        study: contents of ``study.json``.
    """

    def __init__(self, path: Path, study: Mapping[str, Any]) -> None:
        first = {"schema_version": SCHEMA_VERSION, "firstlight": version("firstlight")}
        self.path = path
        self.study: dict[str, Any] = {**first, **study}

    @classmethod
    def open(cls, path: str | Path) -> "StudyFolder":
        """Open a folder that a study made.

        Raises:
            RunFolderError: where there is no readable ``study.json``, or a newer version's.
        """
        file = Path(path) / "study.json"
        try:
            study = json.loads(file.read_text())
            found = study["schema_version"]
            if not isinstance(study["runs"], list):
                raise TypeError("runs is no list")
        except FileNotFoundError:
            raise RunFolderError(f"{path} is no study: {file} does not exist") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunFolderError(f"{file} is not a study's description ({error!r})") from error
        if found > SCHEMA_VERSION:
            raise RunFolderError(
                f"{file} has schema version {found}, this firstlight reads up to "
                f"{SCHEMA_VERSION}: update firstlight"
            )
        return cls(Path(path), study)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs, as ``study.json`` has them."""
        runs: list[dict[str, Any]] = self.study["runs"]
        return runs

    def run(self, run_id: str) -> dict[str, Any]:
        """The run of that ``id``."""
        return next(run for run in self.runs if run["id"] == run_id)

    def finished(self) -> list[RunFolder]:
        """Run folders of the finished runs, in the order of ``study.json``.

        Raises:
            RunFolderError: where one of them cannot be read.
        """
        done = [run for run in self.runs if run["status"] == "finished"]
        return [RunFolder.open(self.path / run["folder"]) for run in done]

    def write(self) -> None:
        """Write ``study.json`` as `study` stands."""
        with replacing(self.path / "study.json") as temporary:
            temporary.write_text(json.dumps(self.study, indent=1) + "\n")

    def holds(self, run: Mapping[str, Any]) -> bool:
        """Whether a run's folder says that it ended, and holds predictions of the study's split."""
        try:
            folder = RunFolder.open(self.path / run["folder"])
        except RunFolderError:
            return False
        wanted = self.study["split"]
        return folder.run["status"] == "finished" and wanted in folder.splits("predictions")


def new_run(arm: str, strength: float | None, seed: int, run_id: str) -> dict[str, Any]:
    """The entry of a run that has not begun."""
    values = {
        "id": run_id,
        "arm": arm,
        "strength": strength,
        "seed": seed,
        "status": "waiting",
        "folder": f"runs/{run_id}",
        "log": f"work/{run_id}/log.txt",
        "attempts": 0,
    }
    return {key: values.get(key) for key in RUN_KEYS}
