"""The blocks of whatever network a LightningModule holds, by the module's own names."""

from collections.abc import Iterator

from torch import nn

from firstlight.functional.given_blocks import Given
from firstlight.functional.parameter_blocks import knows_its_parts, parameter_blocks


def blocks_of(
    module: nn.Module, *, coarse: bool = True, given: Given | None = None
) -> dict[str, list[str]]:
    """Return `parameter_blocks` of the backbone in a LightningModule, by the module's own names.

    The backbone is the one outermost submodule that knows its own parts (timm's ``get_classifier``
    or ``group_matcher``). What is outside the backbone (a loss with parameters, another projection)
    follows **after** ``head``, wherever it runs, in blocks named by the part of the module that
    holds it, with ``_`` appended where the backbone has a block of that name; a classifier beside
    a backbone without one comes last likewise. Where no submodule knows its parts, or several do,
    the backbone is the module itself, or the one child that holds all parameters, and so on until
    several hold them.

    Args:
        module: the LightningModule, or any module.
        coarse: see `parameter_blocks`.
        given: likewise, in the names that ``module.named_parameters()`` has (``model.layer1...``).

    Raises:
        ValueError: as `parameter_blocks`.
    """
    if given is not None:
        return parameter_blocks(module, given=given)
    path, backbone = _backbone(module)
    parameters = dict(backbone.named_parameters())
    names = {id(p): name for name, p in module.named_parameters()}
    found = parameter_blocks(backbone, coarse=coarse)
    blocks = {b: [names.pop(id(parameters[n])) for n in held] for b, held in found.items()}
    for name in names.values():
        label = _beside(path, name)
        while label in found:
            label += "_"
        blocks.setdefault(label, []).append(name)
    return blocks


def _backbone(module: nn.Module) -> tuple[str, nn.Module]:
    known = {id(part): (path, part) for path, part in _outermost_known("", module)}
    if len(known) == 1:
        return next(iter(known.values()))
    count = len(list(module.parameters()))
    while count:
        holders = [c for c in module.children() if len(list(c.parameters())) == count]
        if len(holders) != 1 or isinstance(holders[0], nn.ModuleList | nn.ModuleDict):
            break
        module = holders[0]
    return "", module


def _outermost_known(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if knows_its_parts(module):
        if next(module.parameters(), None) is not None:
            yield path, module
        return
    for name, child in module.named_children():
        yield from _outermost_known(f"{path}{name}.", child)


def _beside(path: str, name: str) -> str:
    """The outermost part that holds a parameter but not the backbone."""
    parts = name.split(".")
    shared = next(
        i for i in range(len(parts)) if not path.startswith(".".join(parts[: i + 1]) + ".")
    )
    return ".".join(parts[: shared + 1])
