"""Low-rank adapters (LoRA) in a model, found by the names of their parameters."""

import re
from collections.abc import Container, Iterable, Mapping

from torch import nn

_PART = re.compile(r"lora_(embedding_)?[abe]|lora_magnitude_vector", re.IGNORECASE)


def adapted_module(name: str) -> str | None:
    """Return the path of the module that a parameter adapts, or None if it is no adapter's.

    >>> adapted_module("blocks.0.attn.qkv.lora_A.default.weight")
    'blocks.0.attn.qkv'
    """
    parts = name.split(".")
    depth = next((i for i, part in enumerate(parts) if _PART.fullmatch(part)), None)
    return None if depth is None else ".".join(parts[:depth])


def unadapted_name(name: str, owners: Container[str]) -> str:
    """Return a parameter's name as it was before adapters came to some modules.

    >>> unadapted_name("fc.base_layer.bias", ["fc"])
    'fc.bias'
    """
    path, found, rest = name.rpartition("base_layer.")
    # peft's name, but some networks have a part called so.
    return path + rest if found and path.rstrip(".") in owners else name


def pairs_apart(names: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split parameters into those that are no adapter's, and adapters by adapted module."""
    rest: list[str] = []
    pairs: dict[str, list[str]] = {}
    for name in names:
        owner = adapted_module(name)
        (rest if owner is None else pairs.setdefault(owner, [])).append(name)
    return rest, pairs


def with_pairs(
    blocks: Mapping[str, list[str]], pairs: Mapping[str, list[str]], apart: bool
) -> dict[str, list[str]]:
    """Put pairs into the block of what they adapt, or behind it as blocks of their own."""
    placed: dict[str, list[str]] = {}
    homes = {owner: _home(owner, blocks) for owner in pairs}
    for label, names in blocks.items():
        own = {owner: pair for owner, pair in pairs.items() if homes[owner] == label}
        if apart:
            placed[label] = names
            placed |= {f"{owner}.lora".lstrip("."): pair for owner, pair in own.items()}
        else:
            placed[label] = [*names, *(name for pair in own.values() for name in pair)]
    return placed


def _home(owner: str, blocks: Mapping[str, list[str]]) -> str:
    """The block that holds parameters of a module, or of the closest one around it."""
    path = f"{owner}."
    while path:
        for label, names in blocks.items():
            if any(name.startswith(path) for name in names):
                return label
        path = path[: path.rstrip(".").rfind(".") + 1]
    return next(iter(blocks))


def is_adapter(name: str) -> bool:
    """Say whether a child or parameter of this name is one half of an adapter."""
    return _PART.fullmatch(name) is not None


def is_adapted_layer(module: nn.Module) -> bool:
    """Say whether a module is a layer with its adapter: a leaf, but for the adapter."""
    if not any(map(is_adapter, (*module._modules, *module._parameters))):
        return False
    others = [child for name, child in module.named_children() if not is_adapter(name)]
    inner = (part for child in others for part in child.children())
    plain = all(next(part.parameters(), None) is None for part in inner)
    return plain or "base_layer" in module._modules
