"""The settings of papers, by arXiv number, beside those that a user gives."""

from collections.abc import Mapping
from typing import Any


def settled(
    who: str,
    preset: str | None,
    presets: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a value for every argument: the given one, the preset's, or the default.

    Args:
        who: named in errors.
        preset: a key of ``presets``, or None.
        presets: arguments by arXiv number.
        given: what the user passed; None where nothing.
        defaults: what holds otherwise.

    Raises:
        ValueError: on an unknown preset, or an argument that contradicts it.
    """
    if preset is not None and preset not in presets:
        raise ValueError(
            f"{who} has no preset {preset!r}; there is {', '.join(map(repr, presets))}. In YAML, "
            "put the number in quotes"
        )
    fixed = {} if preset is None else presets[preset]
    for name, value in fixed.items():
        if given.get(name) is not None and _plain(given[name]) != _plain(value):
            raise ValueError(
                f"{who}: preset {preset!r} means {name}={value!r}, but {name}={given[name]!r} was "
                "given: leave one of them out"
            )
    values = {**defaults, **fixed}
    return {**values, **{name: value for name, value in given.items() if value is not None}}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
