"""The last linear map of anyone's classifier, found by a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from firstlight.callbacks.batches import Adapter, are_probabilities, class_targets, read_batch
from firstlight.callbacks.classifier_view import ClassifierView, borrowed, view_of
from firstlight.callbacks.records import forked_random_states
from firstlight.functional.ranks import Ranks, gather_or_raise

Found = TypeVar("Found")


class HeadError(ValueError):
    """A classifier whose logits are not what one linear layer puts out."""


@dataclass(frozen=True)
class Head:
    """Where the last linear map is.

    Attributes:
        name: of the layer in the LightningModule.
        num_classes: K, what it puts out.
        width: d, what it takes.
    """

    name: str
    num_classes: int
    width: int

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.num_classes * (self.width + 1)

    def layer(self, module: nn.Module) -> nn.Linear:
        """The layer itself."""
        found = module.get_submodule(self.name)
        assert isinstance(found, nn.Linear)
        return found


class Calls:
    """What the linear layers of a module take and put out in a forward."""

    def __init__(self, module: nn.Module, only: str | None = None) -> None:
        self.seen: list[tuple[str, Tensor, Tensor]] = []
        self.others: list[tuple[str, nn.Module, Tensor]] = []
        self._hooks = [
            part.register_forward_hook(self._hook(name))
            for name, part in module.named_modules()
            if only in (None, name) and (isinstance(part, nn.Linear) or not any(part.children()))
        ]

    def _hook(self, name: str) -> Any:
        def look(part: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            if isinstance(part, nn.Linear) and args and isinstance(args[0], Tensor):
                self.seen.append((name, args[0].detach(), output.detach()))
            self.others.append((name, part, output.detach()))

        return look

    def forget(self) -> None:
        """Begin anew."""
        self.seen, self.others = [], []

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self.forget()


@contextmanager
def calls_of(module: nn.Module, only: str | None = None) -> Iterator[Calls]:
    """Watch the linear layers of a module, or the one named."""
    calls = Calls(module, only)
    try:
        yield calls
    finally:
        calls.remove()


def view_of_batch(
    module: nn.Module, batch: Any, who: str, adapter: Adapter | None
) -> ClassifierView:
    """A module seen as a classifier of a batch's inputs."""
    return ClassifierView(module, lambda m: read_batch(m, batch, who, adapter).forward, who)


@contextmanager
def quiet(pl_module: Any, who: str, ranks: Ranks) -> Iterator[nn.Module]:
    """Lend a module for forwards that leave no trace: eval mode, no gradients, random states kept.

    Lends a float32 copy of a module in half precision. Collective.
    """
    owner = view_of(pl_module, lambda m: m, who).owner
    with (
        forked_random_states(pl_module.device),
        borrowed(owner, ranks, weights=False),
        torch.no_grad(),
    ):
        yield owner


def find_head(module: nn.Module, batch: Any, who: str, adapter: Adapter | None) -> Head:
    """Find the linear layer whose output is the logits, by a forward of one batch.

    Args:
        module: as `quiet` lends it.
        batch: on its device.
        who: named in errors.
        adapter: see `read_batch`.

    Raises:
        HeadError: where there is none, naming what makes the logits; or one that cannot be
            refitted: without a bias, re-parametrised, shared with another layer.
        ValueError: where the logits are not finite.
        BatchError: where the task is no classification.
    """
    inputs, targets, _ = read_batch(module, batch, who, adapter)
    with calls_of(module) as calls:
        logits = view_of_batch(module, batch, who, adapter)(inputs)
        class_targets(targets, logits.shape[1], who)
        check_finite(logits, who)
        wanted = logits.log() if are_probabilities(logits) else logits.log_softmax(1)
        makers = {
            name: x
            for name, x, out in calls.seen
            if out.shape == logits.shape and x.ndim == 2 and _same(out.log_softmax(1), wanted)
        }
        if not makers:
            raise HeadError(_why_no_head(calls, logits, who))
        name = list(makers)[-1]
        uses = [one for one, _, _ in calls.seen].count(name)
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    _check_layer(module, layer, name, uses, who)
    return Head(name, layer.out_features, layer.in_features)


def check_finite(logits: Tensor, who: str) -> None:
    """Raise ValueError where logits are not finite, of a diverged module or of bad inputs."""
    bad = (~logits.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(
            f"{who}: the logits of example {int(bad[0])} of the first batch are not finite: look "
            "for a diverged run, or at this input"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4)


def _check_layer(module: nn.Module, layer: nn.Linear, name: str, uses: int, who: str) -> None:
    start = f"{who} found the last linear layer {name!r}, but"
    end = "make the head a plain torch.nn.Linear with a bias"
    if layer.bias is None:
        raise HeadError(f"{start} it has no bias, which a new prior needs: {end}")
    if parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
        raise HeadError(f"{start} its weight is made from other parameters: {end}")
    if uses > 1:
        raise HeadError(f"{start} it is called {uses} times in a forward: {end}")
    for other, part in module.named_modules():
        if part is not layer and any(p is layer.weight for p in part._parameters.values()):
            raise HeadError(f"{start} it shares its weight with {other!r}: {end}")


def _why_no_head(calls: Calls, logits: Tensor, who: str) -> str:
    made = [(n, part) for n, part, out in calls.others if out.numel() == logits.numel()]
    last = f"{made[-1][0]!r}, a {type(made[-1][1]).__name__}" if made else "no single layer"
    linear = {name: tuple(out.shape) for name, _, out in calls.seen}
    shown = ", ".join(f"{name!r} {shape}" for name, shape in list(linear.items())[-3:]) or "none"
    return (
        f"{who} needs logits {tuple(logits.shape)} that one linear layer puts out, but the last "
        f"layer of that size is {last}; linear layers that were called: {shown}. Heads that "
        "average several classifiers, scale cosines or are convolutions cannot be refitted: put "
        "a torch.nn.Linear at the end, or fit firstlight.functional.retrain_last_layer to "
        "features of your own"
    )


def check_head(pl_module: Any, loader: Any, move: Any, who: str, adapter: Adapter | None) -> Head:
    """Find the head by the first batch of a loader. Collective; the same on every rank.

    Raises:
        HeadError, BatchError: as `find_head`.
        ValueError: where the loader is empty on all ranks.
    """
    return found_by_first_batch(find_head, pl_module, loader, move, who, adapter)


def found_by_first_batch(
    find: Callable[[nn.Module, Any, str, Adapter | None], Found],
    pl_module: Any,
    loader: Any,
    move: Any,
    who: str,
    adapter: Adapter | None,
) -> Found:
    """Look for something in the first batch of a loader. Collective; the first rank's holds.

    Args:
        find: called with the module as `quiet` lends it, a batch, ``who`` and ``adapter``.
        pl_module: left as it was.
        loader: of this rank.
        move: brings a batch to the device.
        who: named in errors.
        adapter: see `read_batch`.

    Raises:
        ValueError: where the loader is empty on all ranks.
        Exception: what ``find`` raised on any rank, on all of them.
    """
    ranks, error = Ranks.current(), None
    found: dict[int, Found] = {}
    with quiet(pl_module, who, ranks) as module:
        try:
            batch = next(iter(loader), None)
            if batch is not None:
                found = {ranks.rank: find(module, move(batch), who, adapter)}
        except Exception as caught:  # raised on every rank below
            error = caught
        everywhere = gather_or_raise(ranks, found, error)
    if not everywhere:
        raise ValueError(f"{who}: the loader gave no batch")
    return everywhere[0]
