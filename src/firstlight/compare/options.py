"""The options of ``firstlight compare``."""

import argparse
from collections.abc import Sequence
from typing import get_args

import yaml

from firstlight.compare import compare
from firstlight.compare.comparison import Question
from firstlight.measure_options import Option, add_options


def command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight compare`` with these arguments."""
    parser = argparse.ArgumentParser(
        prog="firstlight compare",
        description="Say which classes' accuracies an arm (an augmentation, a regulariser, any "
        "setting) changes by more than seeds do. Reads the predictions in run folders; writes "
        "tables and figures.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("runs", nargs="*", help="run folders that say their arm (run.json)")
    add_options(parser, OPTIONS)
    given = vars(parser.parse_args(arguments))
    if "arm" in given:
        names = [name for name, _ in given["arm"]]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            parser.error(f"--arm {twice[0]} is given twice: list its runs in one, by commas")
        given["arm"] = dict(given["arm"])
    compare(**given)


def _arm(text: str) -> tuple[str, list[str]]:
    name, _, paths = text.partition("=")
    runs = [path for path in paths.split(",") if path]
    if not name or not runs:
        raise argparse.ArgumentTypeError(f"expected NAME=RUN,RUN, got {text!r}")
    return name, runs


def _strengths(text: str) -> dict[str, float]:
    value = yaml.safe_load(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected {{arm: number}}, got {text!r}")
    try:
        return {str(name): float(number) for name, number in value.items()}
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected {{arm: number}}, got {text!r}") from None


OPTIONS: dict[str, Option] = {
    "arm": (
        {"action": "append", "type": _arm, "metavar": "NAME=RUN,RUN"},
        "put runs into an arm, whatever they say themselves; may be repeated",
    ),
    "arms": (
        {"nargs": "+", "metavar": "NAME"},
        "arms to take, the one to compare with first (default: all, the least strength first)",
    ),
    "strengths": (
        {"type": _strengths, "metavar": "YAML"},
        "'{NAME: NUMBER, ...}': strength of arms whose runs do not say it",
    ),
    "split": ({}, "evaluation to compare (default: test, or the only one that all have)"),
    "question": (
        {"choices": get_args(Question)},
        "whose q and intervals are printed: other seeds on this test set, or new images too "
        "(default: test_set)",
    ),
    "least": ({"type": float}, "smallest effect reported, .02 is two points (default: 0.02)"),
    "worst": ({"type": int}, "classes printed at either end (default: 10)"),
    "draws": ({"type": int}, "of the null band, 0 for none (default: 400)"),
    "level": ({"type": float}, "of intervals and bands (default: 0.95)"),
    "trend": ({"action": "store_true"}, "let the variance depend on a class's accuracy"),
    "real": (
        {"metavar": "FILE"},
        "effects by ImageNet's ReaL labels too: their real.json, or 'timm' for the copy it ships",
    ),
    "seed": ({"type": int}, "of random draws (default: 0)"),
    "out": ({"metavar": "DIR"}, "folder to make (default: class_effects)"),
}
