"""Further test sets of any DataModule: what they are, what they are given, how they are spelt."""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from firstlight.datamodules.loaders import ResidentLoader, ResumableDataLoader
from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.samplers import fixed_order
from firstlight.functional.corruptions import BENCHMARK, PUBLISHED


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a DataModule tells a further test set, so that both are evaluated alike.

    Attributes:
        own: the DataModule's own test set.
        classes: names by class number.
        class_ids: what folders may be called instead, by class number (ImageNet: wnids).
        how: the evaluation preprocessing.
        batch_size: examples per batch and process.
        num_workers: processes that decode files.
        device: where batches of arrays are prepared.
        shard: number of processes and rank of this one.
        seed: key of what is drawn.
    """

    own: Any
    classes: Sequence[str]
    class_ids: Sequence[str]
    how: Preprocessing
    batch_size: int
    num_workers: int
    device: torch.device
    shard: tuple[int, int]
    seed: int

    def array_loader(self, data: Any, inputs: Callable[[Tensor], Tensor]) -> ResidentLoader:
        """Loader of labelled arrays whose batches ``inputs`` makes from indices (B,)."""
        pipeline = _Inputs(inputs, self.device)
        return ResidentLoader(data, pipeline, fixed_order(data, *self.shard), self.batch_size)

    def file_loader(self, data: Dataset[Any]) -> ResumableDataLoader:
        """Loader of a data set whose items are ready for the network, made in workers."""
        return ResumableDataLoader(
            data,
            sampler=fixed_order(data, *self.shard),
            batch_size=self.batch_size,
            num_workers=self.num_workers,  # which end with this set: there may be dozens
            pin_memory=self.device.type == "cuda",
        )


class _Inputs:
    def __init__(self, inputs: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.device, self._inputs = device, inputs

    def __call__(self, index: Tensor, generator: torch.Generator) -> Tensor:
        return self._inputs(index.cpu())


class Shift(ABC):
    """A further test set of a DataModule. Subclasses are frozen dataclasses of plain values.

    The loader's ``dataset`` has ``targets`` and ``classes``, numbered as the DataModule's, and may
    have

    - ``sections``: names of its parts (``fog/3``), and ``section_numbers``, the part of each
      example (N,): one set of few metrics, of which the parts can be told afterwards;
    - ``baseline_errors``: mean error of a baseline by corruption, by which mCE divides;
    - ``scored_classes``: the class numbers among which the largest logit is sought, where a
      benchmark wants that.
    """

    def check(self) -> None:  # noqa: B027  # nothing to look for by default
        """Raise FileNotFoundError, cheaply, where the data cannot be there."""

    @abstractmethod
    def loader(self, setting: Setting) -> Any:
        """Return the loader of batches ``(images, targets)`` in fixed order.

        Raises:
            FileNotFoundError: for data that are not there.
            ValueError: for data that cannot be right, or are not of the DataModule's classes.
        """


def read_shifts(given: Mapping[str, Any]) -> dict[str, Shift]:
    """Check names; make the sets of those that are spelt ``{"class_path", "init_args"}``.

    Raises:
        ValueError: for a name that makes no key, or what is no `Shift`.
    """
    for name in given:
        if not re.fullmatch(r"[\w.-]+", name) or name == "test":
            raise ValueError(
                f"test_sets: {name!r} is no name for a further test set: letters, digits and "
                "'_.-', other than 'test', which is the data's own"
            )
    return {name: _made(name, one) for name, one in given.items()}


def _made(name: str, given: Any) -> Shift:
    made = given
    if isinstance(given, Mapping) and "class_path" in given:
        module, _, kind = given["class_path"].rpartition(".")
        try:
            of = getattr(import_module(module or "firstlight.datamodules"), kind)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"test_sets: {name!r}: {error}") from error
        made = of(**given.get("init_args", {}))
    if not isinstance(made, Shift):
        raise ValueError(
            f"test_sets: {name!r} is no Shift, such as Corrupted('fog'), nor the class_path and "
            f"init_args of one, but {given!r}"
        )
    return made


def plain_shifts(shifts: Mapping[str, Shift]) -> dict[str, Any]:
    """The plain values that `read_shifts` makes the same sets of: for checkpoints."""
    return {
        name: {
            "class_path": f"{type(one).__module__}.{type(one).__qualname__}",
            "init_args": dataclasses.asdict(one),  # type: ignore[call-overload]  # see Shift
        }
        for name, one in shifts.items()
    }


def chosen(
    given: str | Sequence[str],
    known: Mapping[str, Sequence[str]],
    what: str,
    **unions: Sequence[str],
) -> tuple[str, ...]:
    """Spell out a choice of names: one name, the name of a group, or a list of names.

    Args:
        given: the choice.
        known: names by group; the group ``all`` is all of them.
        what: it is a choice of, for the message.
        **unions: further groups, of names in ``known``.

    Raises:
        ValueError: for an unknown name, an empty list or a repeated name.
    """
    groups = {**known, **unions, "all": [name for group in known.values() for name in group]}
    names = [given] if isinstance(given, str) else list(given)
    found = [name for one in names for name in groups.get(one, [one])]
    unknown = [name for name in found if name not in groups["all"]]
    if unknown or not found or len(set(found)) < len(found):
        trouble = f"no {what} {unknown[0]!r}" if unknown else f"{given!r} names none, or one twice"
        raise ValueError(
            f"{trouble}: choose of {', '.join(groups['all'])}, or a group: {', '.join(groups)}"
        )
    return tuple(found)


def chosen_severities(given: int | Sequence[int]) -> tuple[int, ...]:
    """Spell out severities 1 to 5.

    Raises:
        ValueError: for others, none or a repeated one.
    """
    levels = (given,) if isinstance(given, int) else tuple(given)
    if not levels or not set(levels) <= {1, 2, 3, 4, 5} or len(set(levels)) < len(levels):
        raise ValueError(f"severities are numbers from 1 to 5, each once, got {given!r}")
    return levels


@dataclasses.dataclass(frozen=True)
class PublishedCorruptions(Shift):
    """Base of the published sets of 19 corruptions in five severities.

    Attributes:
        root: where the subclass finds them.
        corruptions: names, or groups: benchmark, noise, blur, weather, digital, extra, all.
        severities: 1 to 5.
    """

    root: str
    corruptions: str | list[str] = "benchmark"
    severities: int | list[int] = dataclasses.field(default_factory=lambda: [1, 2, 3, 4, 5])

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        self._chosen()

    def _chosen(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        names = chosen(self.corruptions, PUBLISHED, "corruption", benchmark=BENCHMARK)
        return names, chosen_severities(self.severities)
