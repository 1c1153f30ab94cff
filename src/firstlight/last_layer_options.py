"""The options of ``firstlight retrain-last-layer`` and ``firstlight correct-prior``."""

import argparse
from collections.abc import Sequence
from typing import Any

from firstlight.callbacks.labelled_sets import SOURCES
from firstlight.functional import RULES
from firstlight.last_layer import correct_prior, retrain_last_layer
from firstlight.measure_options import OPTIONS as MEASURING
from firstlight.measure_options import Option, add_options


def _ridge(text: str) -> float | str:
    return text if text == "loo" else float(text)


_ON: Option = (
    {"choices": SOURCES},
    "examples to fit to: the DataModule's hold-out, its validation or training data (default: "
    "holdout)",
)
_SHARED: dict[str, Option] = {
    "on": _ON,
    **{name: MEASURING[name] for name in ("model", "model_args", "data", "data_args")},
    "weights": (MEASURING["weights"][0], "raw, ema, or the average where there is one (auto)"),
    "device": MEASURING["device"],
    "output": ({"metavar": "FILE"}, "checkpoint to write (default: beside the one given)"),
    "trust": MEASURING["trust"],
}
_RETRAIN: dict[str, Option] = {
    "rule": ({"choices": list(RULES)}, "head to write (default: logit_adjustment)"),
    "rules": ({"nargs": "+", "choices": list(RULES), "metavar": "RULE"}, "heads to compare"),
    "ridge": (
        {"type": _ridge},
        "penalty r/2 |W|^2 of standardised features, or loo: by leave-one-out error for rules of "
        "squared loss (default: 0.01)",
    ),
}
_CORRECT: dict[str, Option] = {
    "tau": ({"type": float}, "how much of the prior is taken out (default: 1)"),
    "target_prior": ({"type": float, "nargs": "+"}, "prior to put in (default: uniform)"),
    "offsets": ({"type": float, "nargs": "+"}, "what the training loss added to the logits"),
}


def retrain_command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight retrain-last-layer`` with these arguments."""
    retrain_last_layer(**_parsed(
        arguments, "retrain-last-layer", _RETRAIN,
        "Fit a checkpoint's last layer anew by several rules, print what each does to every class, "
        "and write a checkpoint with the head of one.",
    ))  # fmt: skip


def correct_command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight correct-prior`` with these arguments."""
    correct_prior(**_parsed(
        arguments, "correct-prior", _CORRECT,
        "Take the prior that a classifier learned out of its last layer's bias, print what that "
        "does to every class, and write a checkpoint.",
    ))  # fmt: skip


def _parsed(
    arguments: Sequence[str], command: str, own: dict[str, Option], words: str
) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog=f"firstlight {command}", description=words, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("checkpoint", help="of any LightningModule")
    add_options(parser, {**own, **_SHARED})
    return vars(parser.parse_args(arguments))
