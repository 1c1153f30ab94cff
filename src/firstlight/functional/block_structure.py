"""Blocks of a network by its structure alone: children in definition order, stages opened."""

from collections.abc import Iterator, Sequence

from torch import nn

from firstlight.functional.adapter_pairs import is_adapted_layer, is_adapter

Part = tuple[str, nn.Module]


def structural_groups(model: nn.Module, trunk: Sequence[str], coarse: bool) -> list[list[str]]:
    """One group per part in definition order; parameters held directly belong to the first."""
    parts = _opened(model, "", set(trunk))
    paths = [[path] for path, _ in parts]
    if not coarse:
        paths = [inner for part in parts for inner in _inner_blocks(part)]
    prefixes = [tuple(f"{path}." for path in group) for group in paths]
    groups = [[n for n in trunk if f"{n}.".startswith(prefix)] for prefix in prefixes]
    groups = [group for group in groups if group]
    placed = {name for group in groups for name in group}
    loose = [name for name in trunk if name not in placed]
    if loose:
        groups[:1] = [loose + (groups[0] if groups else [])]
    return groups


def last_part(model: nn.Module) -> nn.Module | None:
    """The last child with parameters, where there are several; a model without children itself."""
    part = model
    while len(children := list(_children(part))) == 1:
        part = children[0][1]
    return children[-1][1] if children else part


def _opened(module: nn.Module, path: str, trunk: set[str]) -> list[Part]:
    """Children with trunk parameters, the one that contains the stages replaced by its own.

    It is the only composite child, or the only one with several composite children.
    """
    children = [
        (child_path, child)
        for name, child in _children(module)
        if any(f"{(child_path := _join(path, name))}.{n}" in trunk for n in all_names(child))
    ]
    composite = [child for _, child in children if any(_children(child))]
    holders = [c for c in composite if sum(any(_children(g)) for _, g in _children(c)) > 1]
    chosen = composite if len(composite) == 1 else holders
    if len(chosen) != 1:
        return children
    return [
        inner
        for child_path, child in children
        for inner in (
            _opened(child, child_path, trunk) if child is chosen[0] else [(child_path, child)]
        )
    ]


def _inner_blocks(part: Part) -> list[list[str]]:
    """Paths of each block of a stage: a container's children, or those of its one stack of blocks.

    What else the stage has (a downsampling, a norm) goes with its first block or its last.
    """
    path, module = part
    children = [(_join(path, name), child) for name, child in _children(module)]
    if _is_container(module):
        return [[child_path] for child_path, _ in children] if len(children) > 1 else [[path]]
    stacks = [i for i, (_, child) in enumerate(children) if _is_stack(child)]
    if len(stacks) != 1:
        return [[path]]
    stack_path, stack = children[stacks[0]]
    inner = [[_join(stack_path, name)] for name, _ in _children(stack)]
    direct = [_join(path, name) for name in module._parameters]
    inner[0] += direct + [child_path for child_path, _ in children[: stacks[0]]]
    inner[-1] += [child_path for child_path, _ in children[stacks[0] + 1 :]]
    return inner


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is several blocks in a row: each has parts that have parts themselves."""
    blocks = [child for _, child in _children(module)] if _is_container(module) else []
    return len(blocks) > 1 and all(
        any(any(_children(part)) for _, part in _children(block)) for block in blocks
    )


def _children(module: nn.Module) -> Iterator[Part]:
    """Children with parameters, as they were before adapters came."""
    if is_adapted_layer(module):
        return
    for name, child in module.named_children():
        if next(child.parameters(), None) is not None and not is_adapter(name):
            yield name, child


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def all_names(module: nn.Module) -> list[str]:
    """Names of all parameters; a tied one under each of its names."""
    return [name for name, _ in module.named_parameters(remove_duplicate=False)]
