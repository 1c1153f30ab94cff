"""Notice a loss that is no longer a number."""

import torch
from torch import Tensor


class LossWatch:
    """Remember the first step whose loss was infinite or NaN.

    On the CPU every loss is looked at as it comes, before it reaches the weights. Elsewhere looking
    would wait for the device at every step, so only ``check`` does.
    """

    def __init__(self) -> None:
        self._first_bad: Tensor | None = None

    def see(self, loss: Tensor, step: int) -> bool:
        """Take note of a step's loss; returns True when it is already known to be bad."""
        loss = loss.detach()
        if loss.device.type == "cpu":
            bad = not bool(torch.isfinite(loss))
            if bad:
                self._first_bad = torch.tensor(step)
            return bad
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, dtype=torch.int64, device=loss.device)
        is_new = (self._first_bad < 0) & ~torch.isfinite(loss)
        self._first_bad = self._first_bad.masked_fill(is_new, step)
        return False

    def check(self, epoch: int, learning_rate: float | None) -> None:
        """Raise FloatingPointError when some loss since the last ``reset`` was not finite.

        The learning rate is for the message; None where the optimiser finds its own.
        """
        step = -1 if self._first_bad is None else int(self._first_bad)
        if step >= 0:
            rate = "the optimiser's own" if learning_rate is None else f"{learning_rate:g}"
            raise FloatingPointError(
                f"the training loss is not finite at step {step} (epoch {epoch}, learning rate "
                f"{rate}). Lower the learning rate or warm it up (WarmupCosineLR), clip "
                "gradients (trainer.gradient_clip_val), use bf16-mixed instead of 16-mixed, and "
                "look for broken images or a loss weight of infinity (a class without examples)."
            )

    def reset(self) -> None:
        """Forget, at the start of a run."""
        self._first_bad = None
