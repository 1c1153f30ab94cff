"""What a DataModule says about itself when it is set up."""

from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.splits import Splits, T, class_counts


def describe(
    name: str, splits: Splits[T], how: Preprocessing, sources: dict[str, str], protocol: str
) -> str:
    """Sizes, classes and preprocessing in a few lines.

    Args:
        name: of the DataModule.
        splits: what the run uses.
        how: how images are prepared.
        sources: where each value of ``how`` comes from.
        protocol: the end of the first line.
    """
    classes = splits.train.classes
    counts = class_counts(splits.train.targets, len(classes))
    largest, smallest = (f"{classes[counts.index(n)]} {n}" for n in (max(counts), min(counts)))
    parts = {"val": splits.val, "hold-out": splits.holdout, "test": splits.test}
    sizes = f"train {len(splits.train)}" + "".join(
        f", {part} {len(data) if data is not None else 'none'}" for part, data in parts.items()
    )
    decided: dict[str, list[str]] = {}
    for field, origin in sources.items():
        decided.setdefault(origin, []).append(field)
    lines = [
        f"{name}: {sizes}; {len(classes)} classes, largest {largest}, smallest {smallest}; "
        f"{protocol}",
        f"images: {how.img_size} px, crop {how.crop_pct:g} ({how.crop_mode}), {how.interpolation}, "
        f"mean {_rounded(how.mean)}, std {_rounded(how.std)}",
        "decided by " + "; ".join(f"{who}: {', '.join(what)}" for who, what in decided.items()),
        *splits.notes,
    ]
    return "\n  ".join(lines)


def _rounded(values: tuple[float, ...]) -> str:
    return "/".join(f"{v:.4g}" for v in values)
