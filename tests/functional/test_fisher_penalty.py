"""The penalty and the estimator of a batch, against the definition and enumerated labels."""

import copy
import itertools

import pytest
import torch
from exact_fisher import exact, network, probe

from firstlight.functional import fisher_penalty, fisher_trace, keyed_generator


def test_the_penalty_is_an_unbiased_estimate_of_the_trace():
    """Oracle: the definition; 4 standard errors of 600 draws, those below 3 %."""
    net, x = network(), probe(16)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([fisher_penalty(net, x, generator=generator).detach() for _ in range(600)])
    error = float(draws.std() / 600**0.5)
    want = float(exact(net, x).mean())
    assert abs(float(draws.mean()) - want) < 4 * error and error < 0.03 * want


def test_batch_gradients_are_those_of_some_labels():
    """Oracle: all nine pairs of labels of two examples, from single-example gradients.

    ``2 |(g_1 + g_2) / 2|^2`` of some pair is what every draw must be, of penalty and estimator.
    """
    net, x = network(classes=3), probe(2)
    log_p = [net(x[[i, i]]).log_softmax(1)[0] for i in range(2)]
    gradients = [
        [torch.cat([g.flatten() for g in torch.autograd.grad(value, net.parameters(),
                                                             retain_graph=True)])
         for value in one] for one in log_p
    ]  # fmt: skip
    allowed = torch.stack([(a + b).square().sum() / 2 for a in gradients[0] for b in gradients[1]])
    met = set()
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        penalty = fisher_penalty(net, x, generator=generator).detach()
        estimate = fisher_trace(net, x, estimator="batch", generator=keyed_generator(seed)).value
        for value in (float(penalty), estimate):
            errors = (allowed / value - 1).abs()
            assert float(errors.min()) < 1e-10
            met.add(int(errors.argmin()))
    assert len(met) > 4


def test_the_penalty_can_be_differentiated():
    """Oracle: central differences along a random direction, the labels held by the seed."""
    net, x = network(), probe(8)

    def penalty():
        return fisher_penalty(net, x, generator=torch.Generator().manual_seed(3))

    net.train()
    gradients = torch.autograd.grad(penalty(), list(net.parameters()))
    assert net.training
    direction = [torch.randn_like(p) for p in net.parameters()]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), direction, strict=True):
                p += sign * 1e-5 * d
        end = fisher_penalty(moved, x, generator=torch.Generator().manual_seed(3))
        ends.append(float(end.detach()))
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_the_penalty_of_attention_can_be_differentiated():
    import timm

    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=3)
    fisher_penalty(net, torch.randn(2, 3, 160, 160)).backward()
    assert all(p.grad is not None for p in net.blocks.parameters())


def test_a_penalty_on_nothing_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        fisher_penalty(network().requires_grad_(False), probe())


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2)])
def test_batches_weigh_by_their_examples(sizes):
    """Oracle: all labels of all examples, from single-example gradients.

    A batch's estimate times its share of the n examples is ``|sum of its gradients|^2 / n``.
    """
    n = sum(sizes)
    net, x = network(classes=2), probe(n)
    gradients = torch.empty(n, 2, sum(p.numel() for p in net.parameters())).double()
    for i, label in itertools.product(range(n), range(2)):
        log_p = net(x[[i, i]]).log_softmax(1)[0, label]
        each = torch.autograd.grad(log_p, list(net.parameters()))
        gradients[i, label] = torch.cat([g.flatten() for g in each])
    labels = torch.tensor(list(itertools.product(range(2), repeat=n)))
    chosen = gradients[torch.arange(n), labels].split(sizes, 1)
    parts = torch.stack([own.sum(1).square().sum(1) / n for own in chosen])
    met = set()
    for seed in range(8):
        result = fisher_trace(
            net, x, estimator="batch", batch_size=sizes[0], generator=keyed_generator(seed)
        )
        errors = (parts.sum(0) / result.value - 1).abs()
        drawn = int(errors.argmin())
        met.add(drawn)
        assert float(errors[drawn]) < 1e-10
        if sizes[0] == sizes[1]:  # of two like estimates: half their difference
            own = n / sizes[0] * parts[:, drawn]
            assert result.se == pytest.approx(float((own[0] - own[1]).abs() / 2), rel=1e-10)
    assert len(met) > 4
