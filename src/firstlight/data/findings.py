"""What is wrong or remarkable in a data set: pure functions of facts about its images."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from firstlight.datamodules.archives import without_place
from firstlight.datamodules.examination import SUFFIXES, ImageFacts

Severity = Literal["error", "warning", "note"]

HUGE = 50_000_000
"""Pixels above which an image is remarked on: decoding it takes seconds and 150 MB."""

ELONGATED = 4.0
"""Ratio of sides above which an image is remarked on: a centre crop shows little of it."""


class Example(NamedTuple):
    """One example: where it stands in the data set, and its image.

    Attributes:
        part: ``train``, ``val``, ``holdout`` or ``test``.
        label: class number.
        facts: of its image.
    """

    part: str
    label: int
    facts: ImageFacts


class Finding(NamedTuple):
    """One kind of thing found.

    Attributes:
        severity: an ``error`` spoils training or its evaluation.
        title: what the places have in common, and what follows from it.
        places: every place, a line each.
        kind: of what there are so many places.
    """

    severity: Severity
    title: str
    places: list[str]
    kind: Literal["image", "picture", "class"] = "image"

    def __str__(self) -> str:
        """The number of places and the title."""
        many = "" if len(self.places) == 1 else "es" if self.kind == "class" else "s"
        return f"{len(self.places):,} {self.kind}{many} {self.title}"


def findings(
    examples: Sequence[Example], parts: Sequence[str], classes: Sequence[str], img_size: int
) -> list[Finding]:
    """Return what is found, errors first.

    Args:
        examples: all of them.
        parts: names of the parts, also of those without an example.
        classes: names by class number.
        img_size: pixels that the network sees, to tell images that are enlarged.
    """
    found = [*_duplicates(examples, classes), *_of_files(examples, img_size)]
    found += _missing_classes(examples, parts, classes)
    order = ("error", "warning", "note")
    return sorted((f for f in found if f.places), key=lambda f: order.index(f.severity))


def _of_files(examples: Sequence[Example], img_size: int) -> Iterator[Finding]:
    facts = [example.facts for example in examples]
    yield Finding(
        "error",
        "unreadable: training would stop there, or skip them if told to",
        [f"{f.path}: {f.problem}" for f in facts if f.problem],
    )
    readable = [f for f in facts if f.problem is None]
    for severity, title, applies, detail in _REMARKS:
        yield Finding(severity, title, [f"{f.path}: {detail(f)}" for f in readable if applies(f)])
    yield Finding(
        "note",
        f"enlarged: a side is shorter than the {img_size} pixels that the network sees",
        [f"{f.path}: {_shape(f)}" for f in readable if min(f.width, f.height) < img_size],
    )


def _shape(facts: ImageFacts) -> str:
    return f"{facts.width} x {facts.height}"


def _misnamed(facts: ImageFacts) -> bool:
    suffix = Path(without_place(facts.path)).suffix.lower()
    return facts.format is not None and suffix not in SUFFIXES.get(facts.format, (suffix,))


_REMARKS: tuple[
    tuple[Severity, str, Callable[[ImageFacts], bool], Callable[[ImageFacts], str]], ...
] = (
    (
        "warning",
        "of more than 50 million pixels: decoding takes seconds; store them smaller",
        lambda f: f.width * f.height > HUGE,
        _shape,
    ),
    (
        "warning",
        "turned by viewers (EXIF), but not in training: apply the orientation to the files",
        lambda f: f.orientation != 1,
        lambda f: f"orientation {f.orientation}",
    ),
    (
        "note",
        "animated: only the first frame is seen",
        lambda f: f.frames > 1,
        lambda f: f"{f.frames} frames",
    ),
    (
        "note",
        "of another format than the suffix says: decoded by content",
        _misnamed,
        lambda f: str(f.format),
    ),
    (
        "note",
        "not RGB: converted",
        lambda f: f.mode not in ("RGB", None),
        lambda f: str(f.mode),
    ),
    (
        "note",
        f"more than {ELONGATED:g} times as long as wide: a centre crop shows little",
        lambda f: max(f.width, f.height) > ELONGATED * min(f.width, f.height) > 0,
        _shape,
    ),
)


def _duplicates(examples: Sequence[Example], classes: Sequence[str]) -> Iterator[Finding]:
    by_picture: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if example.facts.pixels is not None:
            by_picture[example.facts.pixels].append(example)
    groups = [group for group in by_picture.values() if len(group) > 1]

    def places(applies: Callable[[list[Example]], bool]) -> list[str]:
        return [
            " = ".join(f"{e.facts.path} ({e.part}, {classes[e.label]})" for e in group)
            for group in groups
            if applies(group)
        ]

    yield Finding(
        "error",
        "in the training data and in another part: what is measured there is too good",
        places(lambda group: "train" in (p := {e.part for e in group}) and len(p) > 1),
        "picture",
    )
    yield Finding(
        "warning",
        "with two labels",
        places(lambda group: len({e.label for e in group}) > 1),
        "picture",
    )
    yield Finding(
        "warning",
        "more than once in one part",
        places(lambda group: len({e.part for e in group}) < len(group)),
        "picture",
    )


def _missing_classes(
    examples: Sequence[Example], parts: Sequence[str], classes: Sequence[str]
) -> Iterator[Finding]:
    seen: dict[str, set[int]] = defaultdict(set)
    for example in examples:
        seen[example.part].add(example.label)
    for part in parts:
        absent = [name for number, name in enumerate(classes) if number not in seen[part]]
        yield Finding(
            "error" if part == "train" else "warning",
            f"without an image in {part}",
            absent,
            "class",
        )
