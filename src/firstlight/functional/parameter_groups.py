"""Optimiser parameter groups, by block and by weight decay."""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module,
    blocks: Mapping[str, Sequence[str]],
    *,
    layer_decay: float = 1.0,
    no_weight_decay: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Make optimiser groups that hold every parameter of the blocks, frozen ones as well.

    Groups that are complete from the first step never change afterwards, so that thawing needs no
    ``add_param_group`` (which breaks several of torch's schedulers) and any checkpoint fits: a
    frozen parameter without a gradient is not moved by any optimiser.

    ``lr_scale`` is ``layer_decay ** d``, ``d`` blocks below the last (BEiT, 2106.08254). torch's
    optimisers and schedulers ignore the key: multiply it into each group's ``lr`` once the
    optimiser exists and before the scheduler does.

    Args:
        model: the owner of the parameters.
        blocks: names of blocks to names of parameters, stem first, as from
            :func:`~firstlight.functional.parameter_blocks.parameter_blocks`.
        layer_decay: in (0, 1]; 1 gives every block the same rate. Give fine blocks below 1.
        no_weight_decay: names (or shell patterns) of further parameters that must not decay;
            ``None`` takes ``model.no_weight_decay()`` where there is one.

    Returns:
        One or two dicts per block, in the order of the blocks: ``params``, ``name``
        (``"layer1/decay"``, ``"layer1/no_decay"``), ``lr_scale``, and ``weight_decay`` 0.0 for
        parameters of at most one dimension, biases and the names above. The others carry no
        ``weight_decay``: the optimiser's own applies.

    Raises:
        ValueError: when ``layer_decay`` is outside (0, 1].
        KeyError: when a block names a parameter that the model does not have.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], not {layer_decay}; 1 turns it off")
    if no_weight_decay is None:
        listed = getattr(model, "no_weight_decay", None)
        no_weight_decay = listed() if callable(listed) else ()
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = []
    for distance, (block, names) in zip(reversed(range(len(blocks))), blocks.items(), strict=True):
        exempt = {n for n in names if _exempt(n, parameters[n].ndim, no_weight_decay)}
        for kind, members in (
            ("decay", [parameters[n] for n in names if n not in exempt]),
            ("no_decay", [parameters[n] for n in names if n in exempt]),
        ):
            if members:
                scale = layer_decay**distance
                group = {"params": members, "name": f"{block}/{kind}", "lr_scale": scale}
                groups.append(group | ({"weight_decay": 0.0} if kind == "no_decay" else {}))
    return groups


def _exempt(name: str, ndim: int, patterns: Collection[str]) -> bool:
    return ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, p) for p in patterns)
