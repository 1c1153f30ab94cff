"""Draws in logit space, against full enumeration of their randomness and closed forms."""

from itertools import product

import pytest
import torch

from firstlight.functional import logit_draws


def fisher_of_logits(p):
    return torch.diag(p) - torch.outer(p, p)


class Scripted:
    """Stands in for a generator: `rand` and `randint` are fed the numbers of a script."""

    def __init__(self, monkeypatch, numbers):
        values = torch.tensor([numbers], dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *_, **__: values)
        monkeypatch.setattr(torch, "randint", lambda *_, **__: values)


LOGITS = torch.tensor([[0.3, -1.2, 2.0, 0.7]], dtype=torch.float64)


def second_moment(draws, probability):
    [(unit, weight)] = draws
    return probability * weight[0] * torch.outer(unit[0], unit[0])


@pytest.mark.parametrize("name", ["label", "importance"])
def test_drawn_labels_have_the_fisher_matrix_as_second_moment(monkeypatch, name):
    """Oracle: Lambda itself; every label is met by stepping through the unit interval."""
    p = LOGITS.softmax(1)[0]
    steps = 4000
    total = torch.zeros(4, 4, dtype=torch.float64)
    seen = set()
    for step in range(steps):
        Scripted(monkeypatch, [(step + 0.5) / steps])
        draws = logit_draws.ESTIMATORS[name](LOGITS, torch.Generator())
        seen.add(int(draws[0].unit[0].argmax()))
        total += second_moment(draws, 1 / steps)
    assert seen == {0, 1, 2, 3}
    # A label's probability is a multiple of 1 / steps here: off by half a step at each end.
    torch.testing.assert_close(total, fisher_of_logits(p), rtol=0, atol=4 / steps)


def test_signs_have_the_fisher_matrix_as_second_moment(monkeypatch):
    """Oracle: Lambda itself, all 2^4 signs enumerated."""
    total = torch.zeros(4, 4, dtype=torch.float64)
    for signs in product((0, 1), repeat=4):
        Scripted(monkeypatch, signs)
        total += second_moment(logit_draws.rademacher(LOGITS, torch.Generator()), 1 / 16)
    torch.testing.assert_close(total, fisher_of_logits(LOGITS.softmax(1)[0]), rtol=0, atol=1e-15)


def test_exact_draws_add_up_to_the_fisher_matrix():
    draws = logit_draws.exact(LOGITS, torch.Generator())
    total = sum(second_moment([draw], 1.0) for draw in draws)
    torch.testing.assert_close(total, fisher_of_logits(LOGITS.softmax(1)[0]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("gap", [1.0, 20.0, 60.0, 300.0])
@pytest.mark.parametrize("name", [*logit_draws.ESTIMATORS, "along_first_class"])
def test_confident_networks_are_not_rounded_to_zero(name, gap):
    """Oracle: two classes by hand, with q = p_2 = e^-gap / (1 + e^-gap) and p = 1 - q.

    ``|u|^2`` is 2 p q for the importance-sampled label and in sum over the classes, 2 q^2 or 2 p^2
    for a drawn label, 2 p q (1 -+ 2 sqrt(p q)) for signs.
    """
    small = torch.tensor(-gap, dtype=torch.float64).exp()
    q, p = float(small / (1 + small)), float(1 / (1 + small))
    allowed = {
        "label": [2 * q**2, 2 * p**2],
        "rademacher": [2 * p * q * (1 + s * 2 * (p * q) ** 0.5) for s in (-1, 1)],
    }.get(name, [2 * p * q])
    logits = torch.tensor([[gap, 0.0]], dtype=torch.float64).expand(8, 2)
    draws = getattr(logit_draws, name)(logits, torch.Generator().manual_seed(0))
    for value in sum(weight for _, weight in draws).tolist():
        assert min(abs(value / one - 1) for one in allowed) < 1e-12
    for unit, _ in draws:
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(8).double(), rtol=0, atol=1e-12)


def test_labels_come_as_often_as_the_softmax_says():
    """Oracle: the probabilities; 4 standard errors of 20,000 draws."""
    count = 20_000
    labels = logit_draws.sampled_labels(LOGITS.expand(count, 4), torch.Generator().manual_seed(1))
    p = LOGITS.softmax(1)[0]
    shares = torch.bincount(labels, minlength=4) / count
    assert ((shares - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all()


def test_a_softmax_that_is_certain_has_no_trace_at_all():
    logits = torch.tensor([[2000.0, 0.0, 0.0]], dtype=torch.float64)
    for name, draw in logit_draws.ESTIMATORS.items():
        total = sum(float(weight[0]) for _, weight in draw(logits, torch.Generator()))
        assert total == 0, name
        assert all(unit.isfinite().all() for unit, _ in draw(logits, torch.Generator()))
