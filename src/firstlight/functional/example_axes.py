"""Where the examples of a batch lie in a tensor."""

from collections.abc import Iterable

from torch import Tensor


def layouts_of(shape: Iterable[int], count: int) -> list[str]:
    """Return how ``count`` examples may lie in a tensor: likeliest first, empty if they cannot.

    ``first`` and ``second`` axis; ``major``: windows of one example after the other along the
    first axis; ``minor``: positions along the first axis, and the examples of each together.

    Example:
        >>> layouts_of((8, 5, 3), 8), layouts_of((5, 8, 3), 8), layouts_of((16, 5, 3), 8)
        (['first'], ['second'], ['major', 'minor'])
    """
    sizes = list(shape)
    found = []
    if sizes and sizes[0] == count:
        found.append("first")
    if len(sizes) > 2 and sizes[1] == count:
        found.append("second")
    if sizes and sizes[0] > count and sizes[0] % count == 0:
        found += ["major", "minor"]
    return found


def by_example(x: Tensor, layout: str, count: int) -> Tensor:
    """Return x as (count, m, *rest), m the positions of an example along the batch's axis."""
    if layout == "first":
        return x.unsqueeze(1)
    if layout == "second":
        return x.transpose(0, 1)
    if layout == "major":
        return x.reshape(count, -1, *x.shape[1:])
    return x.reshape(-1, count, *x.shape[1:]).transpose(0, 1)
