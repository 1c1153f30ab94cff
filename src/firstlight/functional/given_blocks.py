"""Blocks of parameters as somebody wrote them down, checked to hold each parameter once."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

Given = Mapping[str, str | Sequence[str]] | Sequence[str]
"""Block names to a regular expression or a list of paths; or regular expressions alone."""

Matches = Callable[[str], bool]


def given_blocks(model: nn.Module, given: Given) -> dict[str, list[str]]:
    r"""Return blocks of parameter names by patterns or paths, in the order given.

    Args:
        model: the owner of the parameters.
        given: stem first. A mapping of block names to a regular expression, which must match from
            the beginning of a parameter's full name (``re.match``, as in timm's ``group_matcher``),
            or to a list of module paths and parameter names; a path stands for the module and all
            below it. Or a list of regular expressions, whose blocks are called after the pattern
            without anchors and escapes where that reads as a path (``^layer1\.`` is ``layer1``),
            else ``block0``, ``block1``... by position.

    Returns:
        Block names to names of ``model.named_parameters()``, in the model's order. A tied
        parameter may be meant by any of its names; it belongs to the last block that means it.

    Raises:
        ValueError: when a parameter is in no block or one name in several, when a pattern or path
            finds nothing or cannot be read; it names them.
    """
    blocks = {name: _matchers(name, value) for name, value in _named(given).items()}
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    homes = {
        name: [
            block for block, tests in blocks.items() if any(test(name) for test in tests.values())
        ]
        for name in names
    }
    _refuse_idle(blocks, names)
    several = [f"{name} ({' and '.join(homes[name])})" for name in names if len(homes[name]) > 1]
    if several:
        raise ValueError(
            f"{_listed(several)} in more than one block; make the patterns exclude one another "
            r"(a regular expression 'layer1' also matches layer10; 'layer1\.' does not)"
        )
    return _placed(model, list(blocks), {n: held[0] for n, held in homes.items() if held})


def _placed(model: nn.Module, order: list[str], homes: dict[str, str]) -> dict[str, list[str]]:
    topmost: dict[int, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in homes:
            place = order.index(homes[name])
            topmost[id(parameter)] = max(place, topmost.get(id(parameter), 0))
    missed = [name for name, p in model.named_parameters() if id(p) not in topmost]
    if missed:
        raise ValueError(
            f"{_listed(missed)} in no block; every parameter needs one, also what shall never "
            "train: add a block, or extend a pattern"
        )
    blocks: dict[str, list[str]] = {block: [] for block in order}
    for name, parameter in model.named_parameters():
        blocks[order[topmost[id(parameter)]]].append(name)
    hidden = [block for block, held in blocks.items() if not held]
    if hidden:
        raise ValueError(
            f"{', '.join(hidden)}: all parameters are tied to those of later blocks; leave it out"
        )
    return blocks


def _named(given: Given) -> Mapping[str, str | Sequence[str]]:
    if isinstance(given, Mapping) and given:
        return given
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or not given:
        raise ValueError(
            "blocks are given as a mapping of names to a regular expression or a list of module "
            f"paths, or as a list of regular expressions, stem first; not {given!r}"
        )
    readable = [_readable(pattern) for pattern in given]
    named: dict[str, str | Sequence[str]] = {}
    for index, (name, pattern) in enumerate(zip(readable, given, strict=True)):
        label = name or f"block{index}"
        while label in named or (not name and label in readable):
            label += "_"
        named[label] = pattern
    return named


def _readable(pattern: object) -> str:
    """The path that a pattern spells, or nothing."""
    plain = str(pattern).removeprefix("^").replace("\\.", ".")
    plain = re.sub(r"\.?(\.\*)?\$?$", "", plain)
    return plain if re.fullmatch(r"[\w-]+(\.[\w-]+)*", plain) else ""


def _matchers(block: str, value: str | Sequence[str]) -> dict[str, Matches]:
    """Tests of a parameter's name, by what was written for each."""
    if isinstance(value, str):
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise ValueError(
                f"block {block}: {value!r} is no regular expression: {error}"
            ) from error
        return {value: lambda name: pattern.match(name) is not None}
    if not isinstance(value, Sequence) or not all(isinstance(path, str) for path in value):
        raise ValueError(
            f"block {block} is {value!r}; give a regular expression, or a list of module paths or "
            "parameter names"
        )
    return {path: _below(path) for path in value}


def _below(path: str) -> Matches:
    return lambda name: f"{name}.".startswith(f"{path}.")


def _refuse_idle(blocks: Mapping[str, Mapping[str, Matches]], names: Sequence[str]) -> None:
    idle = {
        f"{written!r} (block {block})": test
        for block, tests in blocks.items()
        for written, test in (tests or {"": lambda _: False}).items()
        if not any(map(test, names))
    }
    if idle:
        within = {rest: part for part, _, rest in (n.partition(".") for n in names) if "." in rest}
        owners = [part for rest, part in within.items() if any(t(rest) for t in idle.values())]
        hint = f". Write {owners[0]!r} and a dot before them?" if owners else ""
        raise ValueError(
            f"no parameter is matched by {_some(list(idle))}; the model's are {_some(names)}: "
            f"patterns match from the beginning of a full name, paths in lists literally{hint}"
        )


def _listed(found: Sequence[str]) -> str:
    count = f"{len(found)} parameters are" if len(found) > 1 else "1 parameter is"
    return f"{_some(found)}: {count}"


def _some(found: Iterable[str], first: int = 3) -> str:
    found = list(found)
    more = f" and {len(found) - first} more" if len(found) > first else ""
    return ", ".join(found[:first]) + more
