"""``firstlight study``: a grid of runs of one factor and several seeds, then their comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from firstlight.compare import compare
from firstlight.runfolder import RunFolderError
from firstlight.study.file import StudyFile
from firstlight.study.plan import PlannedRun, differences, plan_runs
from firstlight.study.run import LOCK
from firstlight.study.training import alone_in, refuse_running, train
from firstlight.study.workers import workers_for
from firstlight.studyfolder import StudyFolder, new_run
from firstlight.terminal import console


class StudyError(RuntimeError):
    """Runs failed, or could not be compared; ``study.json`` holds all that is known."""


def study(
    file: StudyFile,
    out: str | Path | None = None,
    sequential: bool = False,
    dry_run: bool = False,
) -> StudyFolder | None:
    """Train every arm with every seed, each in a process of its own; then compare the arms.

    Called again it goes on: finished runs stay, half ones go on from their last checkpoint, and
    what failed is tried again. Seeds and arms may be added; nothing else of what is there may
    change. Called off (Ctrl-C) or killed, it leaves a folder to go on with.

    Args:
        file: of `firstlight.study.file.read_study`.
        out: the study's folder; default ``studies/<name>``. See `firstlight.studyfolder`.
        sequential: one run after another without Ray, though it is installed.
        dry_run: check and list the runs, and train none.

    Returns:
        The study's folder; None of a dry run.

    Raises:
        ValueError: before anything is trained, on a configuration that is refused, or a folder
            that holds another study, or one that another process trains.
        StudyError: at the end, where runs failed or could not be compared.
        KeyboardInterrupt: after the runs were stopped and that was written down.
    """
    path = Path(out or Path("studies", file.name)).resolve()
    plan = plan_runs(file, path)
    folder = _opened(path, file, plan)
    # Seed by seed, so that what a study called off has is as good for every arm.
    waiting = [run for seed in file.seeds for run in plan
               if run.seed == seed and folder.run(run.id)["status"] != "finished"]  # fmt: skip
    _announce(file, folder, waiting)
    if dry_run:
        return None
    if waiting:
        gpus, at_once = file.gpus_per_run, file.at_once
        workers = workers_for(file.cpus_per_run, gpus, at_once, file.address, sequential)
        try:
            with alone_in(path):
                folder.write()
                refuse_running(folder, waiting)
                train(folder, waiting, workers, file.cpus_per_run)
        finally:
            workers.close()
    return _concluded(folder, file, bool(waiting))


def _opened(path: Path, file: StudyFile, plan: Sequence[PlannedRun]) -> StudyFolder:
    """The study's folder with an entry for every run; nothing is written yet."""
    described: dict[str, Any] = {
        "name": file.name,
        "status": "running",
        "factor": file.factor,
        "split": file.split,
        "arms": [{"arm": arm.name, "strength": arm.strength, "set": dict(arm.settings),
                  "config": list(arm.overlays)} for arm in file.arms],
        "seeds": file.seeds,
        "base": file.base,
        "set": file.settings,
        "runs": [new_run(run.arm.name, run.arm.strength, run.seed, run.id) for run in plan],
        "compare": file.compare,
        "comparison": None,
        "omissions": [],
    }  # fmt: skip
    if not (path / "study.json").exists():
        if path.exists() and any(one.name != LOCK for one in path.iterdir()):
            raise ValueError(f"{path} holds something else than a study: choose another folder")
        return StudyFolder(path, described)
    folder = StudyFolder.open(path)
    _refuse_changes(folder, described, plan)
    known = {run["id"]: run for run in folder.runs}
    described["runs"] = [{**known.get(run["id"], run), "strength": run["strength"]}
                         for run in described["runs"]]  # fmt: skip
    # of the comparison that is there, until it is made anew
    described |= {key: folder.study.get(key) for key in ("comparison", "compare")}
    folder.study.update(described)
    for run in folder.runs:
        if folder.holds(run):
            run.update(status="finished", error=None)
        elif run["status"] in ("running", "finished"):  # killed with the study, or taken away
            run["status"] = "interrupted"
    return folder


def _refuse_changes(
    folder: StudyFolder, now: Mapping[str, Any], plan: Sequence[PlannedRun]
) -> None:
    """Runs and arms may be added; those that are there stay what they are."""
    said = [f"{key} was {folder.study[key]!r}, is {now[key]!r}" for key in ("factor", "split")
            if folder.study[key] != now[key]]  # fmt: skip
    first, current = folder.study["arms"][0]["arm"], now["arms"][0]["arm"]
    if first != current:
        said.append(f"the arm that others are compared with was {first!r}, is {current!r}")
    planned = {run.id: run for run in plan}
    for run in folder.runs:
        config = folder.path / "work" / run["id"] / "config.yaml"
        if run["id"] not in planned:
            said.append(f"run {run['id']} is no longer in it")
        elif config.exists():
            old = yaml.safe_load(config.read_text())
            said += [f"{run['id']}: {one}" for one in differences(old, planned[run["id"]].config)]
    if said:
        more = f"\n  and {len(said) - 8} more" if len(said) > 8 else ""
        raise ValueError(
            f"{folder.path} holds another study than the file describes now:\n  "
            + "\n  ".join(said[:8])
            + f"{more}\nGive another folder (--out), or put the file back as it was; seeds and "
            "arms may be added"
        )


def _announce(file: StudyFile, folder: StudyFolder, waiting: Sequence[PlannedRun]) -> None:
    runs = len(folder.runs)
    say = f"Study {file.name}: {len(file.arms)} arms by {len(file.seeds)} seeds, {runs} runs"
    done = runs - len(waiting)
    console.print(say + (f", {done} of them finished" if done else "") + f" ({folder.path})",
                  soft_wrap=True, highlight=False)  # fmt: skip
    if len(file.seeds) < 3:
        console.print(f"  {len(file.seeds)} seed(s) an arm: three are the least for any claim, "
                      "five are good", soft_wrap=True, highlight=False)  # fmt: skip
    for run in waiting:
        settings = ", ".join(f"{k}={v}" for k, v in run.arm.settings.items())
        console.print(f"  {run.id}  {settings}".rstrip(), soft_wrap=True, highlight=False)


def _concluded(folder: StudyFolder, file: StudyFile, trained: bool) -> StudyFolder:
    """Compare what finished, say what is missing, and where everything lies."""
    failed = [run for run in folder.runs if run["status"] == "failed"]
    missing = [f"{run['arm']!r} lacks seed {run['seed']}: the run {run['status']} "
               f"({folder.path / run['log']})"
               for run in folder.runs if run["status"] != "finished"]  # fmt: skip
    problem = _compared(folder, file, trained)
    folder.study["omissions"] = [*missing, *([problem] if problem else [])]
    folder.study["status"] = "failed" if failed else "finished"
    folder.write()
    for one in folder.study["omissions"]:
        console.print(f"Missing: {one}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"The study:  {folder.path}", soft_wrap=True, highlight=False)
    if failed or problem:
        what = f"{len(failed)} of {len(folder.runs)} runs failed" if failed else str(problem)
        raise StudyError(f"{what}; the same command tries again what is missing")
    return folder


def _compared(folder: StudyFolder, file: StudyFile, trained: bool) -> str | None:
    """Compare the arms, unless that is done; return why it could not be."""
    last, options = folder.study["comparison"], folder.study.get("compare")
    folder.study["compare"] = file.compare
    there = last is not None and (folder.path / last).exists()
    if there and not trained and options == file.compare:
        console.print(f"The comparison:  {folder.path / last}", soft_wrap=True, highlight=False)
        return None
    done = [run for run in folder.runs if run["status"] == "finished"]
    arms = [arm.name for arm in file.arms if any(run["arm"] == arm.name for run in done)]
    runs, out = [folder.path / run["folder"] for run in done], folder.path / "class_effects"
    try:
        made = compare(runs, arms=arms, split=file.split, out=out, **file.compare)
    except (ValueError, RunFolderError) as error:
        return f"no comparison: {error}"
    folder.study["comparison"] = made.relative_to(folder.path).as_posix()
    return None
