"""The Fisher trace against its definition (`exact_fisher`), closed forms and enumeration."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import two_ranks
from exact_fisher import exact, exact_by_parameter, network, probe
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from firstlight.functional import (
    FisherTrace,
    fisher_trace,
    keyed_generator,
)
from firstlight.functional.ranks import ALONE


@pytest.mark.parametrize("scale", [1.0, 12.0])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_exact_is_the_definition(scale, batch_size):
    net, x = network(scale=scale), probe()
    result = fisher_trace(net, x, estimator="exact", batch_size=batch_size)
    want = exact(net, x)
    torch.testing.assert_close(result.per_example, want, rtol=1e-10, atol=0)
    assert result.value == pytest.approx(float(want.mean()), rel=1e-12)
    assert result.se == pytest.approx(float(want.std() / len(want) ** 0.5), rel=1e-12)
    assert (result.n, result.estimator, result.slow) == (12, "exact", {})
    assert result.num_parameters == sum(p.numel() for p in net.parameters())
    assert result.per_parameter == result.value / result.num_parameters


def test_blocks_are_those_of_the_definition_and_add_up():
    net, x = network(), probe()
    blocks = {"below": ["0.weight", "1.bias", "1.weight"], "rest": ["0.bias", "3.weight", "3.bias"],
              "head": ["5.weight", "5.bias"]}  # fmt: skip
    want = exact_by_parameter(net, x)
    result = fisher_trace(net, x, estimator="exact", blocks=blocks)
    for block, names in blocks.items():
        each = sum(want[name] for name in names)
        assert result.blocks[block] == pytest.approx(float(each.mean()), rel=1e-12)
        assert result.block_se[block] == pytest.approx(float(each.std() / 12**0.5), rel=1e-10)
        sizes = sum(p.numel() for n, p in net.named_parameters() if n in names)
        assert result.block_parameters[block] == sizes
    assert sum(result.blocks.values()) == pytest.approx(result.value, rel=1e-12)
    default = fisher_trace(net, x, estimator="exact")
    assert list(default.blocks) == ["stem", "3", "head"]


@pytest.mark.parametrize("estimator", ["importance", "label", "rademacher", "batch"])
def test_estimators_are_unbiased(estimator):
    """Within 4 standard errors over 64 independent draws, and those below 1 % of the value.

    (Below 8 % for batches, which are far noisier. Full enumeration: test_logit_draws.)
    """
    net, x = network(), probe(128)
    draws = torch.tensor(
        [
            fisher_trace(net, x, estimator=estimator, generator=keyed_generator(5, i)).value
            for i in range(64)
        ]
    )
    want = float(exact(net, x).mean())
    error = float(draws.std() / 8)
    assert abs(float(draws.mean()) - want) < 4 * error
    assert error < (0.08 if estimator == "batch" else 0.01) * want


def test_two_classes_leave_the_importance_sampled_label_nothing_to_chance():
    """Oracle: the definition, draw by draw."""
    net, x = network(classes=2, scale=5.0), probe()
    for seed in range(5):
        result = fisher_trace(net, x, generator=keyed_generator(seed))
        torch.testing.assert_close(result.per_example, exact(net, x), rtol=1e-10, atol=0)


def test_the_importance_sampled_label_is_precise_where_a_drawn_label_is_not():
    net, x = network(scale=40.0), probe(64)

    def spread(estimator):
        values = [
            fisher_trace(net, x, estimator=estimator, generator=keyed_generator(i)).value
            for i in range(30)
        ]
        return float(torch.tensor(values).std())

    assert spread("label") > 8 * spread("importance")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("estimator", ["importance", "label", "rademacher", "exact"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_head_has_a_closed_form(estimator, bias):
    """Oracles: the definition; and the trace of the cross-entropy's Hessian, by torch.func."""
    torch.manual_seed(2)
    body, head = nn.Sequential(nn.Linear(5, 7), nn.Tanh()), nn.Linear(7, 4, bias=bias)
    net = nn.Sequential(body, head).double()
    body.requires_grad_(False)
    x = probe(35)
    result = fisher_trace(net, x, estimator=estimator)
    assert result.estimator == "closed form" and result.slow == {}
    torch.testing.assert_close(result.per_example, exact(net, x), rtol=1e-10, atol=0)
    chosen = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}

    def loss(parameters):
        return F.cross_entropy(functional_call(net, parameters, (x,)), torch.zeros(35).long())

    curvature = hessian(loss)(chosen)
    trace = sum(
        curvature[n][n].reshape(p.numel(), p.numel()).diagonal().sum() for n, p in chosen.items()
    )
    assert result.value == pytest.approx(float(trace), rel=1e-10)
    assert fisher_trace(net, x, estimator="batch").estimator == "batch"


@pytest.mark.parametrize(
    "change",
    [
        lambda head: nn.Sequential(head, nn.Softplus()),  # not the logits
        lambda head: nn.Sequential(nn.Unflatten(1, (1, 7)), head, nn.Flatten(1)),
    ],
)
def test_the_closed_form_is_left_where_it_does_not_hold(change):
    torch.manual_seed(2)
    body, head = nn.Sequential(nn.Linear(5, 7), nn.Tanh()), nn.Linear(7, 4)
    net = nn.Sequential(body, change(head)).double()
    body.requires_grad_(False)
    result = fisher_trace(net, probe(), estimator="exact")
    assert result.estimator == "exact"
    torch.testing.assert_close(result.per_example, exact(net, probe()), rtol=1e-10, atol=0)


def test_only_what_is_asked_for_is_measured():
    net, x = network(), probe()
    want = exact_by_parameter(net, x)
    names = ["3.weight", "0.bias"]
    result = fisher_trace(net, x, estimator="exact", params=names)
    assert result.value == pytest.approx(float(sum(want[n].mean() for n in names)), rel=1e-12)
    assert result.num_parameters == 36 + 6
    net[0].requires_grad_(False)
    frozen = fisher_trace(net, x, estimator="exact")
    rest = sum(v.mean() for n, v in want.items() if not n.startswith("0."))
    assert frozen.value == pytest.approx(float(rest), rel=1e-12)
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["0.weight", "0.bias"]


def test_a_frozen_network_has_no_trace():
    net = network().requires_grad_(False)
    for estimator in ("importance", "batch"):
        result = fisher_trace(net, probe(), estimator=estimator)
        assert (result.value, result.blocks, result.num_parameters) == (0, {}, 0)
        assert np.isnan(result.per_parameter)


def test_two_processes_measure_what_one_does(tmp_path):
    """Bitwise, on both; also an error that only one of them meets is raised on both."""
    script = Path(two_ranks.__file__)
    arguments = [str(tmp_path / "store"), str(tmp_path / "found")]
    processes = [
        subprocess.Popen([sys.executable, str(script), str(rank), *arguments]) for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    alone = two_ranks.measured(ALONE)
    assert alone["refused"]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"found.{rank}").read_text()) == alone


def state_of(net):
    return (
        [(n, m.training) for n, m in net.named_modules()],
        [(n, p.requires_grad, None if p.grad is None else p.grad.clone())
         for n, p in net.named_parameters()],
        {n: v.clone() for n, v in net.state_dict().items()},
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].copy(),  # noqa: NPY002  # the global state must not move
    )  # fmt: skip


@pytest.mark.parametrize("bad", [False, True])
def test_nothing_is_changed_also_when_it_fails(bad):
    net, x = network().train(), probe()
    net[3].eval()
    net[0].weight.requires_grad_(False)
    net[5].bias.grad = torch.ones(4).double()
    if bad:
        x[3] = float("nan")
    before = state_of(net)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if bad:
            with pytest.raises(ValueError, match="logits of 1 of 12 examples are not finite"):
                fisher_trace(net, x)
        else:
            fisher_trace(net, x)
            fisher_trace(net, x, estimator="batch")
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    after = state_of(net)
    assert before[0] == after[0] and before[4] == after[4]
    assert torch.equal(before[3], after[3]) and (before[5] == after[5]).all()
    assert [p[:2] for p in before[1]] == [p[:2] for p in after[1]]
    assert all(torch.equal(v, after[2][n]) for n, v in before[2].items())
    assert torch.equal(net[5].bias.grad, torch.ones(4).double()) and net[3].bias.grad is None


def test_training_mode_autocast_and_inference_mode_make_no_difference():
    net, x = network(), probe()
    want = fisher_trace(net, x)
    net.train()
    assert fisher_trace(net, x).value == want.value
    with torch.autocast("cpu", torch.bfloat16):
        assert fisher_trace(net, x).value == want.value
    with torch.inference_mode():
        assert fisher_trace(net, x).value == want.value
    assert fisher_trace(torch.compile(net, backend="eager"), x).value == want.value
    assert fisher_trace(nn.Sequential(*net), x).value == want.value
    inside = nn.Sequential(torch.compile(net, backend="eager"))
    assert fisher_trace(inside, x).value == want.value


def test_gradient_checkpointing_makes_no_difference():
    import timm

    torch.manual_seed(0)
    net, x = timm.create_model("test_vit", num_classes=3).eval(), torch.randn(5, 3, 160, 160)
    want = fisher_trace(net, x)
    net.set_grad_checkpointing(True)
    assert fisher_trace(net, x).value == want.value
    assert net.grad_checkpointing


def test_the_same_seed_gives_the_same_number_and_another_another():
    net, x = network(), probe()
    first, second = (fisher_trace(net, x, generator=keyed_generator(3)) for _ in range(2))
    assert first.value == second.value
    assert fisher_trace(net, x, generator=keyed_generator(4)).value != first.value
    assert fisher_trace(net, x).value == fisher_trace(net, x).value


def test_inputs_may_be_any_nesting_of_tensors():
    class Named(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return self.net(batch["x"] + batch["more"][0])

    net, x = network(), probe()
    inputs = {"x": x / 2, "more": (x / 2,)}
    blocks = {"all": [f"net.{n}" for n, _ in net.named_parameters()]}
    assert fisher_trace(Named(net), inputs, blocks=blocks).value == pytest.approx(
        fisher_trace(net, x).value, rel=1e-12
    )


class Cached(nn.Module):
    """Keeps what it made of a parameter from one call to the next in eval mode, as timm's LeViT."""

    def __init__(self):
        super().__init__()
        self.linear, self.bias = nn.Linear(5, 3).double(), nn.Parameter(torch.randn(3).double())
        self.cache = {}

    def forward(self, x):
        if self.training:
            return self.linear(x).tanh() + self.bias.tanh()
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias.tanh()
        return self.linear(x).tanh() + self.cache["bias"]


def test_what_a_model_keeps_between_calls_is_neither_used_nor_left_behind():
    """Oracle: the definition on a fresh copy; the stale cache would give another number."""
    torch.manual_seed(0)
    net, x = Cached().eval(), probe()
    kept = net.cache["bias"] = torch.full((3,), 5.0, dtype=torch.float64)
    for step in range(2):
        fresh = Cached()
        fresh.load_state_dict(net.state_dict())
        result = fisher_trace(net, x, estimator="exact", batch_size=4)
        torch.testing.assert_close(result.per_example, exact(fresh, x), rtol=1e-10, atol=0)
        assert result.slow == {}, step
        assert net.cache["bias"] is kept
        with torch.no_grad():
            net.bias += 1


class Mixing(nn.Module):
    """Centres by the batch: no example has a gradient of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3).double()

    def forward(self, x):
        return self.linear(x - x.mean(0)).tanh()


class Random(Mixing):
    def forward(self, x):
        return self.linear(x).tanh() + torch.randn(len(x), 3)


@pytest.mark.parametrize(
    ("model", "inputs", "settings", "message"),
    [
        (network(), probe(0), {}, "the probe set is empty"),
        (network(), [probe(3), probe(4)], {}, r"different numbers of examples: \[3, 4\]"),
        (network(), probe(), {"estimator": "labels"}, "must be one of importance, label, radem"),
        (network(), probe(), {"params": ["0.wieght"]}, "no parameter '0.wieght'; near: 0.weight"),
        (network(), probe(), {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (network(), probe(), {"blocks": {"a": ["0.weight"]}}, "'0.bias' is in 0 blocks"),
        (network(), probe(), {"blocks": {"a": ["what"]}}, "block 'a' names 'what'"),
        (nn.Linear(5, 1).double(), probe(), {}, "logits .12, classes. of at least two classes"),
        (nn.Identity(), probe().unsqueeze(1), {}, r"must return logits .* \(12, 1, 5\)"),
        (Mixing(), probe(), {}, "the model mixes the examples of a batch"),
        (Random(), probe(), {}, "draws random numbers in eval mode"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, inputs, settings, message):
    with pytest.raises(ValueError, match=message):
        fisher_trace(model, inputs, **settings)


def test_weights_that_are_not_finite_are_refused():
    net = network()
    net[5].weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        fisher_trace(net, probe())


def test_batch_norm_without_statistics_is_refused():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(),
                        nn.Linear(6, 3)).double()  # fmt: skip
    with pytest.raises(ValueError, match="BatchNorm without running statistics"):
        fisher_trace(net, probe())


def test_one_example_has_no_standard_error():
    result = fisher_trace(network(), probe(1), estimator="exact")
    assert np.isnan(result.se) and result.value > 0
    assert isinstance(result, FisherTrace)
