"""The runs of a study: each one's whole configuration, from the parser that will train it."""

import io
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstlight.cli import lightning, resolve_config
from firstlight.study.file import StudyArm, StudyFile, near_names, slug

MONITOR = "firstlight.callbacks.PerClassMonitor"
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
PLACES = ("run_dir", "default_root_dir", "dirpath")
"""Keys that say where a run writes, and so nothing of what it is."""


@dataclass(frozen=True)
class PlannedRun:
    """One run to be.

    Attributes:
        id: names its folders.
        arm: its setting.
        seed: its seed.
        config: of ``firstlight fit``, all of it.
    """

    id: str
    arm: StudyArm
    seed: int
    config: dict[str, Any]


def plan_runs(file: StudyFile, folder: Path) -> list[PlannedRun]:
    """Parse the configuration of every run, arm by arm and seed by seed; nothing is trained.

    Args:
        file: the study.
        folder: where it will be.

    Raises:
        ValueError: on a configuration that the parser refuses, naming the arm and near keys; on
            arms that are no different, or whose names are one as folders; on a fixed seed.
    """
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        base = [*_configs(file.base, Path(scratch))]
        known = flatten(_parsed(base, "base"))
        if file.settings:
            base += _settings(file.settings, known, "set")
            known = flatten(_parsed(base, "set"))
        for arm in file.arms:
            where = f"arm {arm.name!r}"
            overlays = _configs(arm.overlays, Path(scratch))
            given = flatten(_parsed([*base, *overlays], where)) if arm.overlays else known
            own = [*overlays, *_settings(arm.settings, given, where)]
            parsed: dict[tuple[str, ...], dict[str, Any]] = {}  # most seeds change nothing else
            for seed in file.seeds:
                names = {"{seed}": str(seed), "{arm}": slug(arm.name)}
                arguments = tuple(_filled(one, names) for one in [*base, *own])
                if arguments not in parsed:
                    parsed[arguments] = _parsed([*arguments], where)
                    _check(parsed[arguments], where)
                config = {**deepcopy(parsed[arguments]), "seed_everything": seed}
                run = f"{slug(arm.name)}-seed{seed}"
                runs.append(PlannedRun(run, arm, seed, _placed(config, run, arm, file, folder)))
    _refuse_twins(runs)
    return runs


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists of mappings by dotted key."""
    if isinstance(value, Mapping) and value:
        pairs: Any = value.items()
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, one in pairs:
        leaves |= flatten(one, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations of a run, as sentences; not where they write."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in dict.fromkeys([*before, *after]) if key.rpartition(".")[2] not in PLACES]
    gone = object()
    return [f"{key} was {_said(before, key)}, is {_said(after, key)}" for key in keys
            if before.get(key, gone) != after.get(key, gone)]  # fmt: skip


def _said(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not there"


def _configs(given: Sequence[Any], scratch: Path) -> list[str]:
    arguments = []
    for one in given:
        if isinstance(one, Mapping):
            path = scratch / f"{len(list(scratch.iterdir()))}.yaml"
            path.write_text(yaml.safe_dump(dict(one)))
        else:
            path = Path(resolve_config(str(one)))
            if not path.is_file():
                raise ValueError(f"there is no config {one!r}")
        arguments += ["--config", str(path)]
    return arguments


def _settings(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> list[str]:
    """Options for keys, each of which has to be known: the parser completes some by itself."""
    arguments = []
    for key, value in given.items():
        full = re.sub(r"^data\.(?!init_args\.|class_path$)", "data.init_args.", key)
        if not _is_known(full, known):
            near = near_names(full, known) or near_names(key, known)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"{where}: the configuration has no key {key!r}{hint}")
        text = value if isinstance(value, str) else json.dumps(value)
        arguments.append(f"--{key}={text}")
    return arguments


def _is_known(key: str, known: Mapping[str, Any]) -> bool:
    """A key, a group of keys, or a part of what is empty so far and so may hold anything."""
    parts = key.split(".")
    above = [".".join(parts[:number]) for number in range(1, len(parts))]
    return (
        key in known
        or any(one.startswith(f"{key}.") for one in known)
        or any(known.get(one, 0) in (None, {}) for one in above)
    )


def _filled(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def _parsed(arguments: list[str], where: str) -> dict[str, Any]:
    """All of the configuration that these arguments of ``firstlight fit`` mean.

    Raises:
        ValueError: with what the parser says of them.
    """
    out, err, code = io.StringIO(), io.StringIO(), None
    with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("ignore")  # that sys.argv holds other arguments is as it should be
        try:
            lightning(["fit", *arguments, "--print_config"])
        except SystemExit as stop:
            code = stop.code
    if code:
        said = err.getvalue().rpartition("error: ")[2].strip() or str(code)
        raise ValueError(f"{where} is refused: {said}")
    config: dict[str, Any] = yaml.safe_load(out.getvalue())
    return config


def _check(config: Mapping[str, Any], where: str) -> None:
    if config.get("data") is None or config["model"].get("model_name") is None:
        raise ValueError(f"{where} has no data or no model.model_name: give a base that has both")
    if config["model"].get("seed") is not None:
        raise ValueError(
            f"{where} has model.seed fixed to {config['model']['seed']}, so that runs of other "
            "seeds would not be independent: leave it out"
        )


def _placed(
    config: dict[str, Any], run: str, arm: StudyArm, file: StudyFile, folder: Path
) -> dict[str, Any]:
    """The configuration with what makes it a run of this study: its folders, arm, checkpoint."""
    trainer, place = config["trainer"], str(folder / "runs" / run)
    callbacks = trainer["callbacks"] = list(trainer.get("callbacks") or [])
    monitor = next((one for one in _of(callbacks, MONITOR) if not _args(one).get("name")), None)
    if monitor is None:
        monitor = {"class_path": MONITOR, "init_args": {}}
        callbacks.append(monitor)
    study = {"arm": arm.name, "factor": file.factor, "strength": arm.strength}
    _args(monitor)["study"] = {key: value for key, value in study.items() if value is not None}
    stages = _args(monitor).get("stages", ["val", "test"])
    _args(monitor)["stages"] = [*stages, *({file.split} - set(stages))]
    _args(monitor)["run_dir"] = place
    for one in callbacks:  # all of a run's tables stand in one folder
        if _args(one).get("run_dir", place) is None:
            _args(one)["run_dir"] = place
    if trainer.get("enable_checkpointing") is not False:
        saving = [*_of(callbacks, CHECKPOINT)]
        if not saving:
            saving = [{"class_path": CHECKPOINT, "init_args": {}}]
            callbacks += saving
        if not any(_args(one).get("save_last") for one in saving):
            _args(saving[0])["save_last"] = True
        for one in saving:
            if _args(one).get("dirpath") is None:  # one place for all attempts
                _args(one)["dirpath"] = str(folder / "work" / run / "checkpoints")
    if not any("ProgressBar" in one["class_path"] for one in callbacks):
        trainer["enable_progress_bar"] = False
    trainer["default_root_dir"] = str(folder / "work" / run)
    return config


def _of(callbacks: Sequence[dict[str, Any]], path: str) -> Iterator[dict[str, Any]]:
    name = path.rpartition(".")[2]
    return (one for one in callbacks if one["class_path"].rpartition(".")[2] == name)


def _args(callback: dict[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = callback.setdefault("init_args", {})
    return args


def _refuse_twins(runs: Sequence[PlannedRun]) -> None:
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        other = seen.setdefault(run.id, run)
        if other is not run:
            raise ValueError(f"arms {other.arm.name!r} and {run.arm.name!r} have one name as a "
                             f"folder, {run.id!r}")  # fmt: skip
    firsts = [run for run in runs if run.seed == runs[0].seed]
    for number, run in enumerate(firsts):
        for other in firsts[:number]:
            unlike = [one for one in differences(other.config, run.config) if ".study." not in one]
            if not unlike:
                raise ValueError(f"arms {other.arm.name!r} and {run.arm.name!r} have the same "
                                 "configuration")  # fmt: skip
