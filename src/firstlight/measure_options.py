"""The options of ``firstlight measure``."""

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import yaml

from firstlight.checkpoints import Weights
from firstlight.functional.fisher_trace import Estimator
from firstlight.measure import MEASURES, measure

Option = tuple[dict[str, Any], str]
"""What ``add_argument`` takes, and the words of the help."""


def command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight measure`` with these arguments."""
    parser = argparse.ArgumentParser(
        prog="firstlight measure",
        description="Measure Fisher trace and sharpness at a run's checkpoints, as the monitors "
        "do during a run. Writes a run folder with tables and a figure.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("checkpoints", nargs="+", help="of one run, or folders of them")
    add_options(parser, OPTIONS)
    measure(**vars(parser.parse_args(arguments)))


def add_options(parser: argparse.ArgumentParser, options: dict[str, Option]) -> None:
    """Add options, each in both spellings, since LightningCLI's have underscores."""
    for name, (settings, words) in options.items():
        names = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
        parser.add_argument(*names, help=words, **settings)


def _mapping(text: str) -> dict[str, Any]:
    value = yaml.safe_load(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected {{name: value}}, got {text!r}")
    return value


OPTIONS: dict[str, Option] = {
    "measures": (
        {"nargs": "+", "choices": MEASURES, "metavar": "MEASURE"},
        f"any of {', '.join(MEASURES)} (default: fisher_trace average)",
    ),
    "model": ({"metavar": "CLASS"}, "import path of the LightningModule, if not firstlight's"),
    "model_args": ({"type": _mapping, "metavar": "YAML"}, "arguments that it did not save"),
    "data": (
        {"metavar": "CLASS|YAML"},
        "a LightningDataModule, or a YAML file that names one (default: the run's own)",
    ),
    "data_args": ({"type": _mapping, "metavar": "YAML"}, "its arguments: '{root: DIR}'"),
    "weights": (
        {"choices": get_args(Weights)},
        "those being trained, their moving average, or the average where there is one "
        "(default: raw, as the monitors measure)",
    ),
    "probe_size": ({"type": int}, "examples to measure on (default: 256)"),
    "estimator": (
        {"choices": get_args(Estimator)},
        "of the Fisher trace (default: importance)",
    ),
    "rho": ({"type": float}, "size of sharpness's perturbations (default: 0.01)"),
    "batch_norm": (
        {"choices": ("running", "warm")},
        "BatchNorm's statistics: the run's, or the probe set's (default: running)",
    ),
    "seed": ({"type": int}, "of probe set and random numbers (default: the run's)"),
    "device": ({}, "cpu, cuda, ... (default: a GPU if there is one)"),
    "output": ({"metavar": "RUNDIR"}, "run folder to make (default: beside the checkpoints)"),
    "trust": (
        {"action": "append", "metavar": "TYPE"},
        "import path of a type that the checkpoints may hold; may be repeated",
    ),
}
