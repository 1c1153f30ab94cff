"""The sentences that a figure of early training says, computed from what it shows."""

import numpy as np

from firstlight.figures.measurements import Series, aligned

NAMES = {
    "average": "Average sharpness",
    "worst_case": "Worst-case sharpness",
    "lambda_max": "The largest Hessian eigenvalue",
    "edge_of_stability": "The edge-of-stability ratio",
}
"""How kinds of sharpness begin a sentence."""

SAID = 0.2
"""Least share of the whole that makes a block worth naming."""


def short(value: float) -> str:
    """Two significant digits, as one would say them.

    Example:
        >>> short(0.3049), short(77.7), short(1234.0), short(-0.00012)
        ('0.3', '78', '1,200', '-0.00012')
    """
    return f"{float(f'{value:.2g}'):,g}"


def points(value: float) -> str:
    """A change of accuracy in points, with a sign unless it is nothing.

    Example:
        >>> points(-0.1484), points(-0.0001)
        ('-14.8', '0.0')
    """
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def course(name: str, series: Series) -> str:
    """Say in one sentence how a quantity moved, as far as two values can be told apart.

    Example:
        >>> steps, errors = np.array([0.0, 60, 500]), np.full(3, 0.1)
        >>> course("It", Series(steps, np.array([5.0, 21, 0.3]), errors, 256))
        'It peaks at step 60, 4.2 times its start, and falls to 0.3 by step 500'
    """
    shown = series.finite
    if not len(shown.steps):
        return f"{name} was measured, and never a finite number"
    if not np.isfinite(series.values[-1]):
        lost = series.steps[np.searchsorted(series.steps, shown.steps[-1]) + 1]
        return f"{course(name, shown)}, and is no number from step {int(lost):,} on"
    steps = [f"step {int(step):,}" for step in shown.steps]
    values, last = [short(value) for value in shown.values], len(shown.values) - 1
    top, low = int(shown.values.argmax()), int(shown.values.argmin())
    if last == 0:
        error = f" ± {short(shown.errors[0])}" if np.isfinite(shown.errors[0]) else ""
        return f"{name} is {values[0]}{error} at {steps[0]}"
    if _differ(shown, top, 0) and _differ(shown, top, last):
        peak = f"peaks at {steps[top]}, {_against_start(shown, top)}"
        return f"{name} {peak}, and falls to {values[last]} by {steps[last]}"
    if _differ(shown, low, 0) and _differ(shown, low, last):
        dip = f"falls from {values[0]} to {values[low]} at {steps[low]}"
        return f"{name} {dip} and is back at {values[last]} by {steps[last]}"
    if _differ(shown, 0, last):
        verb = "rises" if shown.values[last] > shown.values[0] else "falls"
        return f"{name} {verb} from {values[0]} at {steps[0]} to {values[last]} at {steps[last]}"
    return f"{name} stays near {short(float(np.median(shown.values)))} up to {steps[last]}"


def _against_start(series: Series, at: int) -> str:
    start, value = series.values[0], series.values[at]
    return f"{short(value / start)} times its start" if start > 0 else f"at {short(value)}"


def _differ(series: Series, one: int, other: int) -> bool:
    """Whether two values are told apart: by three standard errors, and by a twentieth."""
    pair = [one, other]
    noise = 3 * np.hypot(*np.nan_to_num(series.errors[pair]))
    least = max(noise, 0.05 * np.abs(series.values[pair]).max())
    return bool(abs(series.values[one] - series.values[other]) > least)


def largest_block(total: Series, blocks: dict[str, Series]) -> str | None:
    """Say which block carries most of the sum over the run, or None where none stands out."""
    shares = np.nansum(np.maximum(aligned(blocks, total.steps), 0), axis=1)
    if not shares.sum() or not np.isfinite(total.values).any():
        return None
    share = shares.max() / shares.sum()
    if share < SAID:
        return None
    part = "most of it" if share > 0.5 else f"the largest part, {100 * share:.0f} %"
    return f"{list(blocks)[int(shares.argmax())]} carries {part}"
