"""timm's optimiser factory under a class path that LightningCLI can configure."""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer


class TimmOptimizer(Optimizer):
    """Any optimiser of ``timm.optim.create_optimizer_v2``, chosen by its name.

    LightningCLI takes ``init_args`` of classes only, and the factory is a function. Constructing
    this class returns the factory's optimiser; no instance of the class itself ever exists::

        optimizer:
          class_path: TimmOptimizer
          init_args: {opt: lamb, lr: 0.005, weight_decay: 0.02}

    From Python pass ``functools.partial(timm.optim.create_optimizer_v2, opt="lamb", lr=0.005)``.

    Args:
        params: parameters or parameter groups.
        opt: a name of ``timm.optim.list_optimizers()``.
        lr: learning rate; ``None`` takes the optimiser's own.
        weight_decay: of the groups that do not set their own.
        momentum: for those optimisers that have one.
        kwargs: further arguments of the optimiser.
    """

    def __new__(  # type: ignore[misc]  # returns what the factory makes
        cls,
        params: Iterable[Any],
        opt: str = "adamw",
        lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        **kwargs: Any,
    ) -> Optimizer:
        """Return the optimiser that timm makes of these arguments."""
        from timm.optim import create_optimizer_v2

        optimizer: Optimizer = create_optimizer_v2(
            params, opt=opt, lr=lr, weight_decay=weight_decay, momentum=momentum, **kwargs
        )
        return optimizer

    def __init__(
        self,
        params: Iterable[Any],
        opt: str = "adamw",
        lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        **kwargs: Any,
    ) -> None:  # only its signature is read: __new__ returns another class
        raise NotImplementedError
