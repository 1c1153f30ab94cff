"""The blocks of whatever network a LightningModule holds, by the module's own names."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from firstlight.functional import parameter_blocks

Given = Mapping[str, str | Sequence[str]] | Sequence[str]


def blocks_of(
    module: nn.Module, *, coarse: bool = True, given: Given | None = None
) -> dict[str, list[str]]:
    """Return `parameter_blocks` of the backbone in a LightningModule, by the module's own names.

    The backbone is the one outermost submodule that knows its own classifier or groups (timm's
    ``get_classifier``, ``group_matcher``); what lies outside it (a loss with parameters, another
    projection) follows after the head, in blocks named by the part of the module that holds it.
    Where there is none, or several, the backbone is the module itself, or the one child that holds
    all parameters, and so on until several hold them.

    Args:
        module: the LightningModule, or any module.
        coarse: see `parameter_blocks`.
        given: likewise, in the module's own names.

    Raises:
        ValueError: as `parameter_blocks`.
    """
    if given is not None:
        return parameter_blocks(module, given=given)  # type: ignore
    backbone = _backbone(module)
    parameters = dict(backbone.named_parameters())
    names = {id(p): name for name, p in module.named_parameters()}
    found = parameter_blocks(backbone, coarse=coarse)
    blocks = {b: [names.pop(id(parameters[n])) for n in held] for b, held in found.items()}
    for name in names.values():
        label = name.partition(".")[0]
        while label in found:  # a block of the backbone may have that name
            label += "_"
        blocks.setdefault(label, []).append(name)
    return blocks


def _backbone(module: nn.Module) -> nn.Module:
    known = list(_outermost_known(module))
    if len(known) == 1:
        return known[0]
    count = len(list(module.parameters()))
    while True:
        holders = [c for c in module.children() if len(list(c.parameters())) == count]
        if len(holders) != 1 or isinstance(holders[0], nn.ModuleList | nn.ModuleDict):
            return module
        module = holders[0]


def _outermost_known(module: nn.Module) -> Iterator[nn.Module]:
    if hasattr(module, "get_classifier") or hasattr(module, "group_matcher"):
        yield module
        return
    for child in module.children():
        yield from _outermost_known(child)
