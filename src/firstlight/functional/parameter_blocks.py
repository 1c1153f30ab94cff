"""The parts of a network from stem to head, each a list of parameter names."""

from collections.abc import Iterator
from types import SimpleNamespace

from torch import nn

STEM, HEAD = "stem", "head"


def parameter_blocks(model: nn.Module, *, coarse: bool = True) -> dict[str, list[str]]:
    """Split a model's parameters into blocks, ordered from the stem to the head.

    With timm's ``group_matcher`` where the model has one that works, else by structure: the
    children in definition order, the container of the stages opened. Two corrections to timm's
    groups: the head is the parameters of ``get_classifier()`` alone, what timm groups with it (a
    final norm or projection) joins the block before; a group of normalisation parameters only
    joins the one before. Without ``get_classifier`` the head is the last part by structure.

    Args:
        model: any classifier, timm's or not. It is not changed.
        coarse: one block per stage where the family distinguishes stages from their blocks
            (``layer1``); ``False`` gives one per residual block (``layer1.0``).

    Returns:
        Names of blocks to names of parameters. The first is ``stem``, the last ``head``; those
        between carry the shortest module path that no other block shares. Every name of
        ``model.named_parameters()`` appears once; a tied parameter belongs to the topmost block
        that uses it. A model without a classifier (``num_classes=0``) has no ``head``.

    Raises:
        ValueError: when the model has no parameters.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
        >>> parameter_blocks(net)
        {'stem': ['0.weight', '0.bias', '1.weight', '1.bias'], 'head': ['2.weight', '2.bias']}
    """
    head = _head_names(model)
    trunk = [name for name in _all_names(model) if name not in head]
    if not head and not trunk:
        raise ValueError(f"{type(model).__name__} has no parameters to split into blocks")
    groups = _timm_groups(model, trunk, coarse)
    if groups is None:
        groups = _join_norms(model, _structural_groups(model, trunk, coarse))
    labels = _labels(groups)
    if head:
        groups, labels = [*groups, sorted(head)], [*labels, HEAD]
    return dict(zip(labels, _each_once(model, groups), strict=True))


def _all_names(module: nn.Module) -> list[str]:
    """Names of all parameters; a tied one under each of its names."""
    return [name for name, _ in module.named_parameters(remove_duplicate=False)]


def _head_names(model: nn.Module) -> set[str]:
    """Parameters of ``get_classifier()``, a module or several; else those of the last part."""
    if not hasattr(model, "get_classifier"):
        part = model
        while len(children := list(_children(part))) == 1:
            part = children[0][1]
        classifier: object = children[-1][1] if children else part
    else:
        classifier = model.get_classifier()  # type: ignore[operator]
    parts = classifier if isinstance(classifier, tuple | list | nn.ModuleList) else (classifier,)
    held = {id(p) for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    return {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in held}


def _timm_groups(model: nn.Module, trunk: list[str], coarse: bool) -> list[list[str]] | None:
    """Groups by the model's own ``group_matcher``, or None where it is missing or fails.

    timm puts what no pattern matches into a last group, beside the head. A name that matches
    nothing finds that group: its members join the block before.
    """
    if not hasattr(model, "group_matcher"):
        return None
    from timm.models import group_parameters

    unmatched = "?"
    # All that timm asks of a model; without the head, which some patterns tie to the last block.
    listing = SimpleNamespace(named_parameters=lambda: ((n, None) for n in [*trunk, unmatched]))
    try:
        matcher = model.group_matcher(coarse=coarse)  # type: ignore[operator]
        groups = list(group_parameters(listing, matcher).values())
    except Exception:  # some published matchers raise: the structure serves instead
        return None
    last = groups.pop() if unmatched in groups[-1] else []
    groups = [[name for name in group if name != unmatched] for group in groups]
    groups = _join_norms(model, [group for group in groups if group])
    last = [name for name in last if name != unmatched]
    return [*groups[:-1], groups[-1] + last] if groups else [last]


def _structural_groups(model: nn.Module, trunk: list[str], coarse: bool) -> list[list[str]]:
    """One group per part in definition order; parameters held directly belong to the first."""
    parts = _opened(model, "", set(trunk))
    if not coarse:
        parts = [inner for part in parts for inner in _blocks_of(part)]
    groups = [[n for n in trunk if n.startswith(f"{path}.")] for path, _ in parts]
    groups = [group for group in groups if group]
    placed = {name for group in groups for name in group}
    loose = [name for name in trunk if name not in placed]
    if loose:
        groups[:1] = [loose + (groups[0] if groups else [])]
    return groups


def _opened(module: nn.Module, path: str, trunk: set[str]) -> list[tuple[str, nn.Module]]:
    """Children with trunk parameters, the one that contains the stages replaced by its own.

    It is the only composite child, or the only one with several composite children.
    """
    children = [
        (child_path, child)
        for name, child in _children(module)
        if any(f"{(child_path := _join(path, name))}.{n}" in trunk for n in _all_names(child))
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


def _blocks_of(part: tuple[str, nn.Module]) -> list[tuple[str, nn.Module]]:
    path, module = part
    children = [(_join(path, name), child) for name, child in _children(module)]
    is_container = isinstance(module, nn.Sequential | nn.ModuleList)
    return children if is_container and len(children) > 1 else [part]


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return (
        (name, child)
        for name, child in module.named_children()
        if next(child.parameters(), None) is not None
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _join_norms(model: nn.Module, groups: list[list[str]]) -> list[list[str]]:
    joined: list[list[str]] = []
    for group in groups:
        if joined and all(_is_norm(model, name) for name in group):
            joined[-1] = joined[-1] + group
        else:
            joined.append(group)
    return joined


def _is_norm(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return "Norm" in type(owner).__name__  # every norm of torch and timm is named so


def _labels(groups: list[list[str]]) -> list[str]:
    labels: list[str] = []
    for index, group in enumerate(groups):
        others = [name for other in groups if other is not group for name in other]
        label = _own_path(group[0], others) if index else STEM
        while label in (*labels, HEAD):
            label += "_"
        labels.append(label)
    return labels


def _own_path(name: str, others: list[str]) -> str:
    """The shortest module path to a parameter that leads to none of the others."""
    parts = name.split(".")
    paths = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return next((p for p in paths if not any(f"{o}.".startswith(f"{p}.") for o in others)), name)


def _each_once(model: nn.Module, groups: list[list[str]]) -> list[list[str]]:
    """Names in the model's order, a tied parameter under its first name in its topmost group."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    topmost = {id(parameters[name]): i for i, group in enumerate(groups) for name in group}
    blocks: list[list[str]] = [[] for _ in groups]
    for name, parameter in model.named_parameters():
        blocks[topmost[id(parameter)]].append(name)
    return blocks
