"""``firstlight data`` and ``firstlight init``: looking at images before training on them."""

from firstlight.data.check import data_check
from firstlight.data.command import data_show
from firstlight.data.init import init
from firstlight.data.pack import data_pack

__all__ = ["data_check", "data_pack", "data_show", "init"]
