"""Lightning callbacks: gradual unfreezing, Fisher trace, sharpness, per-class metrics."""

from importlib.metadata import version

__version__ = version("firstlight")
__all__ = ["__version__"]
