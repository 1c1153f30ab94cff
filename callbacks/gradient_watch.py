"""Whether gradients reach what was thawed."""

from collections.abc import Mapping, Sequence

from torch import Tensor

PATIENCE = 10
"""Updates within which a gradient must have come."""


class GradientWatch:
    """Waits for a first gradient in each block that was opened."""

    def __init__(self) -> None:
        self._awaited: dict[str, tuple[int, Sequence[Tensor]]] = {}

    def expect(self, blocks: Mapping[str, Sequence[Tensor]], step: int) -> None:
        """Begin to wait for the parameters of blocks, opened at ``step``."""
        self._awaited |= {block: (step, held) for block, held in blocks.items()}

    def look(self) -> None:
        """See, after a backward pass, which gradients have come."""
        for block, (_, held) in list(self._awaited.items()):
            if any(p.grad is not None for p in held):
                del self._awaited[block]

    def check(self, step: int, who: str) -> None:
        """Refuse to go on where none came.

        Raises:
            RuntimeError: naming the block, and what may be the cause.
        """
        for block, (opened, _) in self._awaited.items():
            if step - opened >= PATIENCE:
                raise RuntimeError(
                    f"{who} opened {block!r} at step {opened}, but no gradient has reached it "
                    f"until step {step}. Activation checkpointing with use_reentrant=True drops "
                    "the gradients of a block whose input needs none: use use_reentrant=False. Or "
                    "the block's output is detached, or not part of the loss"
                )
