"""The tree of life above a species: from names of folders or categories, to labels and groups."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
LEVELS = (*RANKS, "supercategory")
"""What species can be grouped by; iNaturalist's supercategories ("Birds") are no rank."""

Lineage = Mapping[str, str]


class Taxa(NamedTuple):
    """The taxa of one level.

    Attributes:
        numbers: taxon of each species, shape (S,).
        names: by number; all different. Sorted, but for species, which keep their order.
    """

    numbers: list[int]
    names: list[str]


def lineage_of_folder(name: str) -> dict[str, str]:
    """Read a folder of iNaturalist 2021: ``00000_Animalia_Annelida_..._Lumbricus_terrestris``.

    Raises:
        ValueError: for a name of another form.

    Example:
        >>> lineage_of_folder("00017_Plantae_A_B_C_D_Morus_alba")["species"]
        'Morus alba'
    """
    parts = name.split("_")
    if not re.fullmatch(r"\d{5}", parts[0]) or len(parts) < 8:
        raise ValueError(
            f"folder {name!r} is not named as in iNaturalist 2021: number, kingdom, phylum, class, "
            "order, family, genus and epithet with '_' between"
        )
    species = " ".join(parts[6:])
    return dict(zip(RANKS, [*parts[1:7], species], strict=True))


def lineage_of_category(category: Mapping[str, Any]) -> dict[str, str]:
    """Read what a category of iNaturalist's JSON tells; ``name`` is the species."""
    told = {level: str(category[level]) for level in LEVELS if category.get(level)}
    return {**told, "species": str(category["name"])}


def levels_of(lineages: Sequence[Lineage]) -> list[str]:
    """The levels that are known of every species, from kingdom down."""
    return [level for level in LEVELS if all(level in lineage for lineage in lineages)]


def taxa(lineages: Sequence[Lineage], level: str) -> Taxa:
    """Group species by a level.

    Two taxa of one name in different branches (*Morus* is a mulberry and a gannet) stay two, and
    bear their branch in brackets.

    Args:
        lineages: names by level, one mapping a species.
        level: any of `levels_of`.

    Raises:
        ValueError: for a level that is not known of every species.
    """
    if level not in (known := levels_of(lineages)):
        raise ValueError(f"level is one of {known} for these data, got {level!r}")
    if level == "species":
        own = [lineage["species"] for lineage in lineages]
        count = Counter(own)
        names = [name if count[name] == 1 else f"{name} ({i})" for i, name in enumerate(own)]
        return Taxa(list(range(len(own))), names)
    above = RANKS[: RANKS.index(level) + 1] if level in RANKS else (level,)
    keys = [tuple(lineage[rank] for rank in above if rank in lineage) for lineage in lineages]
    ordered = sorted(set(keys), key=lambda key: (key[-1], key))
    count = Counter(key[-1] for key in ordered)
    names = [k[-1] if count[k[-1]] == 1 else f"{k[-1]} ({' > '.join(k[:-1])})" for k in ordered]
    place = {key: number for number, key in enumerate(ordered)}
    return Taxa([place[key] for key in keys], names)


def groups_above(lineages: Sequence[Lineage], numbers: Sequence[int]) -> dict[str, list[str]]:
    """Name the taxon of each class, by level; levels that divide a class are left out.

    Args:
        lineages: one a species.
        numbers: class of each species, every class from 0 on occurring.
    """
    groups: dict[str, list[str]] = {}
    for level in levels_of(lineages):
        found = taxa(lineages, level)
        pairs = set(zip(numbers, found.numbers, strict=True))
        if len(pairs) == len(set(numbers)) > len(found.names):
            groups[level] = [found.names[taxon] for _, taxon in sorted(pairs)]
    return groups
