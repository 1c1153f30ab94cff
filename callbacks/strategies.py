"""What a callback needs to know of the trainer's strategy."""

import sys
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


def refuse_sharded(trainer: Any, who: str, remedy: str) -> None:
    """Refuse strategies that split the module between processes.

    Raises:
        ValueError: naming the strategy and the remedy.
    """
    kinds = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    if any(part in kind for kind in kinds for part in _SHARDED):
        raise ValueError(
            f"{who} needs the whole module in every process, but {kinds[0]} splits it. {remedy}"
        )


def refuse_static_graph(trainer: Any, who: str) -> None:
    """Refuse DistributedDataParallel's promise that the same parameters take part in every step.

    Raises:
        ValueError: where the strategy makes it.
    """
    if getattr(trainer.strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise ValueError(
            f"{who} changes which parameters take part, but static_graph=True promises that they "
            "stay the same: leave it out of the strategy"
        )


def follow_requires_grad(trainer: Any) -> None:
    """Tell the strategy and compiled code that other parameters require gradients. Collective.

    DistributedDataParallel reduces the gradients of those parameters only that required one when it
    was made: one thawed later keeps each process's own gradient, and the processes drift apart
    without a word, ``find_unused_parameters`` or not. It is made anew here, so that it reduces what
    is open now, and nothing else travels. Like every new wrapper it takes parameters and buffers of
    the first process.

    Compiled code may hold on to what required gradients: it is dropped, and with it the count of
    recompilations, past whose limit nothing would be compiled any more.
    """
    strategy = trainer.strategy
    if isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
