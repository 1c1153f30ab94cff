"""The parts of a network from stem to head, each a list of parameter names."""

import re
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace

from torch import nn

from firstlight.functional.adapter_pairs import pairs_apart, unadapted_name, with_pairs
from firstlight.functional.block_structure import all_names, last_part, structural_groups
from firstlight.functional.given_blocks import Given, given_blocks

STEM, HEAD = "stem", "head"


def parameter_blocks(
    model: nn.Module, *, coarse: bool = True, given: Given | None = None
) -> dict[str, list[str]]:
    """Split a model's parameters into blocks, ordered from the stem to the head.

    With timm's ``group_matcher`` where the model has one that works, else by structure: the
    children in definition order, the container of the stages opened. Corrections to timm's groups:
    the head is the parameters of ``get_classifier()`` alone, what timm groups with it (a final norm
    or projection) joins the block before; a group of normalisation parameters only joins the one
    before; CaiT's class blocks follow its others. Without ``get_classifier`` the head is the last
    part by structure. Wrappers that hold nothing else (``torch.compile``, peft's) are looked
    through.

    **Adapters** (LoRA: ``lora_A``, ``lora_B``, ``lora_embedding_A``, ``lora_embedding_B``,
    AdaLoRA's ``lora_E``, DoRA's ``lora_magnitude_vector``; modules or parameters of these names, in
    peft's layers or hand-written ones) never change where other parameters go. ``coarse=True``:
    they lie in the block of the layer that they adapt. ``coarse=False``: those of one adapted
    module, A and B together, are a block of their own, ``<path of the module>.lora``, after the
    block of that layer; several adapters of one module share it. Pairs inside the classifier stay
    in ``head``.

    Args:
        model: any classifier, timm's or not. It is not changed.
        coarse: one block per stage where the family distinguishes stages from their blocks
            (``layer1``); ``False`` gives one per residual block (``layer1.0``).
        given: the blocks, instead of all this, as names with regular expressions or lists of module
            paths; see `given_blocks`. Then ``coarse`` says nothing, and no block need be called
            ``stem`` or ``head``.

    Returns:
        Names of blocks to names of parameters. The first is ``stem``, the last ``head``; those
        between carry the shortest module path that no other block shares (of several, the one to
        most of the block). Every name of ``model.named_parameters()`` appears once; a tied
        parameter belongs to the topmost block that uses it. A model without a classifier
        (``num_classes=0``) has no ``head``, one that is all classifier no ``stem``.

    Raises:
        ValueError: when the model has no parameters; when a parameter is in none or several of the
            given blocks, or a pattern finds nothing.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
        >>> parameter_blocks(net)
        {'stem': ['0.weight', '0.bias', '1.weight', '1.bias'], 'head': ['2.weight', '2.bias']}
        >>> parameter_blocks(net, given={"features": ["0", "1"], "head": "2"})
        {'features': ['0.weight', '0.bias', '1.weight', '1.bias'], 'head': ['2.weight', '2.bias']}
    """
    if next(model.parameters(), None) is None:
        raise ValueError(f"{type(model).__name__} has no parameters to split into blocks")
    if given is not None:
        return given_blocks(model, given)
    prefix, inner = _unwrapped(model)
    blocks = _found_blocks(inner, coarse)
    return {label: [prefix + name for name in names] for label, names in blocks.items()}


def knows_its_parts(module: nn.Module) -> bool:
    """Whether a module is of a class with ``get_classifier`` or ``group_matcher``, as timm's.

    Wrappers that pass on attributes of what they wrap are not.
    """
    return any(hasattr(type(module), method) for method in ("get_classifier", "group_matcher"))


def _unwrapped(model: nn.Module) -> tuple[str, nn.Module]:
    """The part that knows its parts and holds all parameters, with its prefix; or the model."""
    everything = len(list(model.parameters()))
    prefix, part = "", model
    while not knows_its_parts(part):
        children = list(part.named_children())
        holders = [(n, c) for n, c in children if len(list(c.parameters())) == everything]
        if len(holders) != 1:
            return "", model
        prefix, part = f"{prefix}{holders[0][0]}.", holders[0][1]
    return prefix, part


def _found_blocks(model: nn.Module, coarse: bool) -> dict[str, list[str]]:
    head = _head_names(model)
    trunk, pairs = pairs_apart(name for name in all_names(model) if name not in head)
    groups = _timm_groups(model, {unadapted_name(n, pairs): n for n in trunk}, coarse)
    if groups is None:
        groups = _join_norms(model, structural_groups(model, trunk, coarse))
    blocks = dict(zip(_labels(groups), groups, strict=True))
    blocks = with_pairs(blocks or {STEM: []}, pairs, apart=not coarse) if pairs else blocks
    if head:
        blocks[HEAD] = sorted(head)
    return _each_once(model, blocks)


def _head_names(model: nn.Module) -> set[str]:
    """Parameters of ``get_classifier()``, a module or several; else those of the last part."""
    if hasattr(model, "get_classifier"):
        classifier: object = model.get_classifier()  # type: ignore[operator]  # timm's, untyped
    else:
        classifier = last_part(model)
    parts = classifier if isinstance(classifier, tuple | list | nn.ModuleList) else (classifier,)
    held = {id(p) for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    return {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in held}


def _timm_groups(
    model: nn.Module, trunk: Mapping[str, str], coarse: bool
) -> list[list[str]] | None:
    """Groups by the model's own ``group_matcher``, or None where it is missing or fails.

    The trunk is names as the matcher knows them, to names as they are.

    timm puts what no pattern matches into a last group, beside the head. A name that matches
    nothing finds that group: its members join the block before.
    """
    if not hasattr(model, "group_matcher"):
        return None
    from timm.models import group_parameters

    unmatched = "?"
    # All that timm asks of a model; without the head, which some patterns tie to the last block.
    names = {**trunk, unmatched: unmatched}
    listing = SimpleNamespace(named_parameters=names.items)
    try:
        matcher = model.group_matcher(coarse=coarse)  # type: ignore[operator]
        groups = list(group_parameters(listing, matcher, return_values=True).values())
    except Exception:  # some published matchers raise: the structure serves instead
        return None
    last = groups.pop() if unmatched in groups[-1] else []
    groups = [[name for name in group if name != unmatched] for group in groups]
    groups = _late_apart(_join_norms(model, [group for group in groups if group]))
    last = [name for name in last if name != unmatched]
    return [*groups[:-1], groups[-1] + last] if groups else [last]


def _late_apart(groups: list[list[str]]) -> list[list[str]]:
    """CaiT's class blocks as groups of their own, last as they run, with the norm behind them.

    timm's matcher pairs them with its last blocks, before which they never run.
    """
    kept: list[list[str]] = []
    late: dict[str, list[str]] = {}
    for group in groups:
        here: list[str] = []
        kept.append(here)
        for name in group:
            if found := re.match(r"blocks_token_only\.\d+", name):
                here = late.setdefault(found[0], [])
            here.append(name)
    return [*filter(None, kept), *late.values()]


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
        label = _own_path(group, others) if index else STEM
        while label in (*labels, HEAD):
            label += "_"
        labels.append(label)
    return labels


def _own_path(group: list[str], others: list[str]) -> str:
    """The shortest module path that leads to none of the others, and to most of the group."""
    foreign = {path for name in others for path in _paths(name)}
    own = (next((p for p in _paths(name) if p not in foreign), name) for name in group)
    return Counter(own).most_common(1)[0][0]


def _paths(name: str) -> list[str]:
    """Every module above a parameter, from the outermost, and itself."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _each_once(model: nn.Module, blocks: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names in the model's order, a tied parameter under its first name in its topmost block."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    topmost = {id(parameters[name]): block for block, names in blocks.items() for name in names}
    each: dict[str, list[str]] = {block: [] for block in blocks}
    for name, parameter in model.named_parameters():
        each[topmost[id(parameter)]].append(name)
    return each
