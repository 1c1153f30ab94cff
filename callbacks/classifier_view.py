"""A LightningModule as measurements need it: inputs to plain logits, and afterwards as it was."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map

from firstlight.callbacks.batches import (
    ADAPTER_HINT,
    BatchError,
    are_probabilities,
    attached_logits,
    unseen_by_taps,
)
from firstlight.functional.batches import describe
from firstlight.functional.measuring import measuring
from firstlight.functional.ranks import Ranks

Bind = Callable[[Any], Callable[[Any], Any]]
"""Gives a module's forward; asked again for a copy of the module."""

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class ClassifierView(nn.Module):
    """A LightningModule seen as a classifier: ``view(inputs) -> logits (n, C)``, with their graph.

    Parameters, buffers and submodules are the LightningModule's own, under its own names; nothing
    is copied or registered twice. Inputs are moved to its device, and floating ones to the type of
    its parameters. What ``forward`` returns may be logits, an object or mapping with ``logits``, or
    a tuple that begins with them; of probabilities the logarithm is taken where ``log`` is set.

    Attributes:
        owner: the LightningModule.
        log: whether outputs are probabilities.
        diverged: whether a forward gave logits that are not finite.
        tick: called after each forward.

    Args:
        owner: see above.
        bind: gives its forward.
        who: named in errors.

    Raises:
        BatchError: in a forward that returns no logits.
    """

    owner: nn.Module

    def __init__(self, owner: nn.Module, bind: Bind, who: str) -> None:
        super().__init__()
        self.__dict__.update({name: owner.__dict__[name] for name in _SHARED})
        # Not through nn.Module, which would register the owner as a child.
        self.__dict__.update(owner=owner, _bind=bind, _forward_of_owner=bind(owner))
        self.who = who
        self.log = self.diverged = False
        self.tick: Callable[[], None] = lambda: None

    @property
    def training(self) -> bool:
        """The owner's mode."""
        owner = self.__dict__.get("owner")
        return bool(owner is not None and owner.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "owner" in self.__dict__:
            self.__dict__["owner"].training = mode

    def forward(self, inputs: Any) -> Tensor:
        """Return logits (n, C)."""
        output = self.__dict__["_forward_of_owner"](self.placed(inputs))
        logits = attached_logits(output)
        if logits is None:
            raise BatchError(
                f"{self.who} is for classification, but found no logits (N, C): forward returned "
                f"{describe(output)}. {ADAPTER_HINT}"
            )
        logits = logits.log() if self.log else logits
        self.diverged |= not _are_finite(logits)
        self.tick()
        return logits

    def placed(self, inputs: Any) -> Any:
        """Return inputs on the module's device, floating ones in the type of its parameters."""
        first = next((p for p in self.parameters() if p.is_floating_point()), None)
        if first is None:
            return inputs

        def place(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.to(first.device, first.dtype if x.is_floating_point() else None)

        return tree_map(place, inputs)

    def looks_like_probabilities(self, inputs: Any) -> tuple[bool, int]:
        """Say of some inputs whether forward gives probabilities, and of how many classes."""
        with measuring(self), torch.no_grad():
            logits = self(inputs)
        return are_probabilities(logits), logits.shape[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "ClassifierView":
        owner, bind = self.__dict__["owner"], self.__dict__["_bind"]
        other = ClassifierView(copy.deepcopy(owner, memo), bind, self.who)
        other.log = self.log
        return other


def _are_finite(logits: Tensor) -> bool:
    try:
        return bool(torch.isfinite(logits).all())
    except RuntimeError:  # under vmap no value can be looked at
        return True


def view_of(owner: nn.Module, bind: Bind, who: str) -> ClassifierView:
    """Return the view of a module; of a float32 copy where parameters are in half precision.

    Raises:
        TypeError: where such a module cannot be copied.
    """
    kinds = {p.dtype for p in owner.parameters()}
    if kinds & {torch.bfloat16, torch.float16}:
        try:
            owner = copy.deepcopy(owner).float()
        except Exception as error:
            raise TypeError(
                f"{who} measures a float32 copy of modules whose weights are in half precision, "
                f"but this one cannot be copied ({error}); train with precision 'bf16-mixed'"
            ) from error
    return ClassifierView(owner, bind, who)


@contextmanager
def borrowed(module: nn.Module, ranks: Ranks, weights: bool) -> Iterator[None]:
    """Inside, a module is free to be measured; on leaving, it is bitwise as it was.

    Modes, ``requires_grad``, ``.grad`` and buffers come back, and weights if ``weights`` is set
    (at the cost of a copy). Inside, the module is in eval mode, gradients are on, autocast and
    ``torch.compile`` are off, no gradient is held, and no `LogitsTap` looks. On several ranks the
    buffers are those of the first, which are the ones that a checkpoint holds: DistributedData-
    Parallel lets BatchNorm's statistics differ between forwards. Collective.
    """
    parameters = list(module.parameters())
    gradients = [p.grad for p in parameters]
    buffers = [
        (part, name, buffer, buffer.detach().clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    before = [p.detach().clone() for p in parameters] if weights else []
    try:
        for p in parameters:
            p.grad = None
        _take_buffers_of_first_rank(module, ranks)
        # Uncompiled, since compiled code hides the layers from whoever looks at each.
        with unseen_by_taps(), torch.compiler.set_stance("force_eager"), measuring(module):
            yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient
            for part, name, buffer, value in buffers:
                part._buffers[name] = buffer
                buffer.copy_(value)
            for p, value in zip(parameters, before, strict=False):
                p.copy_(value)


def _take_buffers_of_first_rank(module: nn.Module, ranks: Ranks) -> None:
    if ranks.world == 1:
        return
    own = {name: buffer.detach().cpu() for name, buffer in module.named_buffers()}
    sent: list[dict[str, Tensor]] = [own]
    distributed.broadcast_object_list(sent, src=0)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in sent[0]:
                buffer.copy_(sent[0][name])
