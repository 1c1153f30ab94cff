"""What a batch holds, and which logits a step made of it, for any LightningModule.

The conventions are the ecosystem's; where they do not reach, one escape serves every callback:
``adapter(pl_module, batch) -> (inputs, targets, forward)``, as a callback's argument or as a method
``adapter(batch)`` of the module.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from firstlight.functional.batches import INPUT_KEYS, TARGET_KEYS, describe


class Example(NamedTuple):
    """A batch, taken apart.

    Attributes:
        inputs: what ``forward`` takes.
        targets: as the batch held them.
        forward: maps inputs to the model's output.
    """

    inputs: Any
    targets: Any
    forward: Callable[[Any], Any]


Adapter = Callable[[Any, Any], tuple[Any, Any, Callable[[Any], Any]]]


class BatchError(TypeError):
    """A batch, or a model's output, that is not a classifier's by the known conventions."""


def read_batch(pl_module: Any, batch: Any, who: str, adapter: Adapter | None = None) -> Example:
    """Find inputs, targets and forward of a batch.

    In this order: ``adapter``; the module's own ``adapter`` method; a sequence ``(inputs, targets,
    ...)``; a mapping with one of `TARGET_KEYS` and one of `INPUT_KEYS`, or with ``input_ids``: it
    is passed whole, as keyword arguments, less the targets.

    Raises:
        BatchError: naming ``who``, the batch's structure and the argument to pass.
    """
    if adapter is not None:
        return Example(*adapter(pl_module, batch))
    own = getattr(pl_module, "adapter", None)
    if callable(own) and not isinstance(own, nn.Module):  # a layer may bear that name
        return Example(*own(batch))
    network = network_of(pl_module, who)
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        return Example(batch[0], batch[1], network)
    if isinstance(batch, Mapping):
        target = next((key for key in TARGET_KEYS if key in batch), None)
        source = next((key for key in INPUT_KEYS if key in batch), None)
        if target is not None and source is not None:
            return Example(batch[source], batch[target], network)
        if target is not None and "input_ids" in batch:
            rest = {key: value for key, value in batch.items() if key not in TARGET_KEYS}
            return Example(rest, batch[target], lambda inputs: network(**inputs))
    raise BatchError(
        f"{who} cannot tell inputs from targets in a batch {describe(batch)}. It knows tuples "
        f"(inputs, targets, ...) and mappings with one of {INPUT_KEYS} or 'input_ids' and one of "
        f"{TARGET_KEYS}. {ADAPTER_HINT}"
    )


def network_of(pl_module: Any, who: str) -> Callable[..., Any]:
    """Return the module; where it has steps and no ``forward``, its one child with parameters.

    Where several have some, what is returned raises `BatchError` when called.
    """
    if _can_be_called(pl_module):
        network: Callable[..., Any] = pl_module
        return network
    children: dict[str, nn.Module] = dict(pl_module.named_children())
    held = [name for name, child in children.items() if any(True for _ in child.parameters())]
    if len(held) == 1 and _can_be_called(children[held[0]]):
        return children[held[0]]

    def missing(*_: Any, **__: Any) -> Any:
        raise BatchError(
            f"{who} calls {type(pl_module).__name__} with inputs, but it has no forward, nor one "
            f"child to call in its place ({', '.join(held) or 'none'} with parameters). Give it a "
            f"forward(inputs) that returns logits. {ADAPTER_HINT}"
        )

    return missing


def _can_be_called(module: Any) -> bool:
    forward = getattr(module, "forward", None)  # what a strategy puts in its place is bound, too
    return not str(getattr(forward, "__module__", "")).startswith(_WITHOUT_FORWARD)


_WITHOUT_FORWARD = ("torch.nn.modules.module", "lightning.pytorch.", "pytorch_lightning.")
"""Where ``forward`` is defined of modules that define none of their own."""

ADAPTER_HINT = (
    "Pass adapter=lambda pl_module, batch: (inputs, targets, forward), or give the module a method "
    "adapter(batch) that returns them"
)


def class_targets(targets: Any, num_classes: int, who: str) -> Tensor:
    """Return targets as int64 (N,); soft targets (N, C) become each example's heaviest class.

    Raises:
        BatchError: where the task is no single-label classification.
    """
    if isinstance(targets, Tensor):
        found: Tensor = targets.squeeze(1) if targets.shape[1:] == (1,) else targets
        if found.ndim == 1 and not found.is_floating_point() and not found.is_complex():
            return found.long()
        if found.shape[1:] == (num_classes,) and found.is_floating_point():
            total = found.detach().sum(1)
            if torch.allclose(total, torch.ones_like(total), atol=1e-3):
                return found.argmax(1)
    raise BatchError(
        f"{who} is for classification, but the targets are {describe(targets)} beside logits of "
        f"{num_classes} classes: expected class indices (N,) or probabilities (N, {num_classes}). "
        f"For another task remove {who}; otherwise: {ADAPTER_HINT}"
    )


def as_logits(output: Any) -> Tensor | None:
    """Return the logits in a model's output, detached, or None where there are none."""
    logits = attached_logits(output)
    return None if logits is None else logits.detach()


def attached_logits(output: Any) -> Tensor | None:
    """Return the logits in a model's output with their graph, or None where there are none.

    Logits are a floating tensor (N, C) with C >= 2; the output is that tensor, a mapping or an
    object with ``logits``, or a tuple whose first item is the logits.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point():
        return output if output.shape[1] >= 2 else None
    return None


_looking_away = [0]


@contextmanager
def unseen_by_taps() -> Iterator[None]:
    """Inside, no `LogitsTap` keeps anything: forwards made for a measurement are not the step's."""
    _looking_away[0] += 1
    try:
        yield
    finally:
        _looking_away[0] -= 1


class Caught(NamedTuple):
    """An output caught on its way.

    Attributes:
        source: the module that put it out; "forward" for the LightningModule itself.
        logits: (N, C), detached.
    """

    source: str
    logits: Tensor


class LogitsTap:
    """Catches the logits that a step's own forward makes, so that none is made a second time.

    Hooks stand on the LightningModule and on the modules it calls directly (its children, looked
    for through ModuleList and ModuleDict, which are never called themselves). Hooks only look:
    outputs are detached and passed on untouched.

    Attributes:
        armed: whether outputs are kept at the moment.
    """

    def __init__(self, pl_module: nn.Module) -> None:
        self.armed = False
        self._seen: list[Caught] = []
        entries = [("forward", pl_module), *_callable_children(pl_module)]
        self._hooks = [module.register_forward_hook(self._hook(name)) for name, module in entries]

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_module: nn.Module, _args: Any, output: Any) -> None:
            if self.armed and not _looking_away[0] and (logits := as_logits(output)) is not None:
                self._seen.append(Caught(name, logits))

        return look

    def take(self, rows: int) -> list[Caught]:
        """Return what the step put out with as many rows as the batch, in order; forget it all.

        An output that a module merely passed on is listed once, by the outermost module.
        """
        seen, self._seen, self.armed = self._seen, [], False
        last = {caught.logits.data_ptr(): caught for caught in seen if len(caught.logits) == rows}
        return list(last.values())

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._seen, self.armed = [], False


def choose_logits(
    outputs: Sequence[Caught], num_classes: int | None, who: str
) -> tuple[Caught | None, list[str]]:
    """Tell the logits from a step's other outputs.

    Of outputs ``num_classes`` wide (where that is known), the module's own ``forward`` comes before
    its children, and logits before probabilities. Where only probabilities are found, their
    logarithm is taken: its softmax gives them back.

    Returns:
        The logits, or None where there are none; and sentences that the user should read.

    Raises:
        BatchError: where several outputs may equally be meant.
    """
    wide = [c for c in outputs if num_classes in (None, c.logits.shape[1])]
    own = [c for c in wide if c.source == "forward"]
    fit = own or (wide if num_classes else wide[-1:])
    raw = [c for c in fit if not are_probabilities(c.logits)]
    fit = raw or fit
    if not fit:
        return None, []
    names = [f"{c.source} (width {c.logits.shape[1]})" for c in outputs]
    if len(fit) > 1:
        raise BatchError(
            f"{who} found several outputs in the step that may be the logits: {', '.join(names)}. "
            f"{ADAPTER_HINT}: forward then makes the logits, in a pass of its own"
        )
    chosen = fit[0]
    notes = [f"logits are the output of {chosen.source}, {chosen.logits.shape[1]} classes."]
    others = sorted({n for n, c in zip(names, outputs, strict=True) if c is not chosen})
    if others:
        notes.append(f"other outputs in the step, not meant: {', '.join(others)}.")
    if not raw:
        notes.append(f"the output of {chosen.source} is probabilities: their logarithm is taken.")
        chosen = Caught(chosen.source, chosen.logits.log())
    return chosen, notes


def are_probabilities(x: Tensor) -> bool:
    """Say whether the rows of x (N, C) are probabilities rather than logits."""
    if len(x) == 0 or not bool((x >= 0).all()):
        return False
    return torch.allclose(
        x.sum(1, dtype=torch.float32), torch.ones_like(x[:, 0]).float(), atol=1e-3
    )


def _callable_children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _callable_children(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child
