"""The loss of a probe set as a function of the weights, which are never touched."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from firstlight.functional.measuring import (
    batches_of,
    chosen_parameters,
    logits_of,
    measuring,
    number_of_examples,
    original,
    take,
)
from firstlight.functional.ranks import Ranks, gather_or_raise
from firstlight.functional.seeding import fold_in, keyed_randomness

T = TypeVar("T")

BACKWARD_EXAMPLES = 64
"""Most examples whose activations a gradient holds at once, whatever the batches are."""


class ProbeLoss:
    """Cross-entropy of fixed examples, cut into batches, at any weights.

    The chosen parameters are one flat vector; the model is called with views of it in place of
    them, a tied parameter everywhere with the same view, so that no weight, gradient or buffer of
    the model changes.

    Attributes:
        names: of the chosen parameters.
        shapes: theirs.
        weights: their present values (P,), a copy without history.
        batches: consecutive examples.
        count: of all examples.
        shares: of each batch in all examples.

    Args:
        model: called as ``model(inputs) -> logits (n, K)``; compiled and distributed wrappers are
            taken off.
        inputs: a tensor, or any nesting of tensors, with examples along the first axis.
        targets: class indices (n,) or probabilities (n, K).
        params: names of parameters; None: all that require gradients.
        batch_size: examples in a batch.
        normalize_logits: subtract each example's mean logit and divide by the norm of the rest.

    Raises:
        ValueError: on no example, no parameter, half precision, parameters of several types or
            devices, or targets that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        targets: Tensor,
        *,
        params: Iterable[str] | None,
        batch_size: int,
        normalize_logits: bool,
    ) -> None:
        self.model, self.normalize_logits = original(model), normalize_logits
        self.inputs, self.targets = tree_map(_trainable_on, (inputs, targets))
        self.count = number_of_examples(inputs)
        self.batches = batches_of(self.count, batch_size)
        self.shares = [(rows.stop - rows.start) / self.count for rows in self.batches]
        chosen = chosen_parameters(self.model, params)
        _check_parameters(chosen)
        _check_targets(targets, self.count)
        self.names = list(chosen)
        self.shapes = [p.shape for p in chosen.values()]
        with torch.inference_mode(False):
            self.weights = torch.cat([p.detach().reshape(-1) for p in chosen.values()])

    @contextmanager
    def measuring(self, *, double_backward: bool = False) -> Iterator[None]:
        """Inside, the model is as measurements need it, and only the flat vector is learned."""
        with measuring(self.model, (), double_backward=double_backward):
            yield

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views (or, where gradients flow, slices) of a flat vector (P,) by name."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes])
        named = zip(self.names, parts, self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in named}

    def normal(self, seed: int, *keys: int) -> Tensor:
        """Return standard normal noise (P,), on the parameters' device.

        Each parameter's is a stream of its own, keyed by the seed, the keys and its name, so that
        which others are chosen changes nothing.
        """
        flat = torch.empty_like(self.weights)
        for name, part in self.split(flat).items():
            digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
            stream = int.from_bytes(digest, "little", signed=True)
            generator = torch.Generator(flat.device).manual_seed(fold_in(seed, *keys, stream))
            part.normal_(generator=generator)
        return flat

    def losses(self, rows: slice, weights: Tensor) -> Tensor:
        """Return the losses of some examples at the weights (P,), one forward pass.

        Raises:
            ValueError: where the logits are none, or not finite.
        """
        # Copies, because a module may write to its buffers in eval mode too, or draw at random.
        buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        replaced = {**buffers, **self.split(weights)}
        with keyed_randomness(0, rows.start, device=weights.device):
            logits = logits_of(
                lambda x: functional_call(self.model, replaced, (x,)),
                take(self.inputs, rows),
                rows.stop - rows.start,
            )
        targets = self.targets[rows]
        _check_classes(targets, logits.shape[1])
        if self.normalize_logits:
            logits = logits - logits.mean(1, keepdim=True)
            logits = logits / logits.norm(dim=1, keepdim=True).clamp_min(1e-10)
        if targets.is_floating_point():
            targets = targets.to(logits.dtype)
        return F.cross_entropy(logits, targets, reduction="none")

    def loss(self, rows: slice, weights: Tensor) -> float:
        """Return the mean loss of some examples at the weights (P,), without gradients."""
        with torch.no_grad():
            return mean(self.losses(rows, weights))

    def loss_and_gradient(self, rows: slice, weights: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss of some examples and its gradient (P,): one forward, one backward.

        In parts of at most ``BACKWARD_EXAMPLES``, so that memory does not grow with the batch.
        """
        leaf = weights.detach().requires_grad_()
        gradient = torch.zeros_like(weights)
        parts = []
        for start in range(rows.start, rows.stop, BACKWARD_EXAMPLES):
            part = self.losses(slice(start, min(start + BACKWARD_EXAMPLES, rows.stop)), leaf)
            parts.append(part.detach())
            if part.requires_grad:  # else no chosen parameter has a part in the loss
                total = part.sum() / (rows.stop - rows.start)
                gradient += torch.autograd.grad(total, leaf)[0]
        return mean(torch.cat(parts)), gradient

    def over_batches(self, ranks: Ranks, measure: Callable[[int, slice], T]) -> list[T]:
        """Return ``measure(number, rows)`` of every batch, each by one rank. Collective.

        Raises:
            Exception: what ``measure`` raised on this rank.
            RuntimeError: naming what it raised on another.
        """
        parts: dict[int, T] = {}
        error = None
        try:
            for number, rows in ranks.share(self.batches):
                parts[number] = measure(number, rows)
        except Exception as caught:
            error = caught
        return gather_or_raise(ranks, parts, error)


def mean(losses: Tensor) -> float:
    """Return the mean of losses, summed in double precision (on the CPU: not all devices can)."""
    return float(losses.detach().cpu().double().mean())


def require_positive(**values: float) -> None:
    """Refuse an argument that is not a positive finite number.

    Raises:
        ValueError: naming the argument.
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, not {value}")


@contextmanager
def moved_by(rho: float) -> Iterator[None]:
    """Inside, errors of the forward pass say that the weights were moved, and how far."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"with the weights moved by rho={rho}: {error}") from error


def _trainable_on(value: Any) -> Any:
    """Return a tensor that autograd may save: a copy of what inference mode made."""
    if isinstance(value, Tensor) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value


def _check_parameters(chosen: dict[str, nn.Parameter]) -> None:
    if not sum(p.numel() for p in chosen.values()):
        raise ValueError(
            "there is no parameter to move: every parameter of the model is frozen; name some in "
            "params, or unfreeze them"
        )
    kinds = sorted({f"{p.dtype} on {p.device}" for p in chosen.values()})
    if len(kinds) > 1:
        raise ValueError(
            f"the parameters to move are {', '.join(kinds)}: they must be of one type on one "
            "device; name some in params, or move the model"
        )
    half = [
        name
        for name, p in chosen.items()
        if not p.is_floating_point() or torch.finfo(p.dtype).bits < 32
    ]
    if half:
        raise ValueError(
            f"{half[0]} is {chosen[half[0]].dtype}, in which rounding hides what is measured; "
            "measure copy.deepcopy(model).float(), with float inputs"
        )


def _check_targets(targets: Tensor, count: int) -> None:
    if targets.ndim and len(targets) != count:
        raise ValueError(f"there are {len(targets)} targets for {count} examples")
    soft = targets.is_floating_point()
    if targets.ndim != (2 if soft else 1) or targets.dtype == torch.bool:
        raise ValueError(
            "targets must be class indices (n,) of an integer type or probabilities (n, K) of a "
            f"floating type, not {tuple(targets.shape)} of {targets.dtype}"
        )
    if soft and not bool((targets >= 0).all() and ((targets.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError("soft targets must be probabilities: no negative, each row of sum 1")


def _check_classes(targets: Tensor, classes: int) -> None:
    if targets.is_floating_point():
        if targets.shape[1] != classes:
            raise ValueError(f"targets of {targets.shape[1]} classes for {classes} logits")
    elif not bool(((targets >= 0) & (targets < classes)).all()):
        raise ValueError(
            f"targets from {int(targets.min())} to {int(targets.max())} for logits of {classes} "
            f"classes: expected 0 to {classes - 1}; leave out examples to be ignored"
        )
