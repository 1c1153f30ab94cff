"""The options of ``firstlight study``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from firstlight.measure_options import Option, add_options
from firstlight.study import StudyError, study
from firstlight.study.file import read_study

OF_FILE = ("seeds", "cpus_per_run", "gpus_per_run", "at_once", "address")


def command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight study`` with these arguments."""
    parser = argparse.ArgumentParser(
        prog="firstlight study",
        description="Train every arm of a study with every seed, each in a process of its own, "
        "then compare the arms. The same command goes on where it was interrupted.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("file", help="the study: YAML, or firstlight:study/NAME")
    add_options(parser, OPTIONS)
    given = vars(parser.parse_args(arguments))
    file = read_study(given.pop("file"))
    settings = {**file.settings, **dict(given.pop("set", []))}
    changed = {name: given.pop(name) for name in OF_FILE if name in given}
    try:
        study(replace(file, settings=settings, **changed), **given)
    except StudyError as error:
        sys.exit(f"firstlight study: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, yaml.safe_load(value)


OPTIONS: dict[str, Option] = {
    "set": (
        {"action": "append", "type": _setting, "metavar": "KEY=VALUE"},
        "a configuration key in all arms: data.root=DIR; may be repeated",
    ),
    "out": ({"metavar": "DIR"}, "the study's folder (default: studies/NAME)"),
    "seeds": ({"type": int, "nargs": "+", "metavar": "SEED"}, "instead of the file's"),
    "cpus_per_run": ({"type": int}, "threads of a run (default: the file's, or 1)"),
    "gpus_per_run": ({"type": float}, "GPUs of a run (default: one where there is any)"),
    "at_once": ({"type": int}, "runs at a time (default: as many as there is room for)"),
    "address": ({}, "of a Ray cluster: ray://HOST:PORT, HOST:PORT, auto (default: this machine)"),
    "sequential": ({"action": "store_true"}, "one run after another, without Ray"),
    "dry_run": ({"action": "store_true"}, "check all configurations, list the runs, train none"),
}
