"""A study's file: one YAML that says the base, the factor, its values and the seeds."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from firstlight.compare import compare

KEYS = ("name", "base", "set", "factor", "values", "arms", "seeds", "split", "compare",
        "cpus_per_run", "gpus_per_run", "at_once", "address")  # fmt: skip
ARM_KEYS = ("strength", "set", "config")
NOT_OPTIONS = ("runs", "arm", "arms", "strengths", "split", "out")
COMPARE_KEYS = tuple(name for name in signature(compare).parameters if name not in NOT_OPTIONS)
SPLITS = ("test", "val")


@dataclass(frozen=True)
class StudyArm:
    """Runs of one setting.

    Attributes:
        name: of the arm.
        strength: how much of the factor, or None.
        settings: values by configuration key.
        overlays: configs after the base, names or contents.
    """

    name: str
    strength: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    overlays: Sequence[str | Mapping[str, Any]] = ()


@dataclass(frozen=True)
class StudyFile:
    """What a study's file says.

    Attributes:
        name: of the study.
        base: configs as ``--config`` takes them, or their contents.
        settings: values by configuration key, in all arms.
        factor: what the arms differ by.
        arms: the first is what the others are compared with.
        seeds: one run of each arm a seed.
        split: the evaluation that is compared.
        compare: options of `firstlight.compare.command.compare`.
        cpus_per_run: threads of a run, and what a scheduler reserves for it.
        gpus_per_run: GPUs of a run; None: one where this machine has any.
        at_once: how many runs at a time; None: as many as the scheduler has room for.
        address: of a Ray cluster; None: this machine.

    Raises:
        ValueError: on seeds that repeat, or a number of threads, GPUs or runs that cannot be.
    """

    name: str
    base: list[str | Mapping[str, Any]]
    settings: dict[str, Any]
    factor: str
    arms: list[StudyArm]
    seeds: list[int]
    split: str = "test"
    compare: dict[str, Any] = field(default_factory=dict)
    cpus_per_run: int = 1
    gpus_per_run: float | None = None
    at_once: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        _seeds(self.seeds)
        _whole("cpus_per_run", self.cpus_per_run)
        _share("gpus_per_run", self.gpus_per_run)
        if self.at_once is not None:
            _whole("at_once", self.at_once)


def read_study(path: str | Path) -> StudyFile:
    """Read and check a study's file; see ``docs/study.md`` for its keys.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: on a key that is not known (near ones are named), or a value that cannot be
            right.
    """
    try:
        content = _with_numbers(yaml.safe_load(Path(path).read_text()))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no study: it should map {', '.join(KEYS)} to values")
    try:
        return parse_study({"name": Path(path).stem, **content})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_study(content: Mapping[str, Any]) -> StudyFile:
    """Check what a study's file holds, ``name`` included.

    Raises:
        ValueError: as for `read_study`.
    """
    check_keys(content, KEYS, "the study")
    missing = [key for key in ("base", "factor", "seeds") if content.get(key) is None]
    if missing or ("values" in content) == ("arms" in content):
        what = ", ".join(missing) if missing else "values or arms, one of them"
        raise ValueError(f"the study lacks {what}")
    factor = str(content["factor"])
    given = _by_value(factor, content["values"]) if "values" in content else _by_arm(content)
    repeated = sorted({arm.name for arm in given if [a.name for a in given].count(arm.name) > 1})
    if repeated or len(given) < 2:
        said = f"{repeated[0]!r} is there twice" if repeated else f"there are {len(given)}"
        raise ValueError(f"two different arms or more are compared; {said}")
    options = _mapping(content.get("compare"), "compare")
    check_keys(options, COMPARE_KEYS, "compare")
    split = content.get("split", "test")
    if split not in SPLITS:
        raise ValueError(f"split is one of {', '.join(SPLITS)}, not {split!r}")
    return StudyFile(
        str(content["name"]),
        as_list(content["base"]),
        _mapping(content.get("set"), "set"),
        factor,
        given,
        _seeds(content["seeds"]),
        split,
        options,
        content.get("cpus_per_run", 1),
        _share("gpus_per_run", content.get("gpus_per_run")),
        content.get("at_once"),
        None if content.get("address") is None else str(content["address"]),
    )


def check_keys(given: Iterable[Any], known: Sequence[str], where: str) -> None:
    """Refuse a key that is not known, naming near ones.

    Raises:
        ValueError: with the key.
    """
    for key in given:
        if key not in known:
            near = near_names(str(key), known)
            hint = f"; did you mean {near}?" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"{where} has no key {key!r}{hint}")


def near_names(name: str, known: Iterable[str], most: int = 3) -> str:
    """Names like this one, by all of the name or its last part, as a sentence has them; or ''."""
    names = list(known)
    last: dict[str, list[str]] = {}
    for one in names:
        last.setdefault(one.rpartition(".")[2], []).append(one)
    whole = get_close_matches(name, names, most, 0.8)
    parts = get_close_matches(name.rpartition(".")[2], last, most, 0.75)
    found = dict.fromkeys([*whole, *(one for part in parts for one in last[part])])
    return " or ".join(map(repr, list(found)[:most]))


def as_list(value: Any) -> list[Any]:
    """A value as a list of one, a list as it is, None as an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "arm"


def _with_numbers(value: Any) -> Any:
    """Turn strings like 1e-5 into the numbers they are meant as; YAML 1.1 wants 1.0e-5."""
    if isinstance(value, dict):
        return {_with_numbers(key): _with_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_numbers(one) for one in value]
    pattern = r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"
    is_number = isinstance(value, str) and re.fullmatch(pattern, value)
    return float(value) if is_number else value


def _by_value(factor: str, values: Any) -> list[StudyArm]:
    """Arms of a configuration key's values; of a mapping the keys are strengths, or names."""
    pairs = values.items() if isinstance(values, Mapping) else [(v, v) for v in as_list(values)]
    arms = []
    for label, value in pairs:
        number = _number(label)
        shown = f"{label:g}" if number is not None else _shown(label)
        arms.append(StudyArm(f"{factor.rpartition('.')[2]} {shown}", number, {factor: value}))
    return arms


def _by_arm(content: Mapping[str, Any]) -> list[StudyArm]:
    arms = []
    for name, given in _mapping(content["arms"], "arms").items():
        arm = _mapping(given, f"arm {name!r}")
        check_keys(arm, ARM_KEYS, f"arm {name!r}")
        strength = arm.get("strength")
        if strength is not None and _number(strength) is None:
            raise ValueError(f"arm {name!r}: strength is a number, not {strength!r}")
        settings = _mapping(arm.get("set"), f"set of arm {name!r}")
        arms.append(StudyArm(name, _number(strength), settings, as_list(arm.get("config"))))
    return arms


def _number(value: Any) -> float | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if whole else None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} maps names to values, got {value!r}")
    return {str(key): one for key, one in value.items()}


def _seeds(value: Any) -> list[int]:
    seeds = list(range(value)) if isinstance(value, int) else value
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is a number of runs an arm, or a list of different integers, not "
                         f"{value!r}")  # fmt: skip
    return list(seeds)


def _whole(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is a whole number from 1, not {value!r}")


def _share(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if _number(value) is None or value < 0:
        raise ValueError(f"{name} is a number from 0, not {value!r}")
    return float(value)
