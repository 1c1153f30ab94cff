"""The trace of a classifier's Fisher information, by example and by block."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import nan
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from firstlight.functional.fisher_penalty import BatchGradient
from firstlight.functional.gradient_norms import GradientNorms
from firstlight.functional.logit_draws import (
    ESTIMATORS,
    Draw,
    along_first_class,
)
from firstlight.functional.measuring import (
    batches_of,
    chosen_parameters,
    measuring,
    number_of_examples,
    original,
    require_running_statistics,
    take,
)
from firstlight.functional.parameter_blocks import parameter_blocks
from firstlight.functional.ranks import ALONE, Ranks, gather_or_raise
from firstlight.functional.seeding import keyed_generator

Estimator = Literal["importance", "label", "rademacher", "exact", "batch"]

CLOSED_FORM = "closed form"
"""The estimator named in a result where a linear head is all that is trained."""


@dataclass(frozen=True)
class FisherTrace:
    """The trace of the Fisher information matrix, in nats squared over squared weights.

    Attributes:
        value: mean over the examples.
        se: standard error over the examples, their own spread and the estimator's together; NaN
            for a single one. For "batch", over the batches.
        n: examples.
        num_parameters: numbers in the parameters measured.
        per_example: (n,) float64, in the order of the inputs; None for "batch".
        blocks: each block's part of ``value``; they add up to it.
        block_se: their standard errors.
        block_parameters: numbers in the parameters of each block.
        estimator: what was computed: as asked, or "closed form".
        slow: parameters that went by the slow path (one example at a time), and why.
        slow_parameters: numbers in those.
    """

    value: float
    se: float
    n: int
    num_parameters: int
    per_example: Tensor | None = field(repr=False)
    blocks: dict[str, float]
    block_se: dict[str, float] = field(repr=False)
    block_parameters: dict[str, int] = field(repr=False)
    estimator: str
    slow: dict[str, str] = field(default_factory=dict, repr=False)
    slow_parameters: int = 0

    @property
    def per_parameter(self) -> float:
        """``value`` by number of parameters, as arXiv 2403.15210 normalises; NaN of none."""
        return self.value / self.num_parameters if self.num_parameters else nan


def fisher_trace(
    model: nn.Module,
    inputs: Any,
    *,
    estimator: Estimator = "importance",
    params: Iterable[str] | None = None,
    blocks: Mapping[str, Iterable[str]] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    ranks: Ranks = ALONE,
) -> FisherTrace:
    """Estimate ``Tr F = E_x sum_c p_c |grad log p_c(x)|^2`` over a probe set.

    Labels are the model's own, never those of the data, with which it is another quantity that
    shrinks as the fit improves. All estimators are unbiased:

    - ``importance`` (default; our own derivation): one label, drawn with probability proportional
      to ``p_c |e_c - p|^2``. Exact for two classes or a linear head; bounded, so precise on
      confident networks, where ``label`` is not.
    - ``label``: one label drawn from the softmax, the textbook estimator.
    - ``rademacher``: one random sign a class.
    - ``exact``: every class; K backward passes.
    - ``batch``: ``B |grad of the mean loss|^2`` with drawn labels, of every batch. Its relative
      error a batch does not shrink with B; no per-example values.

    Where all that is trained is one linear layer that puts out the logits, the closed form
    ``(|h|^2 + 1)(1 - |p|^2)`` takes the place of any estimator but ``batch``, and the result says
    so. The model is measured in eval mode, in full precision, on the module under ``torch.compile``
    and DistributedDataParallel, and left as it was.

    Cost: one forward pass, one backward pass that stops at the lowest chosen parameter, and the
    norms; for the first batch three single examples more, on which the norms are compared with
    autograd. Memory: a training step's on ``batch_size`` examples, and 16 MiB.

    The trap: with BatchNorm from scratch, running statistics start at (0, 1) and the value moves
    for about 50 steps because they do; see `firstlight.functional.warm_batch_norm`.

    Args:
        model: called as ``model(inputs) -> logits (n, K)``, K >= 2.
        inputs: a tensor or any nesting of tensors, examples along the first axis.
        estimator: see above.
        params: names of the parameters to measure; default: all that require gradients.
        blocks: names of blocks to names of parameters, each measured parameter in exactly one;
            default: `parameter_blocks`.
        generator: a CPU generator from which one number is drawn, the same on all ranks; default:
            seed 0, so that curves over training share their randomness.
        batch_size: examples at a time; the randomness is keyed by the batch's number.
        ranks: processes that share the work; every one passes all inputs and gets the result.

    Returns:
        The trace; 0 where no parameter is measured.

    Raises:
        ValueError: on an unknown name, no examples, logits that are none or not finite, blocks that
            do not fit, or a model whose examples influence one another in eval mode.

    Example:
        >>> net = nn.Linear(4, 3)
        >>> fisher_trace(net, torch.randn(8, 4)).estimator
        'closed form'
    """
    if estimator not in (*ESTIMATORS, "batch"):
        raise ValueError(
            f"estimator must be one of {', '.join((*ESTIMATORS, 'batch'))}, not {estimator!r}"
        )
    model = original(model)
    inputs = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, inputs)
    count = number_of_examples(inputs)
    require_running_statistics(model)
    chosen = chosen_parameters(model, params)
    membership = _membership(model, chosen, blocks)
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
    batches = batches_of(count, batch_size)
    measure = BatchGradient(model, chosen) if estimator == "batch" else _PerExample(
        model, chosen, estimator
    )  # fmt: skip
    parts: dict[int, Tensor] = {}
    error = None
    try:
        with measuring(model, chosen.values()):
            for number, rows in ranks.share(batches):
                norms = measure(take(inputs, rows), rows.stop - rows.start, seed, number)
                parts[number] = membership.sums(norms)
    except Exception as caught:
        error = caught
    values = torch.cat(gather_or_raise(ranks, parts, error), 1)
    notes = ranks.gather({ranks.rank: (measure.slow, measure.estimator)})
    slow = {name: why for named, _ in notes for name, why in named.items()}
    kinds = {kind for _, kind in notes if kind}
    weights = torch.tensor([float(rows.stop - rows.start) for rows in batches])
    if estimator != "batch":
        weights = torch.ones(count)
    return _summary(values, weights, count, membership, slow, kinds.pop() if kinds else estimator,
                    {name: p.numel() for name, p in chosen.items()})  # fmt: skip


class _Membership:
    """Which block each chosen parameter belongs to."""

    def __init__(self, blocks: dict[str, list[str]], chosen: Mapping[str, nn.Parameter]) -> None:
        held = {name: [n for n in names if n in chosen] for name, names in blocks.items()}
        self.blocks = {name: names for name, names in held.items() if names}
        self.sizes = {b: sum(chosen[n].numel() for n in own) for b, own in self.blocks.items()}
        rows = {name: row for row, names in enumerate(self.blocks.values()) for name in names}
        self._rows = torch.tensor([rows[name] for name in chosen], dtype=torch.long)

    def sums(self, norms: Tensor) -> Tensor:
        """Add up (parameters, n) to (blocks, n)."""
        total = torch.zeros(len(self.blocks), norms.shape[1], dtype=torch.float64)
        return total.index_add_(0, self._rows, norms)


def _membership(
    model: nn.Module,
    chosen: Mapping[str, nn.Parameter],
    blocks: Mapping[str, Iterable[str]] | None,
) -> _Membership:
    if blocks is None:
        return _Membership(parameter_blocks(model) if chosen else {}, chosen)
    names = {id(p): name for name, p in chosen.items()}
    aliases = dict(model.named_parameters(remove_duplicate=False))
    own: dict[str, list[str]] = {block: [] for block in blocks}
    for block, listed in blocks.items():
        for name in listed:
            if name not in aliases:
                raise ValueError(f"block {block!r} names {name!r}, which the model does not have")
            if (found := names.get(id(aliases[name]))) and found not in own[block]:
                own[block].append(found)
    times = [name for held in own.values() for name in held]
    for name in chosen:
        if times.count(name) != 1:
            raise ValueError(
                f"parameter {name!r} is in {times.count(name)} blocks: blocks must hold each "
                "measured parameter once, so that they add up to the total"
            )
    return _Membership(own, chosen)


class _PerExample:
    """Norms of every example's gradient along drawn directions."""

    def __init__(
        self, model: nn.Module, chosen: Mapping[str, nn.Parameter], estimator: str
    ) -> None:
        self._norms = GradientNorms(model, chosen)
        self._draws = ESTIMATORS[estimator]
        self.estimator = ""

    @property
    def slow(self) -> dict[str, str]:
        return self._norms.slow

    def __call__(self, inputs: Any, count: int, seed: int, number: int) -> Tensor:
        generator = keyed_generator(seed, number)
        return self._norms(inputs, count, partial(self._draw, generator))

    def _draw(self, generator: torch.Generator, logits: Tensor, is_linear_head: bool) -> list[Draw]:
        if is_linear_head:
            self.estimator = CLOSED_FORM
            return along_first_class(logits, generator)
        return self._draws(logits, generator)


def _summary(
    values: Tensor,
    weights: Tensor,
    count: int,
    membership: _Membership,
    slow: dict[str, str],
    estimator: str,
    sizes: Mapping[str, int],
) -> FisherTrace:
    """Means and standard errors of (blocks, items), items weighing alike or by their examples."""
    every = torch.cat([values.sum(0, keepdim=True), values])
    shares = weights.double() / weights.sum()
    means = every @ shares
    items = len(shares)
    spread = (shares.square() * (every - means.unsqueeze(1)).square()).sum(1)
    errors = (spread * items / (items - 1)).sqrt() if items > 1 else torch.full_like(means, nan)
    return FisherTrace(
        value=float(means[0]),
        se=float(errors[0]),
        n=count,
        num_parameters=sum(sizes.values()),
        per_example=None if estimator == "batch" else every[0],
        blocks=dict(zip(membership.blocks, means[1:].tolist(), strict=True)),
        block_se=dict(zip(membership.blocks, errors[1:].tolist(), strict=True)),
        block_parameters=membership.sizes,
        estimator=estimator,
        slow=slow,
        slow_parameters=sum(sizes[name] for name in slow),
    )
