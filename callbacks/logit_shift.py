"""The module that makes the logits of anyone's classifier, and a constant added to them."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.callbacks.batches import (
    Adapter,
    are_probabilities,
    attached_logits,
    class_targets,
    read_batch,
)
from firstlight.callbacks.labelled_sets import own_batches
from firstlight.callbacks.linear_head import (
    check_finite,
    found_by_first_batch,
    quiet,
    view_of_batch,
)
from firstlight.functional.prior_correction import EffectivePrior
from firstlight.functional.ranks import Ranks, gather_or_raise


class MakerError(ValueError):
    """A classifier none of whose modules puts its logits out."""


def find_maker(module: nn.Module, batch: Any, who: str, adapter: Adapter | None) -> tuple[str, int]:
    """Find the innermost module whose output is the logits, by a forward of one batch.

    Modules before a softmax come before it: what is added to their output is added to logits.

    Args:
        module: as `quiet` lends it.
        batch: on its device.
        who: named in errors.
        adapter: see `read_batch`.

    Returns:
        The module's name in the LightningModule, and the number of classes.

    Raises:
        MakerError: where the LightningModule's own forward makes them of several outputs.
        ValueError: where they are not finite.
        BatchError: where the task is no classification.
    """
    inputs, targets, _ = read_batch(module, batch, who, adapter)
    seen: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Any:
        def look(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and attached_logits(output) is not None:
                seen.append((name, output.detach()))

        return look

    parts = [(name, part) for name, part in module.named_modules() if name]
    hooks = [part.register_forward_hook(hook(name)) for name, part in parts]
    try:
        logits = view_of_batch(module, batch, who, adapter)(inputs)
    finally:
        for one in hooks:
            one.remove()
    class_targets(targets, logits.shape[1], who)
    check_finite(logits, who)
    wanted = logits.log() if are_probabilities(logits) else logits.log_softmax(1)
    for name, output in seen:
        if output.shape == logits.shape and not are_probabilities(output):
            found = output.log_softmax(1)
            if torch.allclose(found.float(), wanted.float(), rtol=1e-3, atol=1e-4):
                return name, logits.shape[1]
    raise MakerError(
        f"{who} adds to the logits where a module puts them out, but none of "
        f"{type(module).__name__}'s modules puts out what its forward returns ("
        f"{tuple(logits.shape)}): let a layer of its own make the logits, or add "
        "firstlight.functional.prior_offset to them yourself"
    )


class LogitShift:
    """A hook that adds a constant to the logits, until it is removed.

    Args:
        module: what puts the logits out.
        shift: (K,).
    """

    def __init__(self, module: nn.Module, shift: Tensor) -> None:
        self.shift = shift
        # Before all others, so that whoever looks at the output sees what goes on.
        self._hook = module.register_forward_hook(self._add, prepend=True)
        _forget_compiled_code()

    def _add(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + self.shift.to(output)

    def remove(self) -> None:
        """Take the hook off."""
        self._hook.remove()
        _forget_compiled_code()


def _forget_compiled_code() -> None:
    """Compiled code does not look whether hooks have come or gone."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def check_maker(
    pl_module: Any, loader: Any, move: Any, who: str, adapter: Adapter | None
) -> tuple[str, int]:
    """Find what makes the logits by the first batch of a loader. Collective.

    Raises:
        MakerError, BatchError: as `find_maker`.
        ValueError: where the loader is empty on all ranks.
    """
    return found_by_first_batch(find_maker, pl_module, loader, move, who, adapter)


def estimate_prior(
    pl_module: Any,
    loader: Any,
    num_classes: int,
    move: Any,
    who: str,
    adapter: Adapter | None,
    *,
    offsets: Tensor | None = None,
    class_weights: Tensor | None = None,
    tick: Any = None,
) -> Tensor:
    """Mean posterior (K,) of a module over a loader's examples, each once. Collective.

    In eval mode; the module is left as it was.

    Args:
        pl_module: the LightningModule.
        loader: of labelled examples.
        num_classes: K.
        move: brings a batch to the device.
        who: named in errors.
        adapter: see `read_batch`.
        offsets: what the training loss added to the logits, (K,).
        class_weights: of the training loss, (K,); examples are weighed by them.
        tick: called after each batch.

    Raises:
        ValueError: on logits that are not finite, or no example, on every rank.
        BatchError: as `read_batch`.
    """
    ranks, error = Ranks.current(), None
    device = pl_module.device
    with quiet(pl_module, who, ranks) as module:
        # Made here, where inference mode is off.
        prior = EffectivePrior(num_classes, offsets, "cpu" if device.type == "mps" else device)
        batches = own_batches(loader, move, ranks)
        try:
            for batch, place in batches:
                inputs, targets, _ = read_batch(module, batch, who, adapter)
                logits = view_of_batch(module, batch, who, adapter)(inputs)
                logits = logits.log() if are_probabilities(logits) else logits
                kept = (place(len(logits)) >= 0).to(logits.device)
                y = class_targets(targets, num_classes, who).to(logits.device)[kept]
                weights = None if class_weights is None else class_weights.to(y.device)[y]
                prior.update(logits[kept], weights)
                if tick is not None:
                    tick()
        except Exception as caught:  # raised on every rank below
            error = caught
        gather_or_raise(ranks, {}, error)
        prior.reduce(ranks)
        return prior.compute()
