"""The exact Fisher trace of timm's models against its definition (`exact_fisher`), in float64.

The whole table, of more families: ``python benchmarks/fisher_families.py``.
"""

import fisher_families
import pytest

SMALL = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "convit_tiny")


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in fisher_families.NAMED)]
)
def test_the_trace_of_timm_models_is_exact(name):
    found = fisher_families.check(name)
    assert found.error < 1e-9 and found.worst < 1e-9
    assert found.fast > 0.95
