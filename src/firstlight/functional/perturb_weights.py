"""Gaussian noise on some of a network's weights: laid on before a gradient, taken off by copy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from firstlight.functional.seeding import fold_in, keyed_generator

Mode = Literal["round_robin", "random", "all"]
GroupBy = Literal["matrix", "tensor", "module"]
Scale = Literal["rms", "absolute", "filter"]
Groups = Mapping[str, Mapping[str, Tensor]]
"""Parameters by their names, in named groups."""

_CHOICE, _DRAW = 1, 2  # first keys of the random numbers of a seed
_ROOT = "(root)"


@dataclass(frozen=True)
class NoiseRule:
    """Which weights get noise together, how many groups at a time, and what sigma is a share of.

    The defaults are ours: a fixed standard deviation does not carry over from one width to another,
    and of a ResNet's tensors two thirds are biases and norm parameters, so that the published rule
    (`tensor`, `absolute`) spends two steps of three on those.

    Attributes:
        mode: ``round_robin`` gives noise to group t mod M at step t, ``random`` to one drawn alike,
            ``all`` to every group with sigma / sqrt(M): to second order all three add the same
            ``sigma² / (2 M) tr Hessian`` to the loss.
        group_by: ``matrix`` (each tensor of two dimensions or more; others get none), ``tensor``
            (each tensor), or ``module`` (what one layer owns: weight and bias).
        scale: standard deviation of an element's noise. ``absolute``: sigma. ``rms``: sigma times
            the root mean square of its tensor, so that E‖noise‖² = sigma² ‖W‖². ``filter``: sigma
            times the norm of its row (all that shares its index in the first dimension; a tensor
            of one dimension is one row), which is sqrt(fan-in) larger than ``rms``.

    Raises:
        ValueError: on another word.
    """

    mode: Mode = "round_robin"
    group_by: GroupBy = "matrix"
    scale: Scale = "rms"

    def __post_init__(self) -> None:
        for name, known in (("mode", Mode), ("group_by", GroupBy), ("scale", Scale)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(known))}, "
                    f"not {getattr(self, name)!r}"
                )


def noise_groups(model: nn.Module, group_by: GroupBy = "matrix") -> dict[str, dict[str, Tensor]]:
    """Sort a model's parameters into the groups that get noise together, in the model's order.

    Frozen parameters are among them, since what is frozen may change; a tied one appears once.

    Args:
        model: any module.
        group_by: see `NoiseRule`.

    Raises:
        ValueError: on another word, or where there is no group, such as a model without matrices.
    """
    NoiseRule(group_by=group_by)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if group_by == "matrix" and parameter.ndim < 2:
            continue
        group = (name.rpartition(".")[0] or _ROOT) if group_by == "module" else name
        groups.setdefault(group, {})[name] = parameter
    if not groups:
        wanted = "tensor of two or more dimensions" if group_by == "matrix" else "parameter"
        raise ValueError(
            f"{type(model).__name__} has no {wanted} to perturb"
            + ("; group_by='tensor' takes the others too" if group_by == "matrix" else "")
        )
    return groups


class Perturbation:
    """Noise that lies on some weights until `restore`, or until the ``with`` block ends.

    Attributes:
        clean: the weights without it, by name; empty once restored.
        groups: names of the groups that got it.
    """

    def __init__(self, groups: tuple[str, ...] = ()) -> None:
        self.groups = groups
        self.clean: dict[str, Tensor] = {}
        self._noisy: dict[str, tuple[Tensor, int, int]] = {}

    @torch.no_grad()
    def add(self, name: str, weight: Tensor, noise: Tensor) -> None:
        """Keep a copy of a weight, then add the noise in place."""
        self.clean[name] = weight.detach().clone()
        self._noisy[name] = weight, *_marks(weight)
        weight.add_(noise)
        self._noisy[name] = weight, *_marks(weight)

    @torch.no_grad()
    def restore(self, check: bool = True) -> None:
        """Copy the clean weights back, bit for bit; does nothing the second time.

        Subtracting the noise instead would leave a rounding error in every step.

        Args:
            check: whether to raise if a weight was changed under the noise.

        Raises:
            RuntimeError: where something else has changed a weight meanwhile, such as an update
                that was made too early and is lost now; the clean weights are back all the same.
        """
        changed = [name for name, (p, *marks) in self._noisy.items() if [*_marks(p)] != marks]
        for name, (weight, *_) in self._noisy.items():
            weight.copy_(self.clean[name])
        self.clean, self._noisy = {}, {}
        if check and changed:
            raise RuntimeError(
                f"{', '.join(changed[:3])} changed while noise lay on it, and that change is lost: "
                "restore the weights before the optimiser's step (or whatever wrote to them)"
            )

    def __enter__(self) -> "Perturbation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.restore(check=kind is None)


def _marks(weight: Tensor) -> tuple[int, int]:
    """What an update in place, or another ``.data``, changes; writing into ``.data`` does not."""
    return weight._version, weight.data_ptr()


def perturb_weights(
    groups: Groups,
    sigma: float,
    step: int,
    rule: NoiseRule | None = None,
    *,
    seed: int = 0,
    rank: int | None = None,
) -> Perturbation:
    """Add Gaussian noise to weights, for a gradient taken there (arXiv 2206.04613).

    Take the gradient inside, update outside::

        groups = noise_groups(model)
        for step, (x, y) in enumerate(loader):
            with perturb_weights(groups, 0.1, step):
                loss(model(x), y).backward()
            optimizer.step()

    The noise is a function of ``seed``, ``step``, ``rank`` and a parameter's place in the groups:
    no random state is read or moved, a resumed run draws the same, and freezing one parameter
    changes no other's. It is drawn on the parameters' device, whose kinds differ in what they draw.
    Parameters that require no gradient get none, and M counts the groups with others.

    Cost: no pass; time in proportion to the perturbed elements. Memory: a copy of them.

    Args:
        groups: from `noise_groups`, in which ``rule.group_by`` is already applied.
        sigma: noise level, 0 or more; its unit is the rule's scale.
        step: 0 or more; of optimiser updates, so that the micro-batches of one share their noise.
        rule: by default one matrix in turn, relative to its root mean square.
        seed: any integer.
        rank: of this process where each is to have noise of its own; None: the same on all. Which
            group gets it is the same on all ranks either way.

    Returns:
        A handle that restores the weights; with a sigma of 0 it holds nothing.

    Raises:
        ValueError: when sigma is negative or not finite.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and 0 or more, not {sigma!r}")
    rule = rule or NoiseRule()
    live = _live(groups)
    if not live or sigma == 0:
        return Perturbation()
    if rule.mode == "all":
        chosen, sigma = list(live), sigma / math.sqrt(len(live))
    elif rule.mode == "random":
        chosen = [list(live)[fold_in(seed, _CHOICE, step) % len(live)]]
    else:
        chosen = [list(live)[step % len(live)]]
    places = {
        name: place for place, name in enumerate(n for group in groups.values() for n in group)
    }
    owner = 0 if rank is None else rank + 1
    noise = Perturbation(tuple(chosen))
    try:
        for name, weight in ((n, p) for group in chosen for n, p in live[group].items()):
            generator = keyed_generator(
                seed, _DRAW, step, owner, places[name], device=weight.device
            )
            noise.add(name, weight, _drawn(weight, sigma, rule.scale, generator))
    except BaseException:
        noise.restore(check=False)
        raise
    return noise


def _live(groups: Groups) -> dict[str, dict[str, Tensor]]:
    """Groups of what is trained now."""
    live = {
        group: {name: p for name, p in held.items() if p.requires_grad}
        for group, held in groups.items()
    }
    return {group: held for group, held in live.items() if held}


def _drawn(weight: Tensor, sigma: float, scale: Scale, generator: torch.Generator) -> Tensor:
    """Noise for a weight, drawn in the order of its indices whatever its memory format."""
    normal = torch.randn(
        weight.shape, generator=generator, dtype=weight.dtype, device=weight.device
    )
    return normal.mul_(_deviation(weight, sigma, scale))


def _deviation(weight: Tensor, sigma: float, scale: Scale) -> Any:
    """Standard deviation of the noise: a number, or a tensor that broadcasts."""
    if scale == "absolute":
        return sigma
    value = weight.detach()
    kind = torch.promote_types(value.dtype, torch.float32)  # norms of half precision overflow
    if scale == "rms":
        deviation = torch.linalg.vector_norm(value, dtype=kind) * (sigma / math.sqrt(value.numel()))
    else:
        rows = value.flatten(1) if value.ndim > 1 else value.reshape(1, -1)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=kind) * sigma
        deviation = norms.reshape(-1, *[1] * (value.ndim - 1)) if value.ndim > 1 else norms[0]
    return deviation.to(value.dtype)


@dataclass(frozen=True)
class NoiseSummary:
    """What a rule means for a network as it is now.

    Attributes:
        groups: M, of those that are trained.
        small: how many of them hold tensors of at most one dimension only.
        tensors: how many tensors get noise, over the steps.
        lowest: the smallest ratio, over tensors, of the noise's root mean square to the weights'.
        highest: the largest.
        zero: tensors that are zero: they get no relative noise, and no ratio.
    """

    groups: int
    small: int
    tensors: int
    lowest: float
    highest: float
    zero: int


def summarise_noise(groups: Groups, sigma: float, rule: NoiseRule) -> NoiseSummary:
    """Set the noise of each tensor beside its weights; sigma / sqrt(M) in the mode ``all``.

    Raises:
        ValueError: when nothing of the groups is trained.
    """
    live = _live(groups)
    if not live:
        raise ValueError("no parameter of the groups requires a gradient: there is none to perturb")
    share = sigma / math.sqrt(len(live)) if rule.mode == "all" else sigma
    weights = [p.detach() for group in live.values() for p in group.values()]
    ratios = [ratio for p in weights if (ratio := _ratio(p, share, rule.scale)) is not None]
    return NoiseSummary(
        groups=len(live),
        small=sum(all(p.ndim < 2 for p in group.values()) for group in live.values()),
        tensors=len(weights),
        lowest=min(ratios, default=math.nan),
        highest=max(ratios, default=math.nan),
        zero=len(weights) - len(ratios),
    )


def _ratio(weight: Tensor, sigma: float, scale: Scale) -> float | None:
    rms = float(weight.double().square().mean().sqrt())
    noise = torch.as_tensor(_deviation(weight, sigma, scale)).double().square().mean().sqrt()
    return float(noise) / rms if rms else None
