"""Several rules in one call against each fitted alone, and on data where the answer is known."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import two_rank_heads
from class_samples import gaussian_classes
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from firstlight.functional import (
    RULES,
    HeadFeatures,
    HeadRule,
    LastLayerStatistics,
    RuleUndefinedError,
    class_weights,
    fit_logistic_head,
    fit_squared_head,
    retrain_last_layer,
)

N = (90, 40, 12)


def sample(n=N, d=5, seed=0):
    return gaussian_classes(n, d, seed)


def test_all_rules_together_are_each_alone():
    x, y = sample()
    together = retrain_last_layer(x, y, list(RULES), tolerance=1e-9)
    assert together.undefined == {} and list(together.heads) == list(RULES)
    for name, head in together.heads.items():
        alone = retrain_last_layer(x, y, name, tolerance=1e-9)
        torch.testing.assert_close(head.weight, alone.weight, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(head.bias, alone.bias, atol=1e-6, rtol=1e-6)
        assert head.rule == name == alone.rule and head.converged and alone.converged


def test_logistic_rules_are_fits_with_their_weights_offsets_and_scales():
    x, y = sample()
    data, counts = HeadFeatures(x, y, 3), torch.tensor(N).double()
    log_prior = (counts / counts.sum()).log()
    heads = retrain_last_layer(x, y, list(RULES), tolerance=1e-10).heads
    ones = class_weights(N, "none")
    wanted = {
        "effective_number": fit_logistic_head(
            data, class_weights(N, "effective_number"), ridge=0.01, tolerance=1e-10
        ),
        "logit_adjustment": fit_logistic_head(
            data, ones, offsets=log_prior, ridge=0.01, tolerance=1e-10
        ),
        "vector_scaling": fit_logistic_head(
            data, ones, offsets=log_prior, scales=(counts / 90) ** 0.3, ridge=0.01, tolerance=1e-10
        ),
    }
    for name, want in wanted.items():
        torch.testing.assert_close(heads[name].weight, want.weight, atol=1e-6, rtol=0)
        scale = (counts / 90) ** 0.3 if name == "vector_scaling" else 1.0
        shift = scale * (heads[name].bias - want.bias)  # of one constant, nothing depends
        torch.testing.assert_close(shift, shift.mean().expand(3), atol=1e-6, rtol=0)


def test_squared_rules_are_closed_forms():
    x, y = sample()
    stats = LastLayerStatistics(5, 3)
    stats.update(x, y)
    head = retrain_last_layer(x, y, HeadRule("squared", "square_root"), ridge=0.2)
    want = fit_squared_head(stats, class_weights(N, "square_root"), ridge=0.2)
    torch.testing.assert_close(head.weight, want.weight, rtol=1e-9, atol=0)
    for freedom, df in (("dimension", 5), ("variance", 5)):
        rule = HeadRule("squared", "equal_error", freedom=freedom)
        head = retrain_last_layer(x, y, rule)
        weights = class_weights(N, "equal_error", degrees_of_freedom=df)
        torch.testing.assert_close(head.class_weights, weights.weights)


def test_one_fit_serves_rules_that_differ_by_an_offset():
    x, y = sample()
    found = retrain_last_layer(x, y, ["unweighted", "logit_adjustment"]).heads
    assert torch.equal(found["unweighted"].weight, found["logit_adjustment"].weight)
    gap = (found["unweighted"].bias - found["logit_adjustment"].bias).numpy()
    np.testing.assert_allclose(np.exp(gap - gap[0]), np.array(N) / 90, rtol=1e-12)


def test_two_processes_give_the_heads_of_one(tmp_path):
    """Two gloo processes, of unequal shares."""
    script, alone = Path(two_rank_heads.__file__), two_rank_heads.heads()
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "store", tmp_path / "out"],
            cwd=script.parent,
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    one, other = (torch.load(tmp_path / f"out.{rank}") for rank in range(2))
    for name, head in alone.items():
        assert torch.equal(one[name], other[name]), name
        torch.testing.assert_close(one[name], head, rtol=1e-6, atol=1e-7)


def test_a_warm_start_saves_iterations():
    x, y = sample((300, 100, 30), 20)
    cold = retrain_last_layer(x, y, "inverse_frequency")
    warm = retrain_last_layer(x, y, ["unweighted", "inverse_frequency"]).heads["inverse_frequency"]
    again = retrain_last_layer(x, y, "inverse_frequency", start=cold)
    assert warm.iterations < cold.iterations and again.iterations <= 1


def test_many_wide_classes_keep_moments_of_rules_only(monkeypatch):
    x, y = sample()
    want = retrain_last_layer(x, y, ["balanced_midpoint", "worst_class_midpoint"]).heads
    for module in ("retrain_last_layer", "sufficient_statistics"):
        name = f"firstlight.functional.{module}"
        monkeypatch.setattr(sys.modules[name], "LARGEST", 100)
    names = ["balanced_midpoint", "worst_class_midpoint", "equal_error"]
    found = retrain_last_layer(x, y, names)
    assert "would take more than 1 GiB" in found.undefined["equal_error"]
    for name, head in found.heads.items():
        torch.testing.assert_close(head.bias, want[name].bias, rtol=1e-8, atol=1e-10)


def test_a_rule_undefined_here_says_why_and_spares_the_others():
    x, y = sample((90, 40, 2), d=60)
    names = ["square_root", "equal_error", "balanced_midpoint"]
    rules = {name: RULES[name] for name in names} | {names[0]: HeadRule("squared", "square_root")}
    with pytest.warns(UserWarning, match="fewer than 5"):
        found = retrain_last_layer(x, y, rules, ridge=0)
    assert list(found.heads) == ["square_root", "balanced_midpoint"]
    assert found.undefined["equal_error"].startswith("undefined here, because no weights give")
    with pytest.raises(RuleUndefinedError, match="Raise the ridge"):
        retrain_last_layer(x, y, "equal_error", ridge=0)


@pytest.mark.slow
def test_reference_on_long_tailed_digits():
    """Worst and mean error of the method's reference, 10 draws: logit adjustment .189 and .069."""
    digits = load_digits()
    n = [120, 90, 68, 51, 38, 29, 22, 16, 12, 9]
    errors = []
    for draw in range(10):
        generator = np.random.default_rng(draw)
        sizes = np.array(n)[generator.permutation(10)]
        order = generator.permutation(len(digits.target))
        train = np.concatenate([order[digits.target[order] == k][: sizes[k]] for k in range(10)])
        test = np.setdiff1d(order, train)
        x, y = torch.tensor(digits.data), torch.tensor(digits.target)
        head = retrain_last_layer(x[train], y[train])
        wrong = (head.logits(x[test]).argmax(1) != y[test]).numpy()
        errors.append([wrong[digits.target[test] == k].mean() for k in range(10)])
    worst, mean = np.mean(np.max(errors, axis=1)), np.mean(errors)
    assert worst == pytest.approx(0.189, abs=0.06) and mean == pytest.approx(0.069, abs=0.012)


def test_logit_adjustment_is_scikit_learns_fit_less_the_log_prior():
    x, y = sample()
    head = retrain_last_layer(x, y, standardize=False, ridge=0.05, tolerance=1e-10)
    other = LogisticRegression(C=1 / (len(y) * 0.05), tol=1e-12, max_iter=10_000).fit(x, y)
    want = x.numpy() @ other.coef_.T + other.intercept_ - np.log(np.array(N) / len(y))
    found = head.logits(x).numpy()
    centred = found - found.mean(1, keepdims=True)
    np.testing.assert_allclose(centred, want - want.mean(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loss": "hinge"}, "loss must be"),
        ({"weights": "inverse"}, "weights must be one of"),
        ({"loss": "squared", "tau": 1.0}, "squared-loss scores are none"),
        ({"loss": "squared", "gamma": 0.2}, "squared-loss scores are none"),
        ({"midpoint": True}, "derived for squared loss"),
        ({"weights": "equal_error"}, "derived for squared loss"),
    ],
)
def test_rules_that_mean_nothing_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HeadRule(**kwargs)


def test_bad_calls_are_refused():
    x, y = sample()
    with pytest.raises(ValueError, match="unknown rule 'crt'; there are unweighted, "):
        retrain_last_layer(x, y, "crt")
    with pytest.raises(ValueError, match="rules is empty"):
        retrain_last_layer(x, y, [])
    with pytest.raises(ValueError, match="class 3 has no examples"):
        retrain_last_layer(x, y, num_classes=4)
    with pytest.raises(ValueError, match="ridge must be"):
        retrain_last_layer(x, y, ridge=float("nan"))
