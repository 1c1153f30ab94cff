"""Names of the sets that a stage evaluates, the same for everything that measures them."""

from collections.abc import Mapping
from typing import Any


def named_sets(stage: str, loaders: Any) -> list[tuple[str, Any]]:
    """Name each loader of a stage: the first by the stage, further ones ``<stage>/<name>``.

    Adding a set thus leaves the keys of the first as they were. A name is the loader's key in a
    mapping, or its place in a sequence.

    Args:
        stage: ``train``, ``val`` or ``test``.
        loaders: one loader, a sequence or a mapping of several, or None for none.

    Example:
        >>> named_sets("test", {"clean": 1, "fog": 2})
        [('test', 1), ('test/fog', 2)]
        >>> named_sets("val", [1, 2])
        [('val', 1), ('val/1', 2)]
    """
    if loaders is None:
        return []
    if isinstance(loaders, Mapping):
        items = list(loaders.items())
    else:
        items = list(enumerate(loaders if isinstance(loaders, list | tuple) else [loaders]))
    return [
        (f"{stage}/{name}" if place else stage, loader)
        for place, (name, loader) in enumerate(items)
    ]


def offered(datamodule: object, name: str) -> Any:
    """Return a DataModule's attribute, or None where it has none or does not know it yet."""
    try:
        return getattr(datamodule, name, None)
    except RuntimeError:  # firstlight's raise it before setup
        return None
