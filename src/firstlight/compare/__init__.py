"""``firstlight compare``: which classes an arm changes beyond seed noise."""

from firstlight.compare.command import compare

__all__ = ["compare"]
